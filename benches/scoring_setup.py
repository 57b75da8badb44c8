"""What the scoring benchmarks share: models made by code, run directories ready to be scored, a stopwatch."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mllm_selector import pipeline
from mllm_selector.artifacts import ScoreTable
from mllm_selector.config import ScoreOptions
from mllm_selector.demo import nlvr
from mllm_selector.demo.model import ModelSize, make_model
from mllm_selector.families.chat import ChatEncoder, encode_for_training
from mllm_selector.families.images import load_image
from mllm_selector.families.loading import load_model, load_processor
from mllm_selector.pool import Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.resources import processor_name
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import score

LOOP_BATCH = 8
T = TypeVar("T")

PACKAGES = ("torch", "transformers", "onnxruntime", "onnx", "pillow", "numpy")
VOCABULARY = 32_000


def model_size(hidden: int, layers: int) -> ModelSize:
    """Return the size of a LLaVA with 64 tokens an image and as many layers in its tower as in its text."""
    return ModelSize(hidden, layers, layers, image_side=96, patch_side=12, vocabulary=2000)


class Stopwatch(SilentProgress):
    """Seconds from the start of a stage's work, models loaded, to its end."""

    seconds = 0.0
    _started: float | None = None

    def start(self, stage: str, total: int | None = None, unit: str = "samples", **_: Any) -> None:
        """Start the clock at the first step."""
        self._started = self._started or time.perf_counter()

    def finish(self, text: str) -> None:
        """Stop it."""
        assert self._started is not None
        self.seconds = time.perf_counter() - self._started


@dataclass(frozen=True)
class Scored:
    """One run of the score stage.

    Attributes
    ----------
    seconds : float
        Time of the stage, without loading the model.
    idle : float
        Share of it in which the engine did not compute.
    counts : dict
        What the stage reports.
    necessity : ndarray of float32
        The mean losses.
    """

    seconds: float
    idle: float
    counts: dict[str, Any]
    necessity: np.ndarray

    @property
    def busy(self) -> float:
        """Seconds in which the engine computed."""
        return self.seconds * (1 - self.idle)


def best_in_turns(
    repeats: int, contenders: Mapping[str, Callable[[], T]], seconds: Callable[[T], float]
) -> dict[str, T]:
    """Let contenders take turns; return the fastest result of each by name."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            results[name].append(run())
    return {name: min(found, key=seconds) for name, found in results.items()}


def machine() -> str:
    """Describe machine and versions in a line."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{processor_name()}; Python {platform.python_version()}; {packages}"


def make_pool(folder: Path, corpus: Path | None, count: int) -> tuple[Path, Path]:
    """Write a LLaVA pool of NLVR samples, evenly drawn; return it and its images folder.

    Parameters
    ----------
    folder : Path
        Gets ``pool.json``.
    corpus : Path, optional
        An NLVR folder; by default the sample that the package ships.
    count : int
        Number of samples.
    """
    if corpus is None:
        whole, images = nlvr.write_pool(folder / "shipped")
        records = json.loads(whole.read_bytes())
    else:
        images = corpus
        records = list(nlvr.samples(nlvr.read_statements(corpus), 2))
    if len(records) < count:
        raise SystemExit(f"the corpus has {len(records)} samples, fewer than {count}; give --nlvr DIR")
    places = np.linspace(0, len(records) - 1, count).astype(int)
    pool = folder / "pool.json"
    nlvr.write_llava(pool, [records[place] for place in places])
    return pool, images


def make_llava(folder: Path, pool: Path, size: ModelSize, vocabulary: int) -> int:
    """Write a LLaVA with random weights and a large vocabulary; return its number of parameters.

    Every matrix is drawn with a standard deviation of 1/sqrt(fan-in), so that losses are far from uniform.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    texts = [turn["value"] for record in json.loads(pool.read_bytes()) for turn in record["conversations"]]
    shutil.rmtree(folder, ignore_errors=True)
    make_model(folder, texts, size=size)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def prepare(run_dir: Path, pool: Path, images: Path, model: Path, **options: Any) -> None:
    """Read the pool and export the model into a new run directory."""
    shutil.rmtree(run_dir, ignore_errors=True)
    given = {"pool": str(pool), "images": str(images), "seed_model": str(model), **options}
    built = pipeline.build_options(given, ["ingest", "seed", "export"])
    pipeline.run_stages(run_dir, built)


def score_once(run_dir: Path, **options: Any) -> Scored:
    """Score the pool of a run directory from the start."""
    stopwatch = Stopwatch()
    with RunDirectory(run_dir) as run:
        shutil.rmtree(run.scores, ignore_errors=True)
        run.stages["score"] = StageRecord("running", "bench")
        counts = score.run(run, ScoreOptions(**options), stopwatch)
        necessity = ScoreTable.load(run.scores).necessity
    return Scored(stopwatch.seconds, counts["idle_share"], counts, necessity)


def score_by_loop(
    run_dir: Path, folder: Path, images: Path, device: str = "cpu", precision: str = "float32"
) -> Scored:
    """Score in file order with full logits, as a training script's evaluation does.

    Parameters
    ----------
    run_dir : Path
        Has the pool.
    folder : Path
        The model.
    images : Path
        The pool's images folder.
    device, precision : str
        Where the model runs, and in which number format.
    """
    import torch

    model = load_model(folder, precision=precision, attention=None).to(device)
    processor = load_processor(folder)
    chat = ChatEncoder.of(processor)
    samples = list(Pool.open(run_dir / "pool.arrow", images))
    losses = np.full(len(samples), np.nan, dtype=np.float32)
    seconds = 0.0
    for at in range(0, len(samples), LOOP_BATCH):
        started = time.perf_counter()
        encoded = [
            encode_for_training(processor, sample, load_image, chat)
            for sample in samples[at : at + LOOP_BATCH]
        ]
        collated = collate(encoded, processor.tokenizer.pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in collated.items()}
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            output = model(**batch, use_cache=False)
            output.loss.item()
        seconds += time.perf_counter() - started
        # For the comparison of values only: the model's loss is one mean over the batch.
        labels = batch["labels"][:, 1:]
        logits = output.logits[:, :-1].float().transpose(1, 2)
        tokens = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses[at : at + LOOP_BATCH] = (tokens.sum(1) / (labels >= 0).sum(1)).cpu().numpy()
    return Scored(seconds, 0.0, {}, losses)


def collate(encoded: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Pad what there is for each token to the longest, on the right; put the rest one after the other."""
    import torch

    fill = {"input_ids": pad, "labels": -100}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [each[name] for each in encoded], batch_first=True, padding_value=fill.get(name, 0)
        )
        for name, tensor in encoded[0].items()
        if tensor.ndim == 1
    }
    whole = sorted({name for each in encoded for name in each} - set(batch))
    return batch | {name: torch.cat([each[name] for each in encoded if name in each]) for name in whole}

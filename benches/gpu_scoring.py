"""Scoring speed on one GPU: the ONNX engine against torch, on a LLaVA-shaped model with random weights.

    python benches/gpu_scoring.py                    # about 0.8 B parameters, 5000 samples, 336-pixel images
    python benches/gpu_scoring.py --size tiny --device cpu --samples 64

Makes the model, the pool and the images in a folder of its own, exports, and scores the same samples with

- onnx: this package's score stage, image loading included;
- torch: the same batches of the same prepared inputs, sdpa attention, logits at answer positions only;
- loop: what users write today, `model(**batch, labels=...)` in file order with full logits.

Prints samples and tokens per second, peak device memory and mean utilisation of each, and how far apart the
mean losses are. Exits with 1 if they disagree by more than the precision allows.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable, write_arrow
from mllm_selector.config import ExportOptions, ScoreOptions
from mllm_selector.families.base import Encoded
from mllm_selector.families.chat import FALLBACK_TEMPLATE
from mllm_selector.families.images import load_image
from mllm_selector.pool import POOL_SCHEMA, POOL_VERSION, Pool, Sample
from mllm_selector.progress import for_stream
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.scoring.batching import length_batches
from mllm_selector.stages import export, score

WORDS = np.array(
    [
        "there",
        "is",
        "a",
        "red",
        "blue",
        "box",
        "with",
        "two",
        "small",
        "circles",
        "near",
        "the",
        "wall",
        "how",
        "many",
        "yes",
        "no",
        "what",
    ]
)
LOOP_BATCH = 8

# Vision and text shapes; "0.5b" is CLIP ViT-L/14 at 336 pixels with the text model of Qwen2-0.5B.
SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "tiny": (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2000},
    ),
    "0.5b": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936},
    ),
}
HEADS = {
    "tiny": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "0.5b": {"num_attention_heads": 14, "num_key_value_heads": 2},
}
PIXELS = {"tiny": 56, "0.5b": 336}


@dataclass
class Usage:
    """Device memory in MB and utilisation in percent while a block ran; empty without nvidia-smi."""

    memory: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.memory:
            return f"{'-':>9} {'-':>6}"
        return f"{max(self.memory):>6,.0f} MB {statistics.mean(self.busy):>5.0f}%"


@dataclass(frozen=True)
class Result:
    """Mean losses by one engine, and what they cost."""

    losses: np.ndarray
    seconds: float
    usage: Usage


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--token-budget", type=int, default=16384)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--engines", nargs="+", choices=("onnx", "torch", "loop"), default=["onnx", "torch", "loop"]
    )
    parser.add_argument("--work", type=Path, help="folder to work in, kept; by default a temporary one")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; try --size tiny --device cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return compare(folder, given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    precision = "float16" if given.device == "cuda" else "float32"
    shutil.rmtree(folder / "run", ignore_errors=True)
    model_folder = make_model(folder / "model", given.size)
    make_pool(folder, given.samples, PIXELS[given.size])
    with RunDirectory(folder / "run") as run:
        (folder / "pool.arrow").rename(run.pool)
        run.stages["ingest"] = StageRecord("done", "made", options={"images": str(folder / "images")})
        run.stages["seed"] = StageRecord("done", "made", counts={"model": str(model_folder.resolve())})
        export.run(run, ExportOptions(precision=precision), for_stream())
        run.stages["export"] = StageRecord("done", "made")
        run.stages["score"] = StageRecord("running", "made")
        pool = Pool.of(run)
        family = families.load(model_folder)
        samples = list(pool)
        encoded = [family.encode(sample) for sample in samples]
        engines: dict[str, Callable[[], np.ndarray]] = {
            "onnx": lambda: by_onnx(run, given),
            "torch": lambda: by_torch(model_folder, family, samples, encoded, given, precision),
            "loop": lambda: by_loop(model_folder, family, samples, encoded, given, precision),
        }
        results = {name: measured(engines[name]) for name in given.engines}
    return show(results, sum(map(len, encoded)), 1e-4 if precision == "float32" else 2e-2)


def measured(engine: Callable[[], np.ndarray]) -> Result:
    with watched() as usage:
        started = time.monotonic()
        losses = engine()
        seconds = time.monotonic() - started
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Result(losses, seconds, usage)


def show(results: dict[str, Result], tokens: int, tolerance: float) -> int:
    titles = f"{'engine':<7} {'seconds':>9} {'samples/s':>10} {'tokens/s':>11}"
    print(f"{titles} {'peak':>9} {'busy':>6} {'worst':>9}")
    reference = next(iter(results.values())).losses
    agree = True
    for name, result in results.items():
        worst = float(np.abs(result.losses - reference).max())
        agree &= worst <= tolerance
        speed = len(result.losses) / result.seconds
        print(
            f"{name:<7} {result.seconds:>9.1f} {speed:>10.1f} {tokens / result.seconds:>11,.0f} "
            f"{result.usage} {worst:>9.1e}"
        )
    return 0 if agree else 1


def by_onnx(run: RunDirectory, given: argparse.Namespace) -> np.ndarray:
    options = ScoreOptions(device=given.device, token_budget=given.token_budget, workers=given.workers)
    score.run(run, options, for_stream())
    return ScoreTable.load(run.scores).necessity


def by_torch(
    folder: Path,
    family: families.Family,
    samples: list[Sample],
    encoded: list[Encoded],
    given: argparse.Namespace,
    precision: str,
) -> np.ndarray:
    model = load(folder, given.device, precision)
    losses = np.full(len(samples), np.nan)
    batches = length_batches([len(each) for each in encoded], given.token_budget)
    with torch.inference_mode(), ThreadPoolExecutor(given.workers) as threads:
        for batch, inputs in zip(batches, prepared(family, samples, encoded, batches, threads), strict=True):
            on_device = {name: tensor.to(given.device) for name, tensor in inputs.items()}
            hidden = model.model(**on_device, use_cache=False).last_hidden_state
            for place, row in enumerate(batch):
                answers = np.flatnonzero(encoded[row].is_answer[1:])
                logits = model.lm_head(hidden[place, torch.from_numpy(answers).to(given.device)]).float()
                labels = torch.from_numpy(encoded[row].ids[answers + 1]).to(given.device)
                losses[row] = float(torch.nn.functional.cross_entropy(logits, labels))
    return losses


def by_loop(
    folder: Path,
    family: families.Family,
    samples: list[Sample],
    encoded: list[Encoded],
    given: argparse.Namespace,
    precision: str,
) -> np.ndarray:
    model = load(folder, given.device, precision)
    losses = np.full(len(samples), np.nan)
    batches = [
        list(range(at, min(at + LOOP_BATCH, len(samples)))) for at in range(0, len(samples), LOOP_BATCH)
    ]
    with torch.inference_mode(), ThreadPoolExecutor(given.workers) as threads:
        for batch, inputs in zip(batches, prepared(family, samples, encoded, batches, threads), strict=True):
            labels = torch.full_like(inputs["input_ids"], -100)
            for place, row in enumerate(batch):
                each = encoded[row]
                labels[place, : len(each)] = torch.from_numpy(np.where(each.is_answer, each.ids, -100))
            on_device = {name: tensor.to(given.device) for name, tensor in inputs.items()}
            logits = model(**on_device, labels=labels.to(given.device), use_cache=False).logits
            per_token = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), labels[:, 1:].to(given.device), reduction="none"
            )
            counts = (labels[:, 1:] >= 0).sum(1)
            losses[batch] = per_token.sum(1).cpu().numpy() / counts.numpy()
    return losses


def prepared(
    family: families.Family,
    samples: list[Sample],
    encoded: list[Encoded],
    batches: list[list[int]],
    threads: ThreadPoolExecutor,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the inputs of each batch, images loaded a few batches ahead."""

    def inputs(batch: list[int]) -> dict[str, torch.Tensor]:
        pictures = [family.prepare(load_image(image)) for row in batch for image in samples[row].images]
        return family.torch_inputs([encoded[row] for row in batch], pictures)

    waiting = [threads.submit(inputs, batch) for batch in batches[:8]]
    for place in range(len(batches)):
        yield waiting.pop(0).result()
        if place + 8 < len(batches):
            waiting.append(threads.submit(inputs, batches[place + 8]))


def load(folder: Path, device: str, precision: str) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, precision), attn_implementation="sdpa"
    )
    return model.to(device).eval()


@contextmanager
def watched() -> Iterator[Usage]:
    """Sample the device four times a second."""
    usage = Usage()
    if shutil.which("nvidia-smi") is None:
        yield usage
        return
    query = [
        "nvidia-smi",
        "--query-gpu=memory.used,utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "250",
    ]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            for line in process.stdout or ():
                memory, busy = line.split(",")
                usage.memory.append(float(memory))
                usage.busy.append(float(busy))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield usage
        finally:
            process.terminate()
            reader.join()


def make_model(folder: Path, size: str) -> Path:
    """Write a model directory with random weights; losses are far from uniform."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<pad>", "</s>", "<image>"]
    trainer = BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 2, trainer)
    text = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    pixels = PIXELS[size]
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}),
        text,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=FALLBACK_TEMPLATE.replace("image_token", "'<image>'"),
    )
    vision, language = SIZES[size]
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=pixels, patch_size=14, **vision),
            text_config=Qwen2Config(max_position_embeddings=8192, **language, **HEADS[size]),
            image_token_id=processor.image_token_id,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_pool(folder: Path, count: int, pixels: int) -> None:
    """Write a pool like LLaVA's in lengths: 90 % with one image, answers of 1 to 250 words."""
    draw = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    records = []
    for index in range(count):
        name = f"{index}.jpg"
        shown = draw.random() < 0.9
        if shown and not (images / name).exists():
            noise = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((pixels * 4 // 3, pixels)).save(images / name, quality=90)
        question = " ".join(draw.choice(WORDS, draw.integers(5, 60)))
        answer = " ".join(draw.choice(WORDS, int(np.exp(draw.uniform(0, np.log(250))))))
        records.append(
            {
                "id": str(index),
                "source": "made",
                "messages": [
                    {"role": "user", "content": "<image>\n" * shown + question},
                    {"role": "assistant", "content": answer},
                ],
                "images": [{"path": name, "bytes": None}] if shown else [],
                "offset": 0,
                "length": 0,
            }
        )
    metadata = {"mllm_selector.pool_version": POOL_VERSION, "mllm_selector.format": "llava-json"}
    write_arrow(folder / "pool.arrow", pa.Table.from_pylist(records, POOL_SCHEMA.with_metadata(metadata)))


if __name__ == "__main__":
    sys.exit(main())

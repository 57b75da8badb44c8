"""Run directories that are ready to be scored, and what scoring leaves in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pyarrow as pa
import pytest

from mllm_selector import cli
from mllm_selector.artifacts import ScoreTable
from mllm_selector.config import ExportOptions, ScoreOptions
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import score
from model_fixtures import clip_llama, done, export_once, picture, write_pool

Sample = tuple[list[tuple[str, str]], list[str | bytes]]
PICTURES = 12


@dataclass
class Notes(SilentProgress):
    """Remembers what is reported."""

    notes: list[str] = field(default_factory=list)
    updates: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    last: str = ""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: int, **fields: float | str) -> None:
        self.updates.append((done, fields))

    def finish(self, text: str) -> None:
        self.last = text


def ask(text: str, answer: str = "yes", images: list[str | bytes] | None = None) -> Sample:
    images = images or []
    return [("user", "<image>\n" * len(images) + text), ("assistant", answer)], images


def many(count: int) -> list[Sample]:
    """Samples of all lengths with no to three images, many of them shared."""
    draw = np.random.default_rng(0)
    words = np.array(
        ["how", "many", "red", "blue", "boxes", "squares", "is", "there", "a", "wall", "?", "yes", "no"]
    )
    samples = []
    for _ in range(count):
        shown = [f"{draw.integers(PICTURES)}.png" for _ in range(draw.choice([0, 1, 1, 2, 3]))]
        messages, images = ask(
            " ".join(draw.choice(words, draw.integers(1, 40))),
            " ".join(draw.choice(words, draw.integers(1, 9))),
            list(shown),
        )
        if draw.random() < 0.2:
            messages += [("user", "sure ?"), ("assistant", "no , red")]
        samples.append((messages, images))
    return samples


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(PICTURES):
        picture(index, (30 + 3 * index, 40)).save(folder / f"{index}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-300])
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture
def make_run(tmp_path: Path, images: Path) -> Callable[..., Path]:
    """Make a run directory that is ready to be scored."""

    def make(samples: list[Sample], model: str = "clip-llama", name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(export_once(model).graphs, folder / "onnx")
        write_pool(folder, samples)
        return folder

    return make


@pytest.fixture
def score_run(images: Path) -> Callable[..., dict[str, Any]]:
    """Score a run directory as the pipeline does."""

    def run(folder: Path, progress: Any = None, key: str = "key", **options: Any) -> dict[str, Any]:
        given = {"device": "cpu", "shard_size": 16, "token_budget": 512, **options}
        # A directory without a manifest would be taken for somebody else's.
        (folder / "lock").touch()
        with RunDirectory(folder) as held:
            held.stages["ingest"] = done(options={"images": str(images)})
            held.stages["seed"] = done()
            held.stages["export"] = done()
            held.stages["score"] = StageRecord(state="running", key=key)
            return score.run(held, ScoreOptions(**given), progress or SilentProgress())

    return run


@pytest.fixture
def scored(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], ScoreTable]]:
    """Score a pool with a model of the fixtures, in a directory and with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(
        pool: list[Any], model: str = "clip-llama", change: Any = None, **options: Any
    ) -> tuple[dict[str, Any], ScoreTable]:
        folder = tmp_path / f"scored-{len(list(tmp_path.iterdir()))}"
        precision = "float16" if model.endswith("float16") else "float32"
        with RunDirectory(folder) as held:
            write_pool(folder, pool)
            shutil.copytree(export_once(model).graphs, held.onnx)
            if change is not None:
                change(held.onnx)
            held.stages["ingest"] = done(options={"images": str(images)})
            held.stages["seed"] = done()
            held.stages["export"] = done(options=ExportOptions(precision=precision).as_json())
            held.stages["score"] = StageRecord(state="running", key="key")
            given = {"device": "cpu", "token_budget": 512, "shard_size": 40, **options}
            counts = score.run(held, ScoreOptions(**given), SilentProgress())
            return counts, ScoreTable.load(held.scores)

    return run


def poison(graph: Path, value: float) -> None:
    """Give the token of the character 127 an embedding of that value."""
    from transformers import AutoProcessor

    folder = next(parent for parent in graph.parents if (parent / "processor").is_dir())
    tokenizer = AutoProcessor.from_pretrained(folder / "processor").tokenizer
    token = tokenizer("\x7f", add_special_tokens=False)["input_ids"][0]
    model = onnx.load(graph)
    table = next(weight for weight in model.graph.initializer if list(weight.dims) == [400, 32])
    values = onnx.numpy_helper.to_array(table).copy()
    values[token] = value
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    onnx.save(model, graph)


def run(*arguments: object, at: Path) -> None:
    """Run a command that succeeds in a run directory."""
    assert cli.main([*map(str, arguments), "--run-dir", str(at), "--quiet"]) == 0


@pytest.fixture
def ready(exported: Path, tmp_path: Path) -> Path:
    """A copy of the run directory before scoring that a module's ``exported`` has."""
    return shutil.copytree(exported / "ready", tmp_path / "run")


def exported_run(
    folder: Path, samples: int, pictures: int, words: tuple[int, int], engine: str = "onnx"
) -> Path:
    """Make a pool of one image a sample and, by the command line, a run directory of it before scoring.

    Questions and answers have fewer than so many `words`. The folder gets ``images``, ``pool.json``,
    ``model`` and the run directory ``ready``.
    """
    images = folder / "images"
    images.mkdir()
    for index in range(pictures):
        picture(index).save(images / f"{index}.png")
    draw = np.random.default_rng(0)
    records = [
        {
            "id": str(index),
            "image": f"{draw.integers(pictures)}.png",
            "conversations": [
                {"from": "human", "value": "<image>\n" + "how many ? " * int(draw.integers(1, words[0]))},
                {"from": "gpt", "value": "red " * int(draw.integers(1, words[1]))},
            ],
        }
        for index in range(samples)
    ]
    (folder / "pool.json").write_text(json.dumps(records))
    ready = folder / "ready"
    for command in (
        ["ingest", folder / "pool.json", "--images", images],
        ["seed", "--seed-model", clip_llama(folder / "model")],
        ["export", "--engine", engine],
    ):
        run(*command, at=ready)
    return ready


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "scores").iterdir())}


def column(folder: Path, name: str) -> list[Any]:
    tables = [pa.ipc.open_file(path).read_all() for path in sorted((folder / "scores").glob("part-*"))]
    return pa.concat_tables(tables)[name].to_pylist()


def input_embedding(folder: Path, messages: list[tuple[str, str]], images: list[Any]) -> np.ndarray:
    """The input embedding by the unmodified model, its own processor and plain NumPy."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    text = "\n".join(content.replace("<image>", " ").strip() for role, content in messages if role == "user")
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    found = [model.get_input_embeddings()(ids).detach().double().numpy().mean(0)]
    if images:
        inputs = processor(text="<image>" * len(images), images=images, return_tensors="pt")
        with torch.no_grad():
            features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        rows = torch.cat(list(features)).reshape(-1, len(found[0])).double().numpy()
        found += [rows.mean(0), rows.max(0)]
    else:
        found += [np.zeros_like(found[0])] * 2
    whole = np.concatenate([part / max(np.linalg.norm(part), 1e-12) for part in found])
    return whole / np.linalg.norm(whole)

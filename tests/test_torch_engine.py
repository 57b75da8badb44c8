"""The PyTorch engine: the same scores as the graphs, through the same stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable
from mllm_selector.config import ExportOptions, ScoreOptions
from mllm_selector.errors import ExportError, ScoreError
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.scoring import parity
from mllm_selector.scoring.opening import open_torch
from mllm_selector.stages import export, score
from model_fixtures import done, export_once, picture, write_pool

WORDS = ["how", "many", "red", "blue", "boxes", "squares", "is", "there", "a", "wall", "?", "yes", "no"]


def samples(count: int) -> list[Any]:
    """Samples of all lengths with no to two images."""
    draw = np.random.default_rng(1)
    made = []
    for index in range(count):
        images = [f"{draw.integers(5)}.png" for _ in range(index % 3)]
        question = "<image>\n" * len(images) + " ".join(draw.choice(WORDS, draw.integers(1, 30)))
        answer = " ".join(draw.choice(WORDS, draw.integers(1, 9)))
        made.append(([("user", question), ("assistant", answer)], images))
    return made


@contextmanager
def prepared(folder: Path, **options: str) -> Iterator[RunDirectory]:
    """A run directory with a pool, ready to be exported."""
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(5):
        picture(index).save(images / f"{index}.png")
    with RunDirectory(folder / "run") as run:
        write_pool(run.path, samples(30))
        run.stages["ingest"] = done(options={"images": str(images)})
        run.stages["seed"] = done(counts={"model": str(export_once("clip-llama").model)})
        run.stages["export"] = done(options=ExportOptions(**options).as_json())
        run.stages["score"] = StageRecord(state="running", key="key")
        yield run


def scores(run: RunDirectory) -> tuple[np.ndarray, np.ndarray]:
    table = ScoreTable.load(run.scores)
    return table.necessity, np.concatenate(table.embeddings).astype(np.float64)


@pytest.fixture(scope="module")
def by_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    with prepared(tmp_path_factory.mktemp("onnx")) as run:
        run.onnx.symlink_to(export_once("clip-llama").graphs)
        score.run(run, ScoreOptions(device="cpu", token_budget=512), SilentProgress())
        return scores(run)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 8e-2)]
)
def test_scores_equal_those_of_the_graphs(
    by_onnx: tuple[np.ndarray, np.ndarray], tmp_path: Path, precision: str, tolerance: float
) -> None:
    with prepared(tmp_path, engine="torch", precision=precision) as run:
        exported = export.run(run, ExportOptions(engine="torch", precision=precision), SilentProgress())
        assert exported["engine"] == "torch"
        assert exported["bytes"] == 0
        checked = json.loads((run.onnx / "check.json").read_text())[precision]["batches"]
        assert len(checked) == len(parity.BATCHES), "the model is opened once for each precision"
        assert sorted(path.name for path in run.onnx.iterdir()) == ["check.json", "processor"]
        counts = score.run(run, ScoreOptions(device="cpu", token_budget=512), SilentProgress())
        assert counts["provider"] == "torch-cpu"
        assert counts["scored"] == 30
        necessity, embeddings = scores(run)
    worst = np.abs(necessity - by_onnx[0]).max()
    assert worst < tolerance
    assert np.abs(embeddings - by_onnx[1]).max() < max(tolerance, 1e-3)
    if precision != "float32":
        assert worst > 0, "a half-precision model that computes in float32 would show nothing"


def test_the_same_modules_are_run_whatever_order_inputs_come_in() -> None:
    folder = export_once("clip-llama").model
    engine = open_torch(families.load(folder), folder, "float32", "cpu")
    engine.reserve(40)
    pixels = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    engine.see({"pixel_values": pixels}, 5, 16)
    inputs = {
        "answer_tokens": np.array([30]),
        "answer_positions": np.array([17]),
        "pooled_positions": np.ones((1, 1, 19), dtype=np.int64),
        "position_ids": np.arange(19)[None],
        "branches": np.zeros((1, 19), dtype=np.int64),
        "image_rows": np.array([[-1, *range(5, 21), -1, -1]]),
        "attention_mask": np.ones((1, 19), dtype=np.int64),
        "input_ids": np.array([[1, *[3] * 16, 20, 30]]),
    }
    first = engine.read(inputs, ("sample_embedding", "token_nll"))
    engine.reserve(10)  # no more than there is: nothing is lost
    second = engine.read(dict(reversed(inputs.items())), ("token_nll", "sample_embedding"))
    assert list(first) == ["sample_embedding", "token_nll"]
    assert first["token_nll"] == second["token_nll"] > 0
    assert np.array_equal(first["sample_embedding"], second["sample_embedding"])
    assert engine.feature_row_bytes == 4 * 32


def test_a_device_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = export_once("clip-llama").model
    family = families.load(folder)
    with pytest.raises(ScoreError, match=r"--device cuda: PyTorch .* finds no CUDA device that works"):
        open_torch(family, folder, "float32", "cuda")
    notes: list[str] = []
    assert open_torch(family, folder, "float32", "auto", note=notes.append).provider == "torch-cpu"
    assert notes == ["scoring on the CPU: PyTorch finds no CUDA device that works"]


def test_bfloat16_graphs_need_cuda(tmp_path: Path) -> None:
    with (
        prepared(tmp_path) as run,
        pytest.raises(ExportError, match=r"--precision bfloat16: .* use float16, or --engine torch"),
    ):
        export.run(run, ExportOptions(precision="bfloat16"), SilentProgress())

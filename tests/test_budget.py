"""How much is computed together: found by measuring, remembered for the device, fixed for a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_selector.artifacts import ScoreTable
from mllm_selector.config import AutoCount, ExportOptions, ScoreOptions
from mllm_selector.engine import OnnxEngine
from mllm_selector.errors import DeviceMemoryError, UsageError
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.scoring import budget
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import DEFAULT, BudgetMemory
from mllm_selector.stages import score
from model_fixtures import done, export_once, picture, write_pool

WORDS = ["how", "many", "red", "blue", "boxes", "squares", "is", "there", "a", "wall", "?", "yes", "no"]
ROWS = 16
"""Feature rows of an image of the model."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mllm-selector" / "batches.json"


@pytest.fixture
def measures_small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MEASURED_SHARE", 1.0)
    monkeypatch.setattr(budget, "SMALLEST_TOKENS", 32)


@pytest.fixture
def run_score(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Score a pool of 80 samples in a directory by its name."""
    images = tmp_path / "images"
    images.mkdir()
    for index in range(9):
        picture(index).save(images / f"{index}.png")

    def run(name: str, **options: Any) -> dict[str, Any]:
        folder = tmp_path / name
        with RunDirectory(folder) as held:
            if not held.pool.exists():
                write_pool(folder, samples(80))
                shutil.copytree(export_once("clip-llama").graphs, held.onnx)
            held.stages["ingest"] = done(options={"images": str(images)})
            held.stages["seed"] = done()
            held.stages["export"] = done(options=ExportOptions().as_json())
            held.stages["score"] = StageRecord(state="running", key="key")
            given = ScoreOptions(**{"device": "cpu", "shard_size": 40, **options})
            return score.run(held, given, SilentProgress())

    return run


def samples(count: int) -> list[Any]:
    draw = np.random.default_rng(3)
    made = []
    for _ in range(count):
        images = [f"{draw.integers(9)}.png" for _ in range(draw.integers(3))]
        question = "<image>\n" * len(images) + " ".join(draw.choice(WORDS, draw.integers(1, 12)))
        made.append(([("user", question), ("assistant", " ".join(draw.choice(WORDS, 5)))], images))
    return made


class Clock:
    """Time that passes only while an engine computes, as long as a model of its speed says."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, most_tokens: int = 10**9, most_images: int = 10**9
    ) -> None:
        self.now = 0.0
        self.widths: list[int] = []
        self.images: list[int] = []
        read, see = OnnxEngine.read, OnnxEngine.see

        def timed_read(engine: OnnxEngine, inputs: Any, outputs: Any) -> Any:
            tokens = inputs["input_ids"].size
            self.widths.append(tokens)
            if tokens > most_tokens:
                raise DeviceMemoryError("too many tokens")
            # A start-up cost, so that larger batches pay, up to where the device is full.
            self.now += max(500, tokens)
            return read(engine, inputs, outputs)

        def timed_see(engine: OnnxEngine, inputs: Any, start: int, rows: int) -> None:
            images = len(inputs["pixel_values"])
            self.images.append(images)
            if images > most_images:
                raise DeviceMemoryError("too many images")
            self.now += max(4, images)
            see(engine, inputs, start, rows)

        monkeypatch.setattr(OnnxEngine, "read", timed_read)
        monkeypatch.setattr(OnnxEngine, "see", timed_see)
        monkeypatch.setattr(budget.time, "perf_counter", lambda: self.now)


@pytest.mark.usefixtures("measures_small_pools")
def test_a_budget_grows_until_it_brings_no_more(
    run_score: Any, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    Clock(monkeypatch)
    counts = run_score("run")
    # 512 tokens take hardly longer than 256, 1024 twice as long as 512; so it is with 4 and 8 images.
    assert (counts["token_budget"], counts["image_budget"]) == (512, 4 * ROWS)
    assert json.loads((tmp_path / "run" / "batches.json").read_text()) == {
        "key": "key",
        "tokens": 512,
        "image_rows": 4 * ROWS,
    }
    assert list(json.loads(cache.read_text()).values()) == [{"tokens": 512, "image_rows": 4 * ROWS}]


@pytest.mark.usefixtures("measures_small_pools")
def test_memory_bounds_a_budget(run_score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, most_tokens=200, most_images=2)
    counts = run_score("run")
    assert (counts["token_budget"], counts["image_budget"]) == (128, 2 * ROWS)
    assert counts["halved_batches"] == 0
    assert counts["scored"] == 80
    assert max(clock.widths) > 200


@pytest.mark.usefixtures("measures_small_pools")
def test_what_was_found_is_remembered_for_the_device(
    run_score: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    Clock(monkeypatch)
    first = run_score("first")
    monkeypatch.setattr(budget, "find_budget", None)  # not to be called
    second = run_score("second")
    assert second["token_budget"] == first["token_budget"]
    cache.write_text("no JSON")
    monkeypatch.setattr(budget, "find_budget", lambda *_: BatchBudget(77, 33))
    assert run_score("third")["token_budget"] == 77
    # A batch that did not fit after all: half as much next time.
    monkeypatch.setattr(budget, "find_budget", None)
    Clock(monkeypatch, most_tokens=70)
    assert run_score("fourth")["halved_batches"] > 0
    assert run_score("fifth")["token_budget"] == 38


def test_a_run_keeps_its_budget(run_score: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = iter([BatchBudget(300, 48), BatchBudget(900, 96)])
    monkeypatch.setattr(budget, "find_budget", lambda *_: next(found))
    monkeypatch.setattr(budget.BudgetMemory, "recall", lambda self: None)
    run_score("whole")
    part = tmp_path / "whole" / "scores" / "part-00001.arrow"
    before = part.read_bytes()
    part.unlink()
    run_score("whole")
    assert part.read_bytes() == before
    # Without its budget the run takes that of the parts that are there.
    part.unlink()
    (tmp_path / "whole" / "batches.json").unlink()
    run_score("whole")
    assert part.read_bytes() == before


def test_small_pools_are_not_measured(run_score: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    counts = run_score("run")
    assert (counts["token_budget"], counts["image_budget"]) == (DEFAULT.tokens, DEFAULT.image_rows)
    assert not cache.exists()
    given = run_score("given", token_budget="300", image_budget=32)
    assert (given["token_budget"], given["image_budget"]) == (300, 32)
    assert run_score("one", token_budget=300)["image_budget"] == DEFAULT.image_rows


def test_budgets_do_not_change_scores(run_score: Any, tmp_path: Path) -> None:
    results = []
    for name, options in {
        "small": {"token_budget": 1, "image_budget": 1},
        "middle": {"token_budget": 300, "image_budget": 40},
        "large": {"token_budget": 10**6, "image_budget": 10**6, "shard_size": 80},
    }.items():
        run_score(name, **options)
        results.append(ScoreTable.load(tmp_path / name / "scores").necessity)
    assert np.abs(results[0] - results[1]).max() <= 1e-5
    assert np.abs(results[0] - results[2]).max() <= 1e-5


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    memory = BudgetMemory("device", "model", ("token_nll",))
    memory.remember(BatchBudget(1, 2))
    assert memory.recall() is None


def test_devices_models_and_outputs_are_told_apart() -> None:
    losses, all_of_tokens = ("token_nll",), ("token_nll", "token_entropy")
    kinds = [("a", "model", losses), ("b", "model", losses), ("a", "model", all_of_tokens)]
    for tokens, kind in enumerate(kinds, 1):
        BudgetMemory(*kind).remember(BatchBudget(tokens, 2))
    found = [BudgetMemory(*kind).recall() for kind in kinds]
    assert found == [BatchBudget(1, 2), BatchBudget(2, 2), BatchBudget(3, 2)]
    assert BudgetMemory("a", "other", losses).recall() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0", "too small; give at least 1, or auto"),
        ("many", "neither a whole number nor auto"),
        (1.5, "not of type"),
    ],
)
def test_values_that_cannot_be_budgets(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=rf"--token-budget: .*{message}"):
        ScoreOptions(token_budget=given)
    assert AutoCount.parse(" 4_096 ").value == 4096

"""Comparing methods: intervals, what is summarised, and trainings through the command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TinyPool
from mllm_selector import comparison, families, select
from mllm_selector.cli import main
from mllm_selector.comparison import MethodChoice, estimate, t_quantile
from mllm_selector.comparison.results import ALL, MACRO, summarise
from mllm_selector.config import Amount
from mllm_selector.errors import UsageError
from mllm_selector.families.images import load_image
from mllm_selector.outputs import check_output
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory

TRAINING = {
    "engine": "torch",
    "seed_size": 16,
    "seed_batch_size": 8,
    "lora_rank": 4,
    "lora_alpha": 8,
    "seed_learning_rate": 1e-2,
}


@pytest.mark.parametrize(
    ("degrees", "value"),
    # Abramowitz and Stegun, table 26.10.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_quantiles_are_those_of_the_tables(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 6, 7, 40, 41])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_quantiles_invert_the_integral_of_the_density(degrees: int, probability: float) -> None:
    t = np.linspace(0, t_quantile(probability, degrees), 20_001)
    density = (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
    # The whole integral, by t = sqrt(degrees) tan(u).
    u = np.linspace(0, np.pi / 2, 20_001)
    whole = np.sqrt(degrees) * np.trapezoid(np.cos(u) ** (degrees - 1), u)
    assert np.trapezoid(density, t) / (2 * whole) == pytest.approx(probability - 0.5, abs=1e-6)


def test_an_estimate_is_mean_and_student_interval() -> None:
    values = [0.2, 0.5, 0.4, 0.9]
    told = estimate(values)
    assert told.mean == pytest.approx(0.5)
    assert told.half_width == pytest.approx(3.182446 * np.std(values, ddof=1) / 2)
    assert told.count == 4
    assert estimate([0.3]).half_width is None


def test_a_method_is_read_with_options_and_parameters() -> None:
    choice = MethodChoice.parse("deita:score=necessity,quality:threshold=0.8")
    options = choice.pick_options(Amount.parse("10%"), 7)
    assert (options.method, options.seed, str(options.budget)) == ("deita", 7, "10%")
    assert options.param is not None
    assert options.param.values == {"score": "necessity,quality", "threshold": "0.8"}
    grouped = MethodChoice.parse("grouped:within=top:trim=0.1:group-count=7").pick_options(Amount.parse(5), 0)
    assert (grouped.within, grouped.trim, grouped.group_count) == ("top", 0.1, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tops", "did you mean top"),
        ("grouped:within", "not OPTION=VALUE"),
        ("grouped:within=best", "--within: 'best' is not one of"),
        ("top:within=top", "does not use it"),
        ("deita:thresh=1", "no such parameter"),
    ],
)
def test_wrong_methods_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MethodChoice.parse(text)


def row(method: str, budget: str, seed: int, first: float, second: float) -> dict[str, Any]:
    def source(samples: int, value: float) -> dict[str, float]:
        return {"samples": samples, "accuracy": value, "token_accuracy": value, "loss": 1 - value}

    return {
        "method": method,
        "budget": budget,
        "seed": seed,
        "samples": 10,
        "sources": {"a": source(30, first), "b": source(10, second)},
    }


ROWS = [
    row("random", "5%", 0, 0.1, 0.5),
    row("random", "5%", 1, 0.2, 0.6),
    row("random", "5%", 2, 0.9, 0.9),  # without a partner
    row("grouped", "5%", 0, 0.3, 0.5),
    row("grouped", "5%", 1, 0.3, 0.8),
    row("full pool", "100%", 0, 0.5, 0.9),
]


def test_differences_are_paired_by_seed() -> None:
    results = {entry["method"]: entry for entry in summarise(ROWS, {})["results"]}
    of = results["grouped"]["sources"]
    assert of["a"]["accuracy"]["to_random"]["mean"] == pytest.approx(0.15)  # 0.2 and 0.1
    assert of["a"]["accuracy"]["to_random"]["half_width"] == pytest.approx(12.706 * 0.05, abs=1e-4)
    assert of["b"]["loss"]["to_random"]["mean"] == pytest.approx(-0.1)
    assert of[MACRO]["accuracy"]["value"]["mean"] == pytest.approx((0.4 + 0.55) / 2)
    assert of[ALL]["accuracy"]["value"]["mean"] == pytest.approx((0.35 + 0.425) / 2)
    assert of["a"]["accuracy"]["to_full"] == {"mean": pytest.approx(-0.2), "half_width": None, "count": 1}
    assert "to_random" not in results["random"]["sources"]["a"]["accuracy"]
    assert "to_full" not in results["full pool"]["sources"]["a"]["accuracy"]


def test_the_table_fits_80_columns() -> None:
    rows = ROWS + [row("grouped:within=top:trim=0.1:group-count=77", "5%", seed, 0.0, 1.0) for seed in (0, 1)]
    text = comparison.as_text(summarise(rows, {}))
    assert max(map(len, text.splitlines())) <= 80
    grouped = next(line for line in text.splitlines() if line.startswith("  grouped "))
    assert grouped.split()[:3] == ["grouped", "5%", "2"]
    assert "47.5 +-95.3" in grouped
    assert "+12.5" in grouped


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_pool: TinyPool, tiny_model: Path) -> Path:
    """A finished run over the tiny pool."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    select(
        tiny_pool.path, budget="20%", run_dir=folder, model=tiny_model, images=tiny_pool.images, **TRAINING
    )
    return folder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, tiny_pool: TinyPool) -> Path:
    path = tmp_path_factory.mktemp("held-out") / "test.json"
    path.write_text(json.dumps(tiny_pool.records[:12]))
    return path


@pytest.fixture(scope="module")
def arguments(scored: Path, held_out: Path, tiny_pool: TinyPool) -> Callable[..., list[str]]:
    def made(folder: Path, *more: str) -> list[str]:
        return [
            "compare", str(scored), "--held-out", str(held_out), "--held-out-images", str(tiny_pool.images),
            "--budgets", "20%,100%", "--method", "grouped", "--run-dir", str(folder), "--quiet", *more,
        ]  # fmt: skip

    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, arguments: Callable[..., list[str]]) -> Path:
    """A comparison of one seed."""
    folder = tmp_path_factory.mktemp("compared") / "comparison"
    assert main(arguments(folder, "--seeds", "1")) == 0
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "trainings.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if name != "seconds"} for each in rows]


def test_every_training_has_a_row(finished: Path) -> None:
    rows = rows_of(finished)
    assert [(each["method"], each["budget"], each["samples"]) for each in rows] == [
        ("random", "20%", 12),
        ("grouped", "20%", 12),
        ("full pool", "100%", 60),
    ]
    assert [each["steps"] for each in rows] == [2, 2, 8]
    assert set(rows[0]["sources"]) == {"captions", "dialogues", "pairs"}
    # What is large does not stay.
    assert not list(finished.rglob("model.safetensors"))
    assert len(list(finished.glob("trainings/*/seed/adapter/adapter_model.safetensors"))) == 3


def test_no_output_goes_over_a_comparison(finished: Path) -> None:
    files = [path for path in finished.iterdir() if path.name != "lock"]
    assert {path.name for path in files} > {"trainings.jsonl", "comparison.json"}
    for path in files:
        with pytest.raises(UsageError, match="part of the run directory"):
            check_output("--out", path, {})


def test_a_row_tells_what_the_trained_model_says(
    finished: Path, held_out: Path, tiny_model: Path, tiny_pool: TinyPool, tmp_path: Path
) -> None:
    """The reference loads model and adapter with peft, and reads one sample at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from mllm_selector import pipeline

    (folder,) = finished.glob("trainings/grouped-*")
    base = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "seed" / "adapter").eval()
    family = families.load(tiny_model)
    pipeline.run_stages(
        tmp_path / "run", pipeline.build_options({"pool": held_out, "images": tiny_pool.images}, ["ingest"])
    )
    run = RunDirectory(tmp_path / "run")
    run.load()
    told: dict[str, list[tuple[float, float, float]]] = {}
    for sample in Pool.of(run):
        inputs = family.training_inputs(sample, load_image)
        labels = inputs.pop("labels")[1:]
        with torch.no_grad():
            batch = {name: value if name == "pixel_values" else value[None] for name, value in inputs.items()}
            logits = model(**batch).logits[0, :-1]
        answer = labels != -100
        loss = torch.nn.functional.cross_entropy(logits[answer], labels[answer]).item()
        right = (logits[answer].argmax(-1) == labels[answer]).double()
        told.setdefault(sample.source, []).append((right.min().item(), right.mean().item(), loss))
    (of,) = (each["sources"] for each in rows_of(finished) if each["method"] == "grouped")
    for source, values in told.items():
        accuracy, token_accuracy, loss = np.mean(values, axis=0)
        assert of[source]["samples"] == len(values)
        assert of[source]["accuracy"] == pytest.approx(accuracy)
        assert of[source]["token_accuracy"] == pytest.approx(token_accuracy)
        assert of[source]["loss"] == pytest.approx(loss, abs=1e-4)


def kill_when(arguments: list[str], happened: Callable[[], bool]) -> None:
    """Start a command and kill it as soon as something has happened."""
    process = subprocess.Popen([sys.executable, "-m", "mllm_selector", *arguments])
    try:
        while process.poll() is None and not happened():
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the comparison ended before it could be killed"


def test_a_killed_comparison_goes_on_and_ends_the_same(
    finished: Path, arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "comparison"
    given = arguments(folder, "--seeds", "1", "--json")
    # While the first model is trained, and while the second, its row being next, is judged.
    kill_when(given, lambda: any(folder.glob("trainings/*/seed/log.jsonl")))
    assert not (folder / "trainings.jsonl").exists()
    kill_when(given, lambda: any(folder.glob("trainings/grouped-*/trained.json")))
    assert [each["method"] for each in rows_of(folder)] == ["random"]
    with (folder / "trainings.jsonl").open("a") as file:
        file.write('{"method": "grou')  # a line cut off by the kill
    assert main(given) == 0
    assert rows_of(folder) == rows_of(finished)
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "comparison.json").read_text())


def test_more_methods_join_and_other_settings_do_not(
    finished: Path, arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "comparison"
    shutil.copytree(finished, folder)
    assert main(arguments(folder, "--seeds", "1", "--method", "top")) == 0
    assert rows_of(folder)[:3] == rows_of(finished)
    assert [each["method"] for each in rows_of(folder)[3:]] == ["top"]
    assert "top" in capsys.readouterr().out
    assert main(arguments(folder, "--seeds", "1", "--steps", "3")) == 2
    assert "steps was None and is now 3" in capsys.readouterr().err


def test_equal_steps(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    given = arguments(folder, "--seeds", "1", "--steps", "3")
    given[given.index("20%,100%")] = "7,100%"
    assert main(given) == 0
    assert [each["steps"] for each in rows_of(folder)] == [3, 3, 3]


def test_what_cannot_be_chosen_is_known_before_any_training(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "comparison", "--method", "visnec")) == 2
    assert "visnec" in capsys.readouterr().err
    assert not list((tmp_path / "comparison").glob("trainings/*"))


def test_a_folder_that_is_no_run_is_refused(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path / "comparison")
    given[1] = str(tmp_path / "nothing")
    assert main(given) == 2
    assert "not a run directory" in capsys.readouterr().err

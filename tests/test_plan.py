"""`mllm-selector plan`: what it says before a run, with records, with probes and without either."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mllm_selector import cli, methods
from mllm_selector.config import Amount, IngestOptions, PickOptions
from mllm_selector.planning import made_up
from mllm_selector.planning.estimates import Work, break_even, estimate
from mllm_selector.planning.made_up import probe_pick, probe_report
from mllm_selector.planning.probes import _whole_batches, parameters, probe_ingest
from mllm_selector.planning.rates import Rate, Rates
from mllm_selector.planning.words import duration, size
from mllm_selector.reporting.overview import products
from mllm_selector.resources import own_memory_mb

STAGES = ["ingest", "seed", "export", "score", "pick", "report"]
OPTIONS = ["--engine", "torch", "--device", "cpu", "--threads", "1", "--budget", "20%"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    assert cli.main(["plan", *arguments, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def by_stage(found: dict) -> dict[str, dict]:
    assert [stage["stage"] for stage in found["stages"]] == STAGES
    return {stage["stage"]: stage for stage in found["stages"]}


def recorded(run: Path) -> dict[str, dict]:
    return json.loads((run / "manifest.json").read_text())["stages"]


def test_a_new_run_is_probed_and_nothing_is_written(capsys, tiny_select, tmp_path):
    found = plan(capsys, *tiny_select, "--run-dir", str(tmp_path / "run"))
    stages = by_stage(found)
    assert not (tmp_path / "run").exists()
    assert (found["samples"], found["samples_are_counted"], found["chosen"]) == (60, True, 12)
    assert {stage["state"] for stage in stages.values()} == {"runs"}
    assert stages["ingest"]["how"] == "measured"
    assert stages["seed"]["seconds"] == 0  # --seed-model
    assert stages["score"]["seconds"] > 0
    assert stages["pick"]["how"] == "extrapolated"  # its scores are made up
    assert stages["export"]["seconds"] is None
    assert "--rates RUN" in stages["export"]["basis"]
    assert not found["is_whole"]
    assert found["free_bytes"] > 0


def test_training_is_probed(capsys, tiny_pool, tiny_model, tmp_path):
    arguments = [str(tiny_pool.path), "--images", str(tiny_pool.images), "--model", str(tiny_model), *OPTIONS]
    training = ["--seed-size", "30", "--seed-epochs", "2", "--seed-batch-size", "8", "--rates", str(tmp_path)]
    assert cli.main(["plan", *arguments, *training]) == 2  # no run directory
    seed = by_stage(plan(capsys, *arguments, *training[:-2]))["seed"]
    assert seed["seconds"] > 0
    assert seed["memory_mb"] > 100
    assert seed["how"] == "extrapolated"
    assert "3 steps" in seed["basis"]


def test_a_finished_run_is_done(capsys, tiny_select, tiny_run):
    before = sorted((path, path.stat().st_mtime_ns) for path in tiny_run.rglob("*"))
    found = plan(capsys, *tiny_select, "--run-dir", str(tiny_run))
    assert {stage["how"] for stage in found["stages"]} == {"done before"}
    assert (found["seconds"], found["disk_bytes"]) == (0, 0)
    assert sorted((path, path.stat().st_mtime_ns) for path in tiny_run.rglob("*")) == before


def test_another_budget_only_picks_and_reports(capsys, tiny_select, tiny_run):
    arguments = ["10%" if word == "20%" else word for word in tiny_select]
    stages = by_stage(plan(capsys, *arguments, "--run-dir", str(tiny_run)))
    assert [name for name in STAGES if stages[name]["state"] != "done"] == ["pick", "report"]


def test_another_pool_in_the_same_run_directory_is_refused(capsys, tiny_select, tiny_run, tmp_path):
    other = tmp_path / "pool.json"
    other.write_text(json.dumps(json.loads(Path(tiny_select[0]).read_text())[:30]))
    assert cli.main(["plan", str(other), *tiny_select[1:], "--run-dir", str(tiny_run), "--quiet"]) == 2
    assert "different run" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_as_by_select(capsys, tiny_pool, tiny_select):
    arguments = [*tiny_select, "--run-dir", str(tiny_pool.images), "--quiet"]
    for command in ("plan", "select"):
        assert cli.main([command, *arguments]) == 2
        assert f"--run-dir: {tiny_pool.images} holds files of something else" in capsys.readouterr().err


def test_records_of_another_run_are_rates(capsys, tiny_select, tiny_run):
    records = recorded(tiny_run)
    found = plan(capsys, "--samples", "6e4", "--gpus", "4", "--rates", str(tiny_run), "--budget", "1%")
    stages = by_stage(found)
    assert (found["samples"], found["chosen"]) == (60_000, 600)
    score = records["score"]["seconds"] * 1000
    assert math.isclose(stages["score"]["device_seconds"], score)
    assert math.isclose(stages["score"]["seconds"], score / 4)
    assert math.isclose(stages["ingest"]["disk_bytes"], (tiny_run / "pool.arrow").stat().st_size * 1000)
    assert stages["export"]["seconds"] == records["export"]["seconds"]
    assert stages["score"]["how"] == "extrapolated"
    assert stages["seed"]["seconds"] is None  # nothing was trained in that run


@pytest.mark.parametrize("text", ["0", "1.5", "many", "inf", "nan"])
def test_what_is_no_number_of_samples_is_refused(capsys, text):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--samples", text, "--budget", "1%"])
    assert f"--samples: {text} is not a whole number from 1 up" in capsys.readouterr().err


def test_a_pool_or_rates_are_needed(capsys):
    assert cli.main(["plan", "--samples", "1000", "--budget", "1%"]) == 2
    assert "--rates RUN" in capsys.readouterr().err


def test_the_text_fits_80_columns(capsys, tiny_select, tiny_run):
    arguments = ["--samples", "1e9", "--gpus", "64", "--rates", str(tiny_run), "--budget", "1%"]
    for words in (arguments, [*tiny_select, "--rates", str(tiny_run)]):
        assert cli.main(["plan", *words, "--quiet"]) == 0
        text = capsys.readouterr().out
        assert [line for line in text.splitlines() if len(line) > 80] == []
        assert all(f"\n{stage}" in text for stage in STAGES)


def test_the_seconds_of_the_same_run_are_called_measured(capsys, tiny_select, tiny_run):
    stages = by_stage(plan(capsys, *tiny_select, "--rates", str(tiny_run)))
    records = recorded(tiny_run)
    for name in ("export", "score", "report"):
        assert stages[name]["seconds"] == records[name]["seconds"]
        assert stages[name]["how"] == "measured"


def test_what_an_unfinished_ingest_has_written_is_a_pool(tmp_path):
    records = [
        {
            "id": str(n),
            "conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": f"{n}"}],
        }
        for n in range(40_000)
    ]
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(records))
    options = IngestOptions(pool=[str(path)])
    whole = tmp_path / "whole"
    whole.mkdir()
    read = probe_ingest(options, whole)
    assert (read.samples, read.rejected, read.share) == (40_000, 0, 1.0)
    assert read.rate.disk == (whole / "pool.arrow").stat().st_size / 40_000

    cut = tmp_path / "cut"
    cut.mkdir()
    data = (whole / "pool.arrow").read_bytes()
    (cut / ".pool.arrow.1.tmp").write_bytes(data[: len(data) * 3 // 5])
    table = pa.Table.from_batches(_whole_batches(cut))
    assert 8_192 <= len(table) < 40_000
    assert table["id"].to_pylist() == [str(n) for n in range(len(table))]

    # Out of time at once: either nothing was written yet and all is read, or a part tells of the whole.
    part = tmp_path / "part"
    part.mkdir()
    read = probe_ingest(options, part, most_seconds=0.0)
    assert math.isclose(read.samples, 40_000, rel_tol=0.5)


def test_a_probe_of_picking_leaves_mapped_embeddings_out_of_the_memory():
    held = own_memory_mb()
    rate = probe_pick(PickOptions(budget=Amount.parse("1%")), 10**8, 10**6, width=64, sources=1)
    assert rate.mapped * 10**8 == pytest.approx(12_800)
    # Labels, shares and necessity of each row are held; 3.0 GB in a real run (benches/RESULTS.md).
    assert 400 < rate.memory_for(10**8) - held < 12_800


@pytest.mark.parametrize("clusters", [None, 1_000])
def test_samples_are_drawn_from_clusters_as_large_as_those_of_the_pool(monkeypatch, clusters):
    asked, real = [], methods.choose

    def choose(scored, options, progress):
        sizes = None if scored.clusters is None else len(scored) / len(scored.clusters.names)
        asked.append((len(scored), options.budget.of(len(scored)), options.within, sizes))
        return real(scored, options, progress)

    monkeypatch.setattr(made_up.methods, "choose", choose)
    monkeypatch.setattr(made_up, "ROWS", (1_000, 4_000))
    rate = probe_pick(
        PickOptions(budget=Amount.parse("1%")), 2 * 10**6, 20_000, 8, sources=1, clusters=clusters
    )
    # The 2,000,000 have 1,000 clusters of 2,000 samples. They are made here unless the score stage made them.
    drawn = [(1_000, 10, None, 1_000), (4_000, 40, None, 2_000)]
    made = [(1_000, 10, "uniform", None), (4_000, 40, "uniform", None)]
    assert asked == drawn + (made if clusters is None else [])
    assert rate.units == 2 * 10**6


def test_many_pieces_of_one_size_take_linear_time():
    seen = [made_up._Probe(10, 1.0, 1.0, 5.0), made_up._Probe(40, 8.0, 8.0, 8.0)]
    assert made_up._Growth(seen).seconds_for(160) == pytest.approx(64)
    assert made_up._Growth(seen, is_even=True).seconds_for(160) == pytest.approx(32)
    assert made_up._Growth(seen).memory_for(160) == pytest.approx(20)
    assert made_up._Growth(seen, is_even=True).memory_for(160) == 8


def test_figures_of_a_report_grow_with_what_is_compared():
    rate = probe_report(10**6, 10**5, 64)
    # 2,000 rows with 4 times the choice, twice; with the pool; and 2,000 chosen ones with the choice.
    assert products(10**6, 10**5, 64) == 64 * 2_000 * (8 + 10 + 1) * 10**5
    assert rate.seconds_for(products(10**6, 10**5, 64)) == pytest.approx(10 * rate.seconds)
    # Then fewer rows are compared, as many as make half a billion products of a figure, or 50.
    assert products(10**7, 10**6, 64) == pytest.approx(3 * 5e11 - (5e11 - 64 * 2_000 * 10**6), rel=1e-2)


def test_parameters_are_counted(tiny_model):
    from safetensors import safe_open

    with safe_open(tiny_model / "model.safetensors", "np") as file:
        expected = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - no iterator
    assert parameters(tiny_model) == expected


def work(**changes: Any) -> Work:
    counts = {"samples": 1000, "chosen": 100, "trained": 50, "to_score": 1000, "compared": 3e6}
    known: dict[str, Any] = counts | {"readings": 1, "devices": 1, "states": dict.fromkeys(STAGES, "runs")}
    return Work(**{**known, **changes})


def rates() -> Rates:
    stages = {
        "ingest": Rate(100, 1.0, "", disk=10.0),
        "seed": Rate(10, 20.0, "", fixed=5.0, disk_fixed=7.0),
        "export": Rate(1, 0.0, "", fixed=3.0),
        "score": Rate(100, 50.0, "", memory_mb=9.0, disk=2.0),
        "pick": Rate(10, 0.1, "", power=1.5, memory_mb=100.0, memory_grows=0.5, made_up=True),
        "report": Rate(1e6, 0.5, "", fixed=2.0),
    }
    return Rates(stages, input_bytes=4.0)


def test_estimates_by_hand():
    found = {stage.stage: stage for stage in estimate(work(), rates())}
    seconds = {name: stage.seconds for name, stage in found.items()}
    assert seconds == pytest.approx(
        {"ingest": 10, "seed": 105, "export": 3, "score": 500, "pick": 100, "report": 3.5}
    )
    assert found["pick"].memory_mb == 100 + 0.5 * 990
    assert found["pick"].disk_bytes == 400
    assert (found["ingest"].disk_bytes, found["score"].disk_bytes, found["seed"].disk_bytes) == (1e4, 2e3, 7)
    assert [name for name in STAGES if found[name].how == "measured"] == ["export"]


def test_further_readings_and_devices_count():
    found = {stage.stage: stage for stage in estimate(work(readings=3, devices=5, to_score=500), rates())}
    assert found["score"].device_seconds == 750
    assert found["score"].seconds == 150


def test_what_is_not_shared_out_is_not_divided():
    some = rates()
    some.stages["score"] = Rate(100, 50.0, "", fixed=30.0)
    found = {stage.stage: stage for stage in estimate(work(devices=5), some)}
    assert (found["score"].device_seconds, found["score"].seconds) == (530, 130)


def test_break_even_by_hand():
    found = break_even(work(states=dict.fromkeys(STAGES, "done")), rates())
    assert found is not None
    assert (found.epoch, found.chosen_epoch) == (2000, 200)
    assert found.selection == pytest.approx(721.5)
    assert found.epochs == pytest.approx(721.5 / 1800)
    assert break_even(work(trained=0), rates()) is None
    never = break_even(work(chosen=1000), rates())
    assert never is not None
    assert never.epochs is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99.9, "99.9 s"), (600, "10 min"), (86_400, "24.0 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (1500, "1.5 kB"), (2.56e10, "25.6 GB")])
def test_sizes(count, text):
    assert size(count) == text


def test_a_probe_counts_each_reading_once(capsys, tiny_select, tmp_path):
    """It measures the readings that the metrics need, so nothing is to be multiplied."""
    found = plan(capsys, *tiny_select, "--metrics", "visnec", "--run-dir", str(tmp_path / "new"))
    assert by_stage(found)["score"]["how"] == "measured"

"""The pick stage on a run directory with an ingested pool and hand-made scores, and `Selection`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from mllm_selector.arrays import pick
from mllm_selector.artifacts import open_arrow, score_schema, write_arrow
from mllm_selector.cli import main
from mllm_selector.config import Amount, IngestOptions, Inputs, PickOptions, ReportOptions
from mllm_selector.errors import PoolError, RunDirectoryError, UsageError
from mllm_selector.limits import check_limits
from mllm_selector.progress import SilentProgress
from mllm_selector.reporting.command import as_call, as_command
from mllm_selector.rundir import RunDirectory, StageRecord, fingerprint_inputs, read_manifest
from mllm_selector.selection import SELECTION_SCHEMA, Selection
from mllm_selector.stages import ingest, report
from mllm_selector.stages import pick as stage

N, PART = 300, 64
SOURCES = ["ocr", "vqa", "chat"]


def record(row):
    turns = [
        {"from": "human", "value": f"Question {row}?"},
        {"from": "gpt", "value": "Answer \u00fc " * (row % 3 + 1)},
    ]
    return {"id": f"sample-{row}", "source": SOURCES[row % 3], "kept": {"row": row}, "conversations": turns}


def scores():
    rng = np.random.default_rng(0)
    necessity = rng.gamma(2, size=N).astype(np.float32)
    necessity[::50] = np.nan
    X = rng.normal(size=(N, 8))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float16)
    X[::50] = 0
    return necessity, X


def make_run(tmp_path):
    """Make a run directory as the score stage leaves it."""
    pool = tmp_path / "pool.json"
    pool.write_text(json.dumps([record(row) for row in range(N)], indent=1, ensure_ascii=False))
    with RunDirectory(tmp_path / "run") as run:
        options = IngestOptions(pool=pool)
        counts = ingest.run(run, options, SilentProgress())
        run.stages["ingest"] = StageRecord(
            state="done",
            key="",
            options=options.as_json(),
            inputs={"pool": fingerprint_inputs(options.pool)},
            counts=counts,
        )
        write_scores(run)
        write_seed_rows(run, [])
        run.stages["score"] = StageRecord("done", key="scores")
        run.save()
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def run(folder):
    """The same, held by this process."""
    with RunDirectory(folder) as run:
        yield run


def write_scores(run, rows=N):
    necessity, X = scores()
    for number, first in enumerate(range(0, rows, PART)):
        part = slice(first, min(first + PART, rows))
        length = part.stop - part.start
        table = pa.table(
            [
                pa.array(np.arange(first, part.stop), pa.uint64()),
                pa.array(necessity[part] * 3, pa.float32()),
                pa.array(np.full(length, 3), pa.uint32()),
                pa.array(necessity[part], pa.float32()),
                pa.array([None] * length, pa.utf8()),
                pa.array([[]] * length, score_schema(8).field("missing").type),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(X[part].ravel()), type=score_schema(8).field("embedding").type
                ),
            ],
            schema=score_schema(8),
        )
        write_arrow(run.scores / f"part-{number:05d}.arrow", table)


def write_seed_rows(run, rows):
    write_arrow(run.seed_rows, pa.table({"row": pa.array(rows, pa.uint64())}))


def do_pick(run, **options):
    """Run the stage and enter it in the manifest, as the pipeline does."""
    given = PickOptions(**{"budget": Amount.parse("10%"), **options})
    counts = stage.run(run, given, SilentProgress())
    run.stages["pick"] = StageRecord("done", key="", options=given.as_json(), counts=counts)
    run.save()
    return counts


def test_any_metric_of_the_scores_may_be_the_necessity(run):
    upd = np.random.default_rng(1).random(N).astype(np.float32)
    upd[7::10] = np.nan
    for number, path in enumerate(sorted(run.scores.iterdir())):
        table = open_arrow(path)
        of_part = pa.array(upd[number * PART : number * PART + len(table)])
        write_arrow(path, table.append_column("upd", of_part))
    counts = do_pick(run, necessity="upd", groups="necessity", share="equal", within="top")
    rows = pick(upd, budget="10%", groups="necessity", share="equal", within="top")
    table = open_arrow(run.selection)
    np.testing.assert_array_equal(table["row"].to_numpy(), rows)
    np.testing.assert_array_equal(table["necessity"].to_numpy(), upd[rows])
    assert counts["unscored"] == 30


def test_a_metric_that_the_pool_was_not_scored_with(folder, capsys):
    assert (
        main(["pick", "--budget", "10%", "--necessity", "visnec", "--run-dir", str(folder), "--quiet"]) == 2
    )
    assert (
        "hold no 'visnec', only nll; score the pool with --metrics visnec in another"
        in capsys.readouterr().err
    )


def test_selection_and_subset(run):
    counts = do_pick(run)
    table = open_arrow(run.selection)
    necessity, X = scores()
    rows = pick(necessity, X, budget="10%")
    assert table.schema == SELECTION_SCHEMA
    np.testing.assert_array_equal(table["row"].to_numpy(), rows)
    np.testing.assert_array_equal(table["necessity"].to_numpy(), necessity[rows])
    chosen = pick(necessity, X, budget="10%", order="chosen")
    np.testing.assert_array_equal(rows[np.argsort(table["order"].to_numpy())], chosen)
    assert table["id"].to_pylist() == [f"sample-{row}" for row in rows]
    subset = run.path / counts.pop("subset")
    assert counts == {
        "method": "grouped",
        "parameters": {},
        "chosen": 30,
        "groups": 12,
        "candidates": 294,
        "unscored": 6,
        "lacking": 0,
        "seed_in_subset": 0,
        "scores": [],
    }
    groups = json.loads(table.schema.metadata[b"mllm_selector.groups"])
    assert len(groups) == 12
    assert sum(group["size"] for group in groups) == 294
    total = sum(group["size"] * group["mean_necessity"] for group in groups)
    assert total == pytest.approx(np.nansum(necessity.astype(np.float64)))
    assert json.loads(subset.read_text()) == [record(int(row)) for row in rows]


def test_subset_in_the_order_of_choice(run):
    do_pick(run, order="chosen")
    necessity, X = scores()
    chosen = pick(necessity, X, budget="10%", order="chosen")
    subset = run.subset_stem.with_suffix(".json")
    assert json.loads(subset.read_text()) == [record(int(row)) for row in chosen]
    assert (np.diff(open_arrow(run.selection)["row"].to_numpy().astype(int)) > 0).all()


def test_groups_by_source(run):
    do_pick(run, groups="source", share="equal")
    table = open_arrow(run.selection)
    # Sources are numbered as the pool first shows them.
    assert (table["group"].to_numpy() == table["row"].to_numpy() % 3).all()
    assert np.bincount(table["group"].to_numpy()).tolist() == [10, 10, 10]


@pytest.mark.parametrize(("seed_samples", "among"), [("include", 5), ("exclude", 0)])
def test_seed_samples(run, seed_samples, among):
    write_seed_rows(run, [3, 4, 5, 77, 210])
    counts = do_pick(run, seed_samples=seed_samples)
    table = open_arrow(run.selection)
    assert counts["chosen"] == len(table) == 30
    assert counts["seed_in_subset"] == sum(table["seed"].to_pylist()) == among
    seeds = table.filter(table["seed"])["row"].to_pylist()
    assert seeds == [3, 4, 5, 77, 210][:among]


def test_same_bytes_every_time(run):
    do_pick(run, threads=1)
    files = [run.selection, run.subset_stem.with_suffix(".json")]
    first = [file.read_bytes() for file in files]
    do_pick(run, threads=8)
    assert [file.read_bytes() for file in files] == first


def test_budget_above_the_candidates_leaves_nothing(run):
    with pytest.raises(UsageError, match="295 samples cannot be chosen: 294 of 300"):
        do_pick(run, budget=Amount.parse(295))
    assert not run.selection.exists()
    assert not run.subset_stem.with_suffix(".json").exists()


def test_scores_of_a_part_of_the_pool(run):
    for part in run.scores.iterdir():
        part.unlink()
    with pytest.raises(RunDirectoryError, match="holds no scores"):
        do_pick(run)
    write_scores(run, rows=128)
    with pytest.raises(RunDirectoryError, match="scores of 128 samples for a pool of 300"):
        do_pick(run)


class TestLimits:
    def test_are_kept_by_the_command_line(self, folder):
        limits = ["--source-floor", "ocr=50%", "--source-ceiling", "*=6", "--source-ceiling", "ocr=100%"]
        done = command(folder, *limits)
        assert done.returncode == 0, done.stderr
        assert "30 of 300 samples chosen; set aside: 0 when read, 6 when scored" in done.stdout
        rows = open_arrow(folder / "selection.arrow")["row"].to_numpy()
        assert np.bincount(rows.astype(np.int64) % 3).tolist() == [18, 6, 6]
        necessity, X = scores()
        limits = {"floors": {"ocr": "50%"}, "ceilings": {"*": 6, "ocr": "100%"}}
        sources = [SOURCES[row % 3] for row in range(N)]
        np.testing.assert_array_equal(rows, pick(necessity, X, budget="10%", sources=sources, **limits))
        pick_record = read_manifest(folder)["pick"]
        assert pick_record.options["source_floor"] == {"ocr": "50%"}
        assert pick_record.options["source_ceiling"] == {"*": "6", "ocr": "100%"}

    def test_decide_whether_the_stage_is_done(self, folder, tmp_path):
        def says_done(*limits):
            done = command(folder, *limits)
            assert done.returncode == 0, done.stderr
            return "done before" in done.stderr

        assert not says_done()
        assert not says_done("--source-floor", "ocr=7", "--source-floor", "vqa=8")
        assert says_done("--source-floor", "vqa=8", "--source-floor", "ocr=7")
        config = tmp_path / "limits.toml"
        config.write_text('[source-floor]\nocr = 7\nvqa = "8"\n')
        assert says_done("--config", str(config))
        assert not says_done("--source-floor", "vqa=8", "--source-floor", "ocr=7.5%")
        assert not says_done()

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            (["--source-floor", "orc=5"], "floor of 'orc': nothing has this name; did you mean 'ocr'?"),
            (["--source-floor", "audio=5"], "known are chat, ocr, vqa"),
            (["--source-ceiling", "ocr=many"], "--source-ceiling ocr: 'many' is neither a count"),
            (["--source-ceiling", "ocr"], "--source-ceiling: 'ocr' is not of the form NAME=N"),
            (["--source-floor", "ocr=1", "--source-floor", "ocr=2"], "--source-floor: ocr is given twice"),
            (
                ["--source-floor", "*=11"],
                "add up to 33: more than the budget of 30; lower the floors or raise",
            ),
        ],
    )
    def test_that_cannot_be_kept_leave_the_earlier_selection(self, folder, limits, message):
        assert command(folder).returncode == 0
        before = (folder / "selection.arrow").read_bytes()
        done = command(folder, *limits)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert (folder / "selection.arrow").read_bytes() == before
        assert read_manifest(folder)["pick"].state == "done"

    def test_work_with_every_kind_of_group(self, run):
        limits = {"source_floor": {"vqa": "40%"}, "source_ceiling": {"ocr": 3}}
        for groups in ("cluster", "necessity", "source", "random"):
            do_pick(run, groups=groups, **limits)
            counts = np.bincount(open_arrow(run.selection)["row"].to_numpy().astype(np.int64) % 3)
            assert counts.sum() == 30
            assert counts[0] <= 3
            assert counts[1] >= 12

    def test_of_sources_too_small_are_refused_before_scoring(self, folder):
        options = PickOptions(budget=250, source_floor={"*": 80, "vqa": 101})
        with pytest.raises(UsageError, match="'vqa' has 100 candidates for a floor of 101"):
            check_limits(read_manifest(folder)["ingest"].counts["sources"], options, 250)

    def test_are_repeated_by_the_report(self, run):
        do_pick(run, source_floor={"ocr": "12.3456789%", "vqa": 0}, source_ceiling={"*": 20})
        line = as_command(run.stages, run.path).replace("\\\n", " ")
        words = shlex.split(line)
        given = [words[at + 1] for at, word in enumerate(words) if word == "--source-floor"]
        assert given == ["ocr=12.3456789%", "vqa=0"]
        assert "--source-ceiling '*=20'" in line
        assert "source_ceiling={'*': '20'}" in as_call(run.stages, run.path)
        report.run(run, ReportOptions(), SilentProgress())
        page = run.report.read_text()
        assert "At least 12.3456789% of the budget from ocr, 0 from vqa." in page
        assert "At most 20 from each source." in page


@pytest.mark.parametrize(
    ("options", "within", "sentence"),
    [
        ([], "facility-location", "chosen by facility location, so that the group"),
        (["--within", "uniform"], "uniform", "chosen uniformly at random"),
        (["--groups", "random"], "uniform", "chosen uniformly at random"),
        (
            ["--groups", "random", "--within", "facility-location"],
            "facility-location",
            "by facility location",
        ),
    ],
)
def test_how_samples_are_chosen_inside_groups(folder, options, within, sentence):
    done = command(folder, *options, "--group-count", "5")
    assert done.returncode == 0, done.stderr
    necessity, X = scores()
    groups = "random" if "random" in options else "cluster"
    rows = pick(necessity, X, budget="10%", groups=groups, within=within, group_count=5)
    np.testing.assert_array_equal(open_arrow(folder / "selection.arrow")["row"].to_numpy(), rows)
    with RunDirectory(folder) as run:
        report.run(run, ReportOptions(), SilentProgress())
        assert sentence in run.report.read_text()


def command(folder, *options):
    """Run pick through the real command line."""
    arguments = ["-m", "mllm_selector", "pick", "--budget", "10%", "--run-dir", str(folder), *options]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


class TestSelection:
    def test_load(self, run):
        with pytest.raises(RunDirectoryError, match="holds no selection"):
            Selection.load(run.path)
        with pytest.raises(UsageError, match=r"pool\.arrow is a file and no run directory"):
            Selection.load(run.pool)
        do_pick(run)
        selection = Selection.load(run.path)
        table = open_arrow(run.selection)
        for column, values in [
            ("row", selection.rows),
            ("id", selection.ids),
            ("necessity", selection.necessity),
            ("group", selection.groups),
            ("order", selection.order),
        ]:
            assert values.tolist() == table[column].to_pylist()
        assert len(selection) == 30
        assert selection.run_dir == run.path
        assert repr(selection).startswith("Selection of 30 of 300 samples from 12 groups, in ")

    def test_stays_where_the_next_choice_fails_for_want_of_the_pool(self, folder):
        assert command(folder).returncode == 0
        before = Selection.load(folder)
        (pool,) = Inputs.parse(read_manifest(folder)["ingest"].options["pool"]).paths
        gone = pool.rename(pool.with_suffix(".gone"))
        for _ in range(2):
            done = command(folder, "--seed", "1")
            assert done.returncode == 1
            assert f"{pool}: cannot be read (No such file or directory)" in done.stderr
            assert Selection.load(folder).rows.tolist() == before.rows.tolist()
        gone.rename(pool)
        assert command(folder, "--seed", "1").returncode == 0
        assert Selection.load(folder).rows.tolist() != before.rows.tolist()

    def test_stays_where_the_pool_changes_just_before_the_next_is_written(self, folder, monkeypatch, capsys):
        words = ["pick", "--budget", "10%", "--run-dir", str(folder), "--quiet"]
        assert main(words) == 0
        before = Selection.load(folder).rows.tolist()

        def changed(*_):
            msg = "pool.json: has changed"
            raise PoolError(msg)

        with monkeypatch.context() as patch:
            patch.setattr("mllm_selector.formats.write_subset", changed)
            assert main([*words, "--seed", "1"]) == 1
        assert "pool.json: has changed" in capsys.readouterr().err
        assert Selection.load(folder).rows.tolist() == before
        assert main([*words, "--seed", "1"]) == 0
        assert Selection.load(folder).rows.tolist() != before

    def test_write(self, run, tmp_path):
        do_pick(run)
        selection = Selection.load(run.path)
        selection.write(tmp_path / "subset.json")
        inside = run.subset_stem.with_suffix(".json")
        assert (tmp_path / "subset.json").read_bytes() == inside.read_bytes()
        inside.unlink()
        with pytest.raises(RunDirectoryError, match="run 'mllm-selector pick'"):
            selection.write(tmp_path / "subset.json")

    def test_report(self, run, tmp_path):
        do_pick(run)
        selection = Selection.load(run.path)
        with pytest.raises(RunDirectoryError, match="run 'mllm-selector report'"):
            selection.report(tmp_path / "page.html")
        run.report.write_text("<p>page</p>")
        selection.report(tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text() == "<p>page</p>"

"""The comparison of two selections: its numbers against sets, its page in a browser, its command."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser
from scipy.stats import spearmanr

from browser import chromium, opened
from mllm_selector.artifacts import write_arrow
from mllm_selector.rundir import RunDirectory
from report_fixtures import write_run


def records(count: int = 400, sources: int = 4) -> list[dict]:
    return [
        {
            "id": f"sample {number}",
            "source": f"source {number % sources}",
            "conversations": [
                {"from": "human", "value": f"Question {number}?"},
                {"from": "gpt", "value": f"Answer {number}."},
            ],
        }
        for number in range(count)
    ]


def rows_of(selection: Path) -> set[int]:
    with pa.ipc.open_file(selection) as file:
        return set(file.read_all()["row"].to_pylist())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs over one pool: other scores, other budget."""
    folder = tmp_path_factory.mktemp("two")
    random = np.random.default_rng(5)
    group = (np.arange(400) % 8).astype(np.int32)
    scores = random.gamma(2.0, 0.5, 400).astype(np.float32)
    noisy = (scores + random.gamma(1.0, 0.3, 400)).astype(np.float32)
    unscored = {7: "too-long: 9,000 tokens"}
    first = write_run(
        folder / "first", records(), None, scores=(scores, group), budget=0.1, unscored=unscored
    )
    second = write_run(
        folder / "second", records(), None, scores=(noisy, group), budget=0.2, unscored=unscored
    )
    return first, second


def diff(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mllm_selector", "diff", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "two.html"
    done = diff(*runs, "--out", out)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    return out


def test_the_numbers_are_those_of_the_sets(runs, written):
    told = json.loads(written.with_suffix(".json").read_text())
    first, second = (rows_of(run / "selection.arrow") for run in runs)
    assert told["samples"] == 400
    assert (told["first"]["chosen"], told["second"]["chosen"]) == (40, 80) == (len(first), len(second))
    assert told["both"] == len(first & second)
    assert (told["first"]["alone"], told["second"]["alone"]) == (len(first - second), len(second - first))
    assert told["jaccard"] == pytest.approx(len(first & second) / len(first | second))
    assert told["by_chance"] == pytest.approx(40 * 80 / 400)
    for source in told["sources"]:
        number = int(source["source"].split()[1])
        assert source["first"] == sum(row % 4 == number for row in first)
        assert source["second"] == sum(row % 4 == number for row in second)
        assert source["both"] == sum(row % 4 == number for row in first & second)
    assert {item["row"] for item in told["only_first"]} <= first - second
    assert {item["row"] for item in told["only_second"]} <= second - first
    necessities = [item["necessity"] for item in told["only_second"]]
    assert necessities == sorted(necessities, reverse=True)
    expected = {"first": first, "second": second}
    for name, rows in expected.items():
        assert sum(told[name]["histogram"]) == len(rows - {7})
    assert {
        (entry["stage"], entry["option"], entry["first"], entry["second"]) for entry in told["options"]
    } == {("pick", "budget", "10%", "20%")}


def test_other_seed_models_are_compared_by_rank(runs, written):
    told = json.loads(written.with_suffix(".json").read_text())
    values = []
    for run in runs:
        with pa.ipc.open_file(run / "scores" / "part-00000.arrow") as file:
            values.append(file.read_all()["nll"].to_numpy())
    scored = ~np.isnan(values[0])
    expected = spearmanr(values[0][scored], values[1][scored]).statistic
    assert told["rank_correlation"] == pytest.approx(expected)


def test_a_run_with_itself_has_everything_in_common(runs, tmp_path):
    done = diff(runs[0], runs[0], "--out", tmp_path / "same.html", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "both": 40,
        "first": 0,
        "second": 0,
        "jaccard": 1.0,
        "report": str(tmp_path / "same.html"),
    }
    numbers = json.loads((tmp_path / "same.json").read_text())
    assert numbers["rank_correlation"] is None
    assert numbers["options"] == []
    assert numbers["only_first"] == numbers["only_second"] == []


def test_a_kept_selection_is_compared_with_its_run(runs, tmp_path):
    kept = tmp_path / "before.arrow"
    shutil.copy(runs[0] / "selection.arrow", kept)
    for pair in ((runs[0], kept), (kept, runs[0])):
        done = diff(*pair, "--out", tmp_path / "kept.html")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "kept.json").read_text())["jaccard"] == 1.0
    done = diff(kept, kept, "--out", tmp_path / "kept.html")
    assert done.returncode == 2
    assert "name the run directory of one of them" in done.stderr


@pytest.mark.parametrize("change", ["count", "ids", "selection"])
def test_selections_of_other_pools_are_refused(runs, tmp_path, change):
    other = write_run(tmp_path / "other", records(399 if change == "count" else 400), None)
    if change == "ids":
        others = records()
        others[17]["id"] = "somebody else"
        other = write_run(tmp_path / "ids", others, None)
    if change == "selection":
        with pa.ipc.open_file(runs[0] / "selection.arrow") as file:
            table = file.read_all()
        other = tmp_path / "other.arrow"
        write_arrow(other, table.set_column(1, "id", pa.array(["x"] * len(table), pa.large_utf8())))
    done = diff(runs[0], other, "--out", tmp_path / "no.html")
    assert done.returncode == 2
    assert "different pools" in done.stderr
    assert not (tmp_path / "no.html").exists()


def test_what_is_not_there_is_named(runs, tmp_path):
    done = diff(runs[0], tmp_path / "nothing")
    assert done.returncode == 2
    assert "nothing does not exist" in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_numbers_are_not_written_over_another_file(runs, tmp_path):
    subset, page = tmp_path / "subset.json", tmp_path / "subset.html"
    subset.write_text("[]")
    done = diff(*runs, "--out", page)
    assert done.returncode == 2
    assert str(subset) in done.stderr
    assert (subset.read_text(), page.exists()) == ("[]", False)


def test_a_disk_that_was_full_is_no_obstacle_later(runs, tmp_path):
    """Files of a limited size (RLIMIT_FSIZE) stand for the disk: the page, the larger one, fails."""
    page = tmp_path / "two.html"
    command = [sys.executable, "-m", "mllm_selector", "diff", *map(str, runs), "--out", str(page)]
    assert diff(*runs, "--out", tmp_path / "other.html").returncode == 0
    numbers = (tmp_path / "other.json").stat().st_size
    assert numbers < (tmp_path / "other.html").stat().st_size
    limited = f"ulimit -f {numbers // 1024 + 1}; trap '' XFSZ; exec {shlex.join(command)}"
    failed = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stderr
    assert f"{page} cannot be written: File too large" in failed.stderr
    assert diff(*runs, "--out", page).returncode == 0


def test_a_file_that_is_no_selection_is_not_to_be_deleted(runs, tmp_path):
    pool = tmp_path / "pool.json"
    pool.write_text("[]")
    done = diff(runs[0], pool)
    assert done.returncode == 2
    assert done.stderr == (
        f"mllm-selector: {pool} is no selection; name a run directory or a selection.arrow of one\n"
    )


def test_reading_does_not_need_the_lock(runs, tmp_path):
    with RunDirectory(runs[0]):
        assert diff(*runs, "--out", tmp_path / "two.html").returncode == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (400, "dark")])
def test_the_page_in_a_browser(browser, written, width, scheme):
    with opened(browser, written, width, scheme) as shown:
        page = shown.page
        assert page.evaluate("document.documentElement.scrollWidth") == width
        kinds = [canvas.get_attribute("data-plot") for canvas in page.locator("canvas").all()]
        assert kinds == ["map", "two", "coverage"]
        assert "only the first" in page.locator("#map-legend").inner_text()
        page.locator("canvas[data-plot=two]").focus()
        page.keyboard.press("ArrowRight")
        assert "first" in page.locator("#spoken").inner_text()

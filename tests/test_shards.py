"""Scoring by several processes: the same parts as one process writes, none of them scored twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_selector import cli
from mllm_selector.config import Shard
from mllm_selector.errors import UsageError
from mllm_selector.locking import RunLock
from score_fixtures import exported_run, run

pytest_plugins = ["score_fixtures"]

SAMPLES = 60
OPTIONS = ["--device", "cpu", "--shard-size", "10", "--threads", "1"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory before scoring, and one that a single process has scored: ``ready`` and ``whole``."""
    folder = tmp_path_factory.mktemp("shards")
    ready = exported_run(folder, SAMPLES, pictures=7, words=(9, 5), engine="torch")
    shutil.copytree(ready, folder / "whole")
    run("score", *OPTIONS, at=folder / "whole")
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, at: Path, code: int = 1) -> str:
    capsys.readouterr()
    assert cli.main([*arguments, "--run-dir", str(at), "--quiet"]) == code
    return capsys.readouterr().err


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "scores").glob("part-*.arrow"))}


def test_shards_give_the_bytes_of_one_process(exported: Path, ready: Path) -> None:
    for shard in ("3/4", "1/4", "4/4", "2/4"):
        run("score", "--shard", shard, *OPTIONS, at=ready)
    assert sorted(path.name for path in ready.glob("shards/*/part-*.arrow")) == list(
        parts(exported / "whole")
    )
    run("score", "--merge", *OPTIONS, at=ready)
    assert parts(ready) == parts(exported / "whole")
    assert not (ready / "shards").exists()
    merged, whole = (
        json.loads((folder / "manifest.json").read_text())["stages"]["score"]
        for folder in (ready, exported / "whole")
    )
    assert merged["state"] == "done"
    assert merged["key"] == whole["key"]
    for name in ("samples", "scored", "answer_tokens", "images_encoded", "parts", "embedding_size"):
        assert merged["counts"][name] == whole["counts"][name]
    assert [report["shard"] for report in merged["counts"]["shards"]] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum(report["samples"] for report in merged["counts"]["shards"]) == SAMPLES
    # The same selection follows, and scoring again does nothing.
    for folder in (ready, exported / "whole"):
        run("pick", "--budget", "20%", at=folder)
    assert (ready / "subset.json").read_bytes() == (exported / "whole" / "subset.json").read_bytes()
    run("score", *OPTIONS, at=ready)


def test_shards_at_the_same_time(exported: Path, ready: Path) -> None:
    command = [sys.executable, "-m", "mllm_selector", "score", *OPTIONS, "--run-dir", str(ready), "--quiet"]
    processes = [subprocess.Popen([*command, "--shard", f"{number}/2"]) for number in (1, 2)]
    assert [process.wait() for process in processes] == [0, 0]
    run("score", "--merge", *OPTIONS, at=ready)
    assert parts(ready) == parts(exported / "whole")


def test_folders_of_copies_are_brought_together(exported: Path, ready: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(ready, tmp_path / "copy")
    run("score", "--shard", "1/2", *OPTIONS, at=ready)
    run("score", "--shard", "2/2", *OPTIONS, at=copy)
    shutil.copytree(copy / "shards" / "2-of-2", ready / "shards" / "2-of-2")
    run("score", "--merge", *OPTIONS, at=ready)
    assert parts(ready) == parts(exported / "whole")


def test_a_part_is_never_scored_twice(ready: Path) -> None:
    run("score", "--shard", "1/2", *OPTIONS, at=ready)
    folder = ready / "shards" / "1-of-2"
    times = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.arrow")}
    assert len(times) == 3
    lost = folder / "part-00002.arrow"
    content = lost.read_bytes()
    lost.unlink()
    run("score", "--shard", "1/2", *OPTIONS, at=ready)
    assert lost.read_bytes() == content
    again = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.arrow")}
    assert [path for path in times if again[path] != times[path]] == [lost]


def test_what_is_missing_is_named(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("score", "--shard", "2/3", *OPTIONS, at=ready)
    said = fails(capsys, "score", "--merge", *OPTIONS, at=ready)
    assert "4 of 6 score parts are missing (the first: part-00000.arrow)" in said
    assert "--shard 1/3, --shard 3/3" in said
    damaged = ready / "shards" / "2-of-3" / "part-00001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-100] + bytes(100))
    for shard in ("1/3", "3/3"):
        run("score", "--shard", shard, *OPTIONS, at=ready)
    assert "part-00001.arrow is damaged" in fails(capsys, "score", "--merge", *OPTIONS, at=ready)
    run("score", "--shard", "2/3", *OPTIONS, at=ready)
    run("score", "--merge", *OPTIONS, at=ready)


def test_shards_that_do_not_go_together(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("score", "--shard", "1/2", *OPTIONS, at=ready)
    assert "has 1-of-2; give the same number" in fails(capsys, "score", "--shard", "1/3", *OPTIONS, at=ready)
    said = fails(capsys, "score", "--shard", "2/2", "--device", "cpu", "--shard-size", "12", at=ready)
    assert "written with another pool, model or other options" in said
    said = fails(capsys, "score", *OPTIONS, at=ready)
    assert "is being scored by processes with --shard" in said
    lock = RunLock(ready / "shards" / "1-of-2" / "lock")
    lock.take()
    assert "1-of-2 is in use by process" in fails(capsys, "score", "--shard", "1/2", *OPTIONS, at=ready)
    lock.release()


def test_a_shard_keeps_the_whole_run_away(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = RunLock(ready / "lock")
    lock.share()
    assert "is in use by" in fails(capsys, "score", "--merge", *OPTIONS, at=ready)
    run("score", "--shard", "1/2", *OPTIONS, at=ready)
    lock.release()
    lock.take()
    assert "is in use by" in fails(capsys, "score", "--shard", "2/2", *OPTIONS, at=ready)
    lock.release()


def test_only_scoring_is_shared_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.json").write_text("[]")
    given = ["select", str(tmp_path / "pool.json"), "--seed-model", "m", "--budget", "1", "--shard", "1/2"]
    assert "--shard: only 'mllm-selector score'" in fails(capsys, *given, at=tmp_path / "run", code=2)
    assert "stage 'export' is not done" in fails(capsys, "score", "--shard", "1/2", at=tmp_path / "none")
    assert "give one" in fails(capsys, "score", "--shard", "1/2", "--merge", at=tmp_path / "none", code=2)


@pytest.mark.parametrize("given", ["", "2", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2"])
def test_texts_that_are_no_shard(given: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(given, "--shard")


def test_every_part_is_one_shards() -> None:
    shards = [Shard.parse(f"{number}/7") for number in range(1, 8)]
    assert [[shard.takes(index) for shard in shards].count(True) for index in range(30)] == [1] * 30

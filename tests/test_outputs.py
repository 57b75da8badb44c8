"""Files that a user names for writing never go over what was computed, nor over what is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mllm_selector import Selection, cli
from mllm_selector.errors import UsageError


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def other(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "other"))


@pytest.mark.parametrize("which", ["run", "other"])
def test_pick_writes_over_no_file_of_a_run_directory(run, other, which, tmp_path, capsys):
    before = contents(tmp_path)
    target = tmp_path / which
    files = [path for path in target.rglob("*") if not path.name.startswith("subset.")]
    assert len(files) > 20
    for out in [*files, target / "seed" / "new.json"]:
        assert cli.main(["pick", "--budget", "5", "--run-dir", str(run), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        for words in ("--out", str(out), f"is a part of the run directory {target}", "name another file"):
            assert words in told
    assert contents(tmp_path) == before


def test_other_names_in_a_run_directory_are_free(run):
    out = run / "five.json"
    for _ in range(2):
        assert cli.main(["pick", "--budget", "5", "--run-dir", str(run), "--out", str(out), "--quiet"]) == 0
    assert out.read_bytes() == (run / "subset.json").read_bytes()
    subset = run / "subset.json"
    assert cli.main(["pick", "--budget", "5", "--run-dir", str(run), "--out", str(subset), "--quiet"]) == 0
    assert out.read_bytes() == subset.read_bytes()


def test_neither_does_a_selection(run):
    selection, before = Selection.load(run), contents(run)
    for write in (selection.write, selection.report):
        for path in (run / "pool.arrow", run / "scores" / "part-00000.arrow", run / "seed"):
            with pytest.raises(UsageError, match=r"path: .* is a part of the run directory .*; name another"):
                write(path)
    assert contents(run) == before


def test_nor_does_diff(run, other, tmp_path, capsys):
    kept = Path(shutil.copy(run / "selection.arrow", tmp_path / "kept.arrow"))
    before = contents(tmp_path)
    for out, says in ((other / "report.html", "part of the run directory"), (kept, "what is compared")):
        assert cli.main(["diff", str(kept), str(run), "--out", str(out)]) == 2
        assert says in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_file_of_scores_is_not_the_place_for_a_subset(run, tmp_path, capsys):
    scores = tmp_path / "judge.csv"
    scores.write_text("id,quality\n")
    arguments = ["pick", "--budget", "5", "--run-dir", str(run), "--scores", str(scores)]
    assert cli.main([*arguments, "--out", str(scores)]) == 2
    assert "is a file of --scores and would be overwritten" in capsys.readouterr().err
    assert scores.read_text() == "id,quality\n"

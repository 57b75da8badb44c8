"""The pick stage and its command line with methods and columns that a user adds."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_selector import methods
from mllm_selector.arrays import pick
from mllm_selector.artifacts import open_arrow
from mllm_selector.cli import main
from mllm_selector.columns import stored
from mllm_selector.errors import UsageError
from mllm_selector.rundir import read_manifest
from plugin_fixtures import install
from test_pick import N, make_run, scores


@pytest.fixture
def folder(tmp_path):
    """A run directory as the score stage leaves it."""
    return make_run(tmp_path)


def command(folder, *arguments):
    return main(["pick", "--run-dir", str(folder), "--quiet", *arguments])


@pytest.fixture
def quality(tmp_path):
    """A file with the quality of all samples but every fifth, and of one that is not in the pool."""
    values = np.random.default_rng(1).random(N)
    rows = [f"sample-{row},{values[row]}" for row in range(N) if row % 5]
    (tmp_path / "quality.csv").write_text("\n".join(["id,quality", *rows, "stranger,1"]) + "\n")
    values[::5] = np.nan
    return tmp_path / "quality.csv", values


def test_the_command_line_joins_and_picks(folder, quality, capsys):
    path, values = quality
    given = ["--budget", "30", "--method", "top", "--param", "by=quality", "--scores", str(path)]
    assert command(folder, *given) == 0
    necessity, X = scores()
    expected = pick(
        necessity, X, budget=30, method="top", param={"by": "quality"}, columns={"quality": values}
    )
    np.testing.assert_array_equal(open_arrow(folder / "selection.arrow")["row"].to_numpy(), expected)
    record = read_manifest(folder)["pick"]
    assert record.counts["method"] == "top"
    assert record.counts["parameters"] == {"by": "quality"}
    assert record.counts["lacking"] == 54  # every fifth; of these six were not scored either
    counted = {"file": "quality.csv", "columns": ["quality"], "matched": 240, "unknown": 1, "missing": 60}
    assert record.counts["scores"] == [counted]
    assert record.options["scores"] == [str(path)]
    assert command(folder, *given) == 0
    assert read_manifest(folder)["pick"].key == record.key
    path.write_text(path.read_text().replace("stranger", "stronger"))
    assert command(folder, *given) == 0
    assert read_manifest(folder)["pick"].key != record.key, "another content is another input"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nope"], "--method: 'nope' is not a method"),
        (["--method", "top", "--param", "by"], "--param: 'by' is not of the form NAME=VALUE"),
        (["--method", "top", "--param", "by=a", "--param", "by=b"], "'by=b' is given twice"),
        (["--method", "top", "--param", "by=beauty"], "column 'beauty' is missing; join it with --scores"),
        (["--method", "miwv"], "column 'miwv' is missing; score it with 'score --metrics miwv'"),
        (["--scores", "nowhere.csv"], "--scores: nowhere.csv does not exist"),
        (["--scores", "a.csv", "--scores", "a.csv"], "--scores: a.csv is given twice"),
        (["--method", "top", "--share", "equal"], "--share: the method top does not use it"),
    ],
)
def test_wrong_usage(folder, capsys, arguments, message):
    assert command(folder, "--budget", "30", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_column_of_the_score_stage_is_not_joined_over(folder, tmp_path, capsys):
    (tmp_path / "f.csv").write_text("id,answer_tokens\nsample-1,1\n")
    wrong = ["--method", "top", "--param", "by=answer_tokens", "--scores", str(tmp_path / "f.csv")]
    assert command(folder, "--budget", "30", *wrong) == 2
    assert "'answer_tokens' has the name of one of the score stage" in capsys.readouterr().err


def test_columns_of_the_score_stage(folder):
    columns = stored(folder / "scores", {"nll_sum", "answer_tokens", "embedding", "nothing"})
    assert set(columns) == {"nll_sum", "answer_tokens"}
    np.testing.assert_array_equal(columns["answer_tokens"], np.full(N, 3, np.float32))
    np.testing.assert_allclose(columns["nll_sum"], scores()[0] * 3, rtol=1e-6)


def test_help_shows_methods_and_parameters(capsys):
    with pytest.raises(SystemExit):
        main(["pick", "--help"])
    shown = capsys.readouterr().out
    for name in methods.known():
        assert f"  {name} " in shown
    assert "temperature: Of the softmax over the clusters." in shown


PLUGIN = """
from dataclasses import dataclass
import numpy as np
from mllm_selector.config import option
from mllm_selector.methods import Method, Parameters

@dataclass(frozen=True, kw_only=True)
class Every(Parameters):
    step: int = option(2, help="Distance of the rows.")

def choose(task, parameters):
    order = np.lexsort((task.open, task.open % parameters.step))
    return task.open[order[: task.budget]]

METHOD = Method(name="every", about="every other row", choose=choose, parameters=Every)
BROKEN = Method(name="broken", about="too few", choose=lambda task, parameters: task.open[:1])
NAMED = Method(name="top", about="a name that is taken", choose=choose)
NOTHING = Method(name="nothing", about="does nothing")
"""


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Install a method of another package; `added(target)` names the object."""

    def install_method(target):
        install(tmp_path, monkeypatch, methods.ENTRY_POINTS, "more_methods", PLUGIN, target)
        methods.known.cache_clear()

    yield install_method
    monkeypatch.undo()
    methods.known.cache_clear()


def test_another_package_adds_a_method(folder, added):
    added("METHOD")
    assert command(folder, "--budget", "20", "--method", "every", "--param", "step=10") == 0
    rows = open_arrow(folder / "selection.arrow")["row"].to_numpy()
    scored = np.flatnonzero(~np.isnan(scores()[0]))
    places = np.searchsorted(scored, rows)
    np.testing.assert_array_equal(places, np.arange(0, 200, 10))
    limited = pick(
        np.ones(40), budget=10, method="every", sources=["a", "b"] * 20, ceilings={"a": 3}, param={"step": 2}
    )
    assert (limited % 2 == 0).sum() == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("NAMED", "has the name 'top', which another has"),
        ("NOTHING", "is no mllm_selector.methods.Method"),
        ("Every", "is no mllm_selector.methods.Method"),
        ("missing", "cannot be loaded"),
    ],
)
def test_a_method_that_cannot_be_added_is_named(added, target, message):
    added(target)
    with pytest.raises(UsageError, match=message):
        methods.known()


def test_a_method_that_does_not_keep_its_promise_is_named(added):
    added("BROKEN")
    with pytest.raises(RuntimeError, match="method broken was asked for 4 of 9 open samples and returned 1"):
        pick(np.ones(9), budget=4, method="broken")


def test_the_report_names_the_method(folder):
    assert command(folder, "--budget", "30", "--method", "coincide", "--param", "temperature=0.3") == 0
    assert main(["report", "--run-dir", str(folder), "--quiet"]) == 0
    page = (folder / "report.html").read_text()
    assert "Samples were chosen by the method coincide" in page
    assert "temperature 0.3" in page
    assert read_manifest(folder)["pick"].counts["parameters"]["bandwidth"] == 1.0

"""Scoring some samples of each cluster: input embeddings, clusters, draws, and the selection made of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mllm_selector import cli, families
from mllm_selector.arrays import pick
from mllm_selector.artifacts import ScoreTable, open_arrow, read_embeddings
from mllm_selector.config import PickOptions, ScoreOptions
from mllm_selector.drawn import Clusters
from mllm_selector.engine import OnnxEngine
from mllm_selector.errors import ScoreError, UsageError
from mllm_selector.families.scorer import ScorerGraph
from mllm_selector.inspection import inspect
from mllm_selector.pipeline import build_options, run_stages
from mllm_selector.rundir import RunDirectory, read_manifest
from mllm_selector.sampling import cluster_count
from mllm_selector.scoring.opening import open_torch
from mllm_selector.selection import Selection
from model_fixtures import export_once
from score_fixtures import Notes, ask, column, exported_run, input_embedding, many, parts

pytest_plugins = ["score_fixtures"]

DRAWN = {"scored_per_cluster": 3, "cluster_count": 6}
SAMPLES = 60
OPTIONS = ["--device", "cpu", "--shard-size", "10", "--threads", "1"]
SOME = ["--scored-per-cluster", "2", "--cluster-count", "5"]


def embeddings(folder: Path) -> np.ndarray:
    return np.concatenate(read_embeddings(folder / "scores")[1]).astype(np.float64)


def clusters(folder: Path) -> Clusters:
    return Clusters.load(folder / "scores" / "clusters.arrow")


# Scoring


def test_embeddings_are_those_of_the_unmodified_model(
    make_run: Callable[..., Path], score_run: Callable[..., Any], images: Path
) -> None:
    from PIL import Image

    samples = many(12)
    run = make_run(samples)
    score_run(run, **DRAWN)
    found = embeddings(run)
    assert any(not shown for _, shown in samples), "a sample without images is wanted"
    assert any(len(shown) > 1 for _, shown in samples)
    for row, (messages, shown) in enumerate(samples):
        pictures = [Image.open(images / str(name)) for name in shown]
        expected = input_embedding(export_once("clip-llama").model, messages, pictures)
        assert np.abs(found[row] - expected).max() < 1e-3  # float16
        if not shown:
            assert not found[row][32:].any()


def test_drawn_samples_have_their_scores_and_others_a_reason(
    make_run: Callable[..., Path], score_run: Callable[..., Any]
) -> None:
    samples = [*many(50), ask("broken", images=["cut.png"]), ask("what ? " * 700)]
    whole, some = make_run(samples, name="whole"), make_run(samples, name="some")
    score_run(whole, metrics="visnec,upd")
    notes = Notes()
    counts = score_run(some, notes, metrics="visnec,upd", max_tokens=600, **DRAWN)
    made = clusters(some)
    assert made.count == counts["clusters"] == 6
    assert counts["drawn"] == made.drawn.sum() == 18
    assert counts["samples"] == 52
    assert counts["scored"] == 18
    assert counts["scored_share"] == round(18 / 52, 4)
    assert counts["set_aside"] == {"image-unreadable": 1, "too-long": 1}
    assert "18 of 52 samples are drawn from 6 clusters" in notes.notes[-1]
    assert "18 of 52 samples scored (34.6%), up to 3 of each of 6 clusters; 2 set aside" in notes.last
    reasons = column(some, "reason")
    assert made.labels[50:].tolist() == [-1, -1]
    assert [str(reason).partition(":")[0] for reason in reasons[50:]] == ["image-unreadable", "too-long"]
    for row in range(50):
        assert reasons[row] == (None if made.drawn[row] else "not-drawn")
    for name in ("nll", "visnec", "upd"):
        expected = np.array(column(whole, name))[:50]
        expected[~made.drawn[:50]] = np.nan
        np.testing.assert_allclose(np.array(column(some, name))[:50], expected, rtol=1e-5, atol=1e-5)
    assert counts["missing"].keys() <= {"visnec"}


def test_the_language_model_is_not_run_for_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch: `decode` is not called. ONNX Runtime: an answer that does not exist is not looked up."""
    made = export_once("clip-llama")
    family = families.load(made.graphs / "processor")
    inputs = {
        "input_ids": np.array([[5, 6, 7]]),
        "attention_mask": np.ones((1, 3), np.int64),
        "image_rows": np.full((1, 3), -1),
        "pooled_positions": np.array([[[1, 1, 0]]]),
        "position_ids": np.array([[0, 1, 2]]),
        "branches": np.zeros((1, 3), np.int64),
        "answer_positions": np.array([10**6]),
        "answer_tokens": np.array([1]),
    }
    by_torch = open_torch(family, made.model, "float32", "cpu")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ScorerGraph, "decode", refuse)
    first = by_torch.read(inputs, ("input_embedding",))["input_embedding"]
    onnx = OnnxEngine(made.graphs, "cpu", threads=1)
    second = onnx.read(inputs, ("input_embedding",))["input_embedding"]
    assert first.shape == second.shape == (1, onnx.input_embedding_size) == (1, 96)
    assert np.abs(first - second).max() < 1e-6
    with pytest.raises(Exception, match="indices element out of data bounds"):
        onnx.read(inputs, ("token_nll",))


def test_a_killed_run_ends_with_the_same_bytes(
    make_run: Callable[..., Path], score_run: Callable[..., Any]
) -> None:
    samples = many(50)
    run = make_run(samples)
    score_run(run, **DRAWN)
    whole = parts(run)
    assert list(whole) == [
        "clusters.arrow",
        *(f"embedding-{index:05d}.arrow" for index in range(4)),
        *(f"part-{index:05d}.arrow" for index in range(4)),
    ]
    order = [name for name in whole if name.startswith("embedding")] + ["clusters.arrow"]
    order += [name for name in whole if name.startswith("part")]
    for kept in range(len(order)):
        for name in order[kept:]:
            (run / "scores" / name).unlink()
        counts = score_run(run, **DRAWN)
        assert parts(run) == whole
        assert counts["resumed"] == kept - ("clusters.arrow" in order[:kept])
    for name in order:
        path = run / "scores" / name
        path.write_bytes(whole[name][:-50] + bytes(50))
        score_run(run, **DRAWN)
        assert parts(run) == whole, name


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_for_any_number_of_threads(
    make_run: Callable[..., Path], score_run: Callable[..., Any], threads: int
) -> None:
    run = make_run(many(40))
    score_run(run, **DRAWN, threads=1)
    expected = parts(run)
    shutil.rmtree(run / "scores")
    score_run(run, **DRAWN, threads=threads, workers=threads)
    assert parts(run) == expected


def test_projected_embeddings(make_run: Callable[..., Path], score_run: Callable[..., Any]) -> None:
    samples = many(40)
    plain = make_run(samples, name="plain")
    score_run(plain, **DRAWN)
    for kind in ("random", "pca"):
        run = make_run(samples, name=kind)
        counts = score_run(run, **DRAWN, embedding_size=12, projection=kind)
        assert counts["embedding_size"] == 12
        table = open_arrow(run / "projection.arrow")
        directions = np.array(table["direction"].to_pylist())
        assert directions.shape == (12, 96)
        expected = embeddings(plain) @ directions.T - table["offset"].to_numpy()
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.abs(embeddings(run) - expected).max() < (3e-3 if kind == "random" else 3e-2)
    with pytest.raises(UsageError, match="97 is more than the model's 96"):
        score_run(make_run(samples, name="wide"), **DRAWN, embedding_size=97)


def test_half_precision_graphs(make_run: Callable[..., Path], score_run: Callable[..., Any]) -> None:
    run = make_run(many(20), model="layers-float16")
    counts = score_run(run, **DRAWN)
    assert counts["scored"] == counts["drawn"] > 6
    assert np.isfinite(embeddings(run)).all()
    np.testing.assert_allclose(np.linalg.norm(embeddings(run), axis=1), 1, atol=2e-3)


def test_clusters_by_default_and_all_of_small_ones(
    make_run: Callable[..., Path], score_run: Callable[..., Any]
) -> None:
    """With as many as the largest cluster has, everything is scored, and a cluster's mean is that of all."""
    run = make_run(many(50))
    counts = score_run(run, scored_per_cluster=50)
    made = clusters(run)
    assert made.count == cluster_count(50) == 5
    assert made.drawn.all()
    assert counts["scored"] == counts["samples"] == 50
    assert counts["scored_share"] == 1
    scores = ScoreTable.load(run / "scores")
    filled = made.fill(scores.necessity, scores.reasons.is_null().to_numpy())
    for cluster in range(5):
        own = made.labels == cluster
        mean = scores.necessity[own].mean(dtype=np.float64)
        np.testing.assert_allclose(filled.values[own], mean, rtol=1e-6)


def test_a_pool_that_cannot_be_read(make_run: Callable[..., Path], score_run: Callable[..., Any]) -> None:
    run = make_run([ask("broken", images=["cut.png"])] * 3 + [ask("how many ?")])
    with pytest.raises(ScoreError, match="3 of 4 samples cannot be scored, more than half"):
        score_run(run, scored_per_cluster=1)
    nothing = make_run([ask("broken", images=["cut.png"])] * 2, name="nothing")
    with pytest.raises(ScoreError, match="2 of 2 samples"):
        score_run(nothing, scored_per_cluster=1)


def test_graphs_of_an_earlier_version_say_so(
    make_run: Callable[..., Path], score_run: Callable[..., Any]
) -> None:
    run = make_run(many(4))
    (run / "onnx" / "inputs.onnx").unlink()
    for options in ({"scored_per_cluster": 1}, {"embedding": "inputs"}):
        with pytest.raises(ScoreError, match=r"made by an earlier version.* run 'mllm-selector export'"):
            score_run(run, **options)
    assert score_run(run)["embedding_size"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scored_per_cluster": 0}, "--scored-per-cluster: 0 is too small"),
        ({"scored_per_cluster": 1, "cluster_count": 0}, "--cluster-count: 0 is too small"),
        ({"cluster_count": 5}, "--cluster-count is for --scored-per-cluster"),
        ({"scored_per_cluster": 1, "metrics": "miwv"}, "leave out miwv or --scored-per-cluster"),
        ({"scored_per_cluster": 1, "embedding": "image"}, "embeddings are those of the inputs"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScoreOptions(**options)


def test_more_clusters_than_samples(make_run: Callable[..., Path], score_run: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="5 clusters of 4 samples; ask for at most 4"):
        score_run(make_run(many(4)), scored_per_cluster=1, cluster_count=5)


# The whole run, by the command line


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory before scoring, and one that a single process has scored: ``ready`` and ``whole``."""
    folder = tmp_path_factory.mktemp("drawn")
    ready = exported_run(folder, SAMPLES, pictures=7, words=(9, 5), engine="torch")
    shutil.copytree(ready, folder / "whole")
    run("score", *OPTIONS, *SOME, at=folder / "whole")
    return folder


@pytest.fixture
def ready(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported / "ready", tmp_path / "run")


@pytest.fixture
def scored(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported / "whole", tmp_path / "scored")


def run(*arguments: str, at: Path, code: int = 0) -> None:
    assert cli.main([*arguments, "--run-dir", str(at), "--quiet"]) == code


def test_shards_and_merge_give_the_bytes_of_one_process(exported: Path, ready: Path) -> None:
    for shard in ("2/3", "1/3", "3/3"):
        run("score", "--shard", shard, *OPTIONS, *SOME, at=ready)
    assert len(list(ready.glob("shards/*/embedding-*.arrow"))) == 6
    assert not list(ready.glob("shards/*/part-*.arrow"))
    run("score", "--merge", *OPTIONS, *SOME, at=ready)
    assert parts(ready) == parts(exported / "whole")
    merged, whole = (read_manifest(folder)["score"].counts for folder in (ready, exported / "whole"))
    for name in ("samples", "scored", "drawn", "clusters", "scored_share", "answer_tokens", "parts"):
        assert merged[name] == whole[name]
    assert sum(report["samples"] for report in merged["shards"]) == SAMPLES


DYING = """
import os, signal, sys
import mllm_selector.artifacts as artifacts
left = int(sys.argv.pop(1))
write = artifacts.atomic_write
def dying(path):
    global left
    if path.parent.name == "scores":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return write(path)
artifacts.atomic_write = dying
from mllm_selector import cli
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command line, killed when it is about to write the so-and-so-many-th file of the scores folder."""


def test_kills_in_every_part_of_the_stage(exported: Path, ready: Path) -> None:
    """Among the embeddings, before the clusters, and among the scores."""
    command = ["score", *OPTIONS, *SOME, "--run-dir", str(ready), "--quiet"]
    for writes in (4, 4, 3):
        died = subprocess.run([sys.executable, "-c", DYING, str(writes), *command], check=False)
        assert died.returncode == -signal.SIGKILL
    done = {path.name for path in (ready / "scores").iterdir() if not path.name.startswith(".")}
    assert done == {
        "clusters.arrow",
        *(f"embedding-{index:05d}.arrow" for index in range(6)),
        "part-00000.arrow",
    }
    run("score", *OPTIONS, *SOME, at=ready)
    assert parts(ready) == parts(exported / "whole")


def test_the_choice_is_grouped_sampling_of_the_means(scored: Path) -> None:
    run("pick", "--budget", "25%", at=scored)
    selection = Selection.load(scored)
    made, scores = clusters(scored), ScoreTable.load(scored / "scores")
    means = np.array([np.nanmean(scores.necessity[made.labels == cluster]) for cluster in range(5)])
    filled = means[made.labels].astype(np.float32)
    expected = pick(filled, scores.embeddings, budget=15, groups=made.labels, within="facility-location")
    assert selection.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(selection.necessity, filled[expected], rtol=1e-6)
    assert selection.groups.tolist() == made.labels[expected].tolist()
    counts = read_manifest(scored)["pick"].counts
    assert (counts["measured"], counts["clusters_without"]) == (10, 0)
    assert (counts["candidates"], counts["unscored"]) == (SAMPLES, 0)
    text, healthy = inspect(scored)
    assert healthy
    assert "drawn 10" in text
    assert "measured 10" in text


def test_the_report_tells_measured_from_filled(scored: Path) -> None:
    run("pick", "--budget", "25%", at=scored)
    run("report", at=scored)
    numbers = json.loads((scored / "report.json").read_text())
    assert numbers["drawn"] == {"measured": 10, "clusters": 5, "of_each": 2, "clusters_without": 0}
    assert numbers["unscored_reasons"] == []
    assert numbers["pool_necessity"]["scored"] == SAMPLES
    assert len(numbers["highest"]) == 10
    assert all(item["measured"] for item in numbers["highest"])
    own = ScoreTable.load(scored / "scores").necessity
    for item in numbers["highest"]:
        assert item["necessity"] == pytest.approx(own[item["row"]])
    shown = {item["row"]: item for item in numbers["map_items"]}
    assert any(not item["measured"] for item in shown.values())
    page = (scored / "report.html").read_text()
    assert "Necessity was measured on 10 samples (16.7% of the pool), up to 2 of each of 5 clusters." in page
    assert "not scored: mean of its cluster" in page


@pytest.mark.parametrize("method", ["random", "stratified", "k-center", "semdedup", "coincide", "grouped"])
def test_methods_that_need_no_single_scores_work(scored: Path, method: str) -> None:
    run("pick", "--budget", "12", "--method", method, "--source-floor", "*=50%", at=scored)
    assert len(Selection.load(scored)) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--method top", "--method top: it compares samples by their necessity"),
        ("--method middle", "--method middle: it compares samples by their necessity"),
        ("--method weighted-k-center", "take grouped"),
        ("--method deita", "--method deita: it compares samples by their necessity"),
        ("--method self-filter", "or score every sample in another --run-dir"),
        ("--method top --param by=nll_sum", "by their nll_sum"),
        ("--within top", "--within top: it chooses inside a cluster by necessity"),
        ("--within weighted", "take --within uniform, k-center or facility-location"),
        ("--groups necessity", "--groups necessity: strata need the necessity of each sample"),
        ("--smooth 3", "--smooth: it averages the necessity of neighbours"),
        ("--trim 0.1", "--trim: it leaves out the highest necessity"),
        ("--group-count 4", "score --cluster-count decides their number"),
    ],
)
def test_what_needs_single_scores_is_refused(
    scored: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    capsys.readouterr()
    run("pick", "--budget", "12", *given.split(), at=scored, code=2)
    said = capsys.readouterr().err
    assert message in said
    assert "only some samples of each cluster were scored (--scored-per-cluster)" in said


def test_a_joined_column_has_a_value_for_each_sample(scored: Path, tmp_path: Path) -> None:
    path = tmp_path / "quality.csv"
    path.write_text("id,quality\n" + "".join(f"{row},{row}\n" for row in range(SAMPLES)))
    given = ["--method", "top", "--param", "by=quality", "--scores", str(path)]
    run("pick", "--budget", "12", *given, at=scored)
    assert Selection.load(scored).rows.tolist() == list(range(48, 60))


def test_it_is_refused_before_anything_is_scored(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--images", str(exported / "images"), "--seed-model", str(exported / "model"), "--budget", "5"]
    run("select", str(exported / "pool.json"), *given, *SOME, "--method", "top", at=tmp_path / "run", code=2)
    assert "--method top: it compares samples by their necessity" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_whole_method_in_one_call(exported: Path, ready: Path, scored: Path, tmp_path: Path) -> None:
    """`select` and the single stages end with the same subset; another number of samples is another run."""
    given = {
        "pool": exported / "pool.json",
        "images": exported / "images",
        "seed_model": exported / "model",
        "engine": "torch",
        "budget": "25%",
        "device": "cpu",
        "shard_size": 10,
        "scored_per_cluster": 2,
        "cluster_count": 5,
    }
    stages = ["ingest", "seed", "export", "score", "pick", "report"]
    run_stages(ready, build_options(given, stages))
    run("pick", "--budget", "25%", at=scored)
    assert (ready / "subset.json").read_bytes() == (scored / "subset.json").read_bytes()
    with pytest.raises(UsageError, match="--scored-per-cluster was 2 and is now 3"):
        run_stages(ready, build_options(given | {"scored_per_cluster": 3}, stages))


def test_seed_samples_may_all_be_taken(scored: Path) -> None:
    rows = [1, 30, 59]
    from mllm_selector.artifacts import write_arrow

    with RunDirectory(scored) as held:
        write_arrow(held.seed_rows, pa.table({"row": pa.array(rows, pa.uint64())}))
        held.checksums.seal([held.seed_rows])
    run("pick", "--budget", "12", "--seed-samples", "include", at=scored)
    assert set(rows) <= set(Selection.load(scored).rows.tolist())


def planned(
    exported: Path, capsys: pytest.CaptureFixture[str], *more: str, stage: str = "score"
) -> dict[str, Any]:
    """What `plan` says of a stage, by PyTorch."""
    given = [str(exported / "pool.json"), "--images", str(exported / "images")]
    given += ["--seed-model", str(exported / "model"), "--engine", "torch", "--device", "cpu"]
    capsys.readouterr()
    assert cli.main(["plan", *given, "--budget", "5", "--json", "--quiet", *more]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    return next(each for each in stages if each["stage"] == stage)


def test_the_plan_counts_the_share_that_is_scored(
    exported: Path, scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = planned(exported, capsys, *SOME)
    assert "16.67% of the pool being scored" in some["basis"]
    assert some["seconds"] > 0
    # Records of such a run are rates for another one like it, and none for scoring everything.
    again = planned(exported, capsys, *SOME, "--rates", str(scored))
    assert again["basis"] == f"the records of {scored}"
    whole = planned(exported, capsys, "--rates", str(scored))
    assert whole["basis"].startswith("scoring 60 samples")


def test_the_plan_has_clusters_made_once_in_the_stage_that_makes_them(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = import_module("mllm_selector.planning.look")
    probed: list[int | None] = []
    real = look.probe_pick

    def probe(*arguments: Any) -> Any:
        probed.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(look, "probe_pick", probe)
    assert planned(exported, capsys, *SOME)["basis"].endswith("and making clusters of made-up samples")
    assert "clusters" not in planned(exported, capsys)["basis"]
    assert probed == [5, None]


def test_a_method_of_single_scores_may_average_its_column() -> None:
    """PreSel means the relevance of a task over the samples that have one."""
    from mllm_selector import methods

    methods.check_estimated(PickOptions(budget="5", method="presel"), {"necessity", "ifd"})
    with pytest.raises(UsageError, match="by their visnec"):
        methods.check_estimated(PickOptions(budget="5", method="visnec"), {"necessity", "visnec"})

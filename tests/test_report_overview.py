"""Map, coverage, near-duplicates and further scores of the report, against NumPy on all rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_selector import _internal
from mllm_selector.config import ReportOptions
from mllm_selector.errors import UsageError
from mllm_selector.progress import SilentProgress
from mllm_selector.reporting.overview import Embedded
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import report
from report_fixtures import FURTHER


@pytest.fixture(scope="module")
def told(report_run: Path) -> dict:
    with RunDirectory(report_run) as run:
        report.run(run, ReportOptions(hourly_price=3.6), SilentProgress())
        return json.loads(run.report_numbers.read_text())


@pytest.fixture(scope="module")
def scores(report_run: Path) -> dict[str, np.ndarray]:
    parts = []
    for path in sorted((report_run / "scores").iterdir()):
        with pa.ipc.open_file(path) as file:
            parts.append(file.read_all())
    table = pa.concat_tables(parts)
    columns = {name: table[name].to_numpy() for name in ("nll", *FURTHER)}
    columns["necessity"] = columns.pop("nll")
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float64)
    with pa.ipc.open_file(report_run / "selection.arrow") as file:
        selection = file.read_all()
    order = np.argsort(selection["order"].to_numpy())
    return columns | {"vectors": vectors, "chosen": selection["row"].to_numpy().astype(int)[order]}


def cosines(scores: dict[str, np.ndarray]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        unit = scores["vectors"] / np.linalg.norm(scores["vectors"], axis=1, keepdims=True)
    return unit @ unit.T


def test_the_map_counts_all_scored_samples_and_shows_some(told, scores):
    drawn = told["map"]
    scored = ~np.isnan(scores["necessity"])
    assert len(drawn["counts"]) == drawn["columns"] * drawn["rows"]
    assert sum(drawn["counts"]) == scored.sum()
    assert sum(drawn["chosen"]) == scored[scores["chosen"]].sum()
    rows = [point["row"] for point in drawn["points"]]
    assert rows == sorted(set(rows)) == [item["row"] for item in told["map_items"]]
    assert set(scores["chosen"]) & set(rows) == set(scores["chosen"][scored[scores["chosen"]]])
    assert 1000 <= len(rows) <= 1500
    assert all(0 <= point[axis] <= 1 for point in drawn["points"] for axis in "xy")
    assert all((point["group"] is None) != (point["row"] in scores["chosen"]) for point in drawn["points"])


def test_the_map_lies_along_the_principal_axes(told, scores):
    vectors = scores["vectors"][~np.isnan(scores["necessity"])]
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.svd(centred, full_matrices=False)[1:]
    assert told["map"]["variance"] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-3)
    rows = [point["row"] for point in told["map"]["points"]]
    places = (scores["vectors"][rows] - vectors.mean(axis=0)) @ axes[:2].T
    for axis, name in enumerate("xy"):
        shown = [point[name] for point in told["map"]["points"]]
        assert abs(np.corrcoef(places[:, axis], shown)[0, 1]) > 0.99


def test_coverage_is_the_distance_to_the_nearest_chosen(told, scores):
    coverage = told["coverage"]
    scored = np.flatnonzero(~np.isnan(scores["necessity"]))
    assert coverage["references"] == len(scored), "of a small pool, every sample is measured"
    similar = cosines(scores)
    own = [count for count in coverage["counts"] if count <= told["chosen"]]
    assert own[-1] == told["chosen"]
    assert coverage["counts"][-1] == 4 * told["chosen"]
    for place, count in enumerate(own):
        nearest = 1 - similar[np.ix_(scored, scores["chosen"][:count])].max(axis=1)
        expected = np.quantile(np.maximum(nearest, 0.0), [0.5, 0.95])
        assert [coverage["median"][place], coverage["p95"][place]] == pytest.approx(expected, abs=2e-6)
    for name in ("median", "p95", "random_median", "random_p95"):
        assert coverage[name] == sorted(coverage[name], reverse=True), "more samples are never farther"


def test_near_duplicates_are_those_of_all_pairs(told, scores):
    found = told["duplicates"]
    scored = np.flatnonzero(~np.isnan(scores["necessity"]))
    similar = cosines(scores)
    np.fill_diagonal(similar, -1)
    near = similar[np.ix_(scored, scored)] >= found["cosine"]
    assert (found["pool"], found["pool_near"]) == (len(scored), near.any(axis=1).sum())
    own = similar[np.ix_(scores["chosen"], scores["chosen"])] >= found["cosine"]
    assert (found["chosen"], found["chosen_near"]) == (len(own), own.any(axis=1).sum())
    counts = dict(zip(scored.tolist(), near.sum(axis=1).tolist(), strict=True))
    assert found["sets"][0]["count"] == max(counts.values())
    shown: list[int] = []
    for number, one in enumerate(found["sets"]):
        assert one["count"] == counts[one["row"]]
        assert one["cosines"] == sorted(one["cosines"], reverse=True)
        assert one["cosines"] == pytest.approx(similar[one["row"], one["nearest"]].tolist(), abs=1e-4)
        assert one["cosines"][0] == pytest.approx(similar[one["row"]][scored].max(), abs=1e-4)
        assert [item["row"] for item in told["duplicate_items"][number]] == [one["row"], *one["nearest"]]
        shown += [one["row"], *one["nearest"]]
    assert len(shown) == len(set(shown))


def test_further_scores_are_told_without_being_known(told, scores):
    assert [score["name"] for score in told["scores"]] == list(FURTHER)
    for score in told["scores"]:
        values = scores[score["name"]].astype(np.float64)
        assert score["pool"]["mean"] == pytest.approx(values.mean())
        assert score["chosen"]["mean"] == pytest.approx(values[scores["chosen"]].mean())
    for item in told["highest"]:
        assert item["scores"] == {name: pytest.approx(scores[name][item["row"]]) for name in FURTHER}


def test_stages_cost_what_the_machine_costs(told):
    for stage in told["stages"]:
        assert stage["cost"] == pytest.approx(stage["seconds"] * 3.6 / 3600)
    assert {stage["stage"]: stage["samples"] for stage in told["stages"]}["ingest"] == told["read"]


def embedded(vectors: np.ndarray, chosen: list[int]) -> Embedded:
    return Embedded([vectors], np.ones(len(vectors), dtype=bool), np.array(chosen, dtype=np.int64))


def test_the_smallest_pools():
    one = np.ones((1, 4), dtype=np.float16)
    assert embedded(one, [0]).map({}) is None
    assert embedded(one, []).coverage() is None
    assert embedded(one, [0]).coverage().median == [0.0]
    same = np.ones((5, 4), dtype=np.float16)
    flat = embedded(same, [1]).map({1: 0})
    assert (flat.variance, sum(flat.counts)) == (0.0, 5)
    assert embedded(same, [1]).duplicates(0.98, 2).pool_near == 5
    assert embedded(one, [0]).duplicates(0.98, 2).sets == []


def test_a_large_pool_is_measured_on_samples(monkeypatch):
    monkeypatch.setattr("mllm_selector.reporting.overview.MOST_PRODUCTS", 1e6)
    vectors = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float16)
    some = embedded(vectors, list(range(0, 4000, 10)))
    assert some.coverage().references == 50
    found = some.duplicates(0.9, 3)
    assert (found.pool, found.chosen) == (50, 312)


@given(st.integers(1, 400), st.integers(1, 70), st.integers(0, 9), st.floats(0.05, 1.0))
def test_near_rows_are_those_of_numpy(n, d, seed, threshold):
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((n, d)).astype(np.float32)
    vectors[n // 2 :] = vectors[: n - n // 2]
    queries = np.sort(random.permutation(n)[: max(1, n // 3)]).astype(np.int64)
    parts = [vectors[: n // 3], vectors[n // 3 :]] if n > 2 else [vectors]
    counts, nearest = _internal.near_rows(
        parts, None, queries=queries, threshold=threshold, keep=3, progress=None
    )
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similar = unit[queries] @ unit.T
    similar[np.arange(len(queries)), queries] = -2
    sure = (np.abs(similar - threshold) > 1e-5).all(axis=1)
    assert np.array_equal(counts[sure], (similar >= threshold).sum(axis=1)[sure])
    for place in np.flatnonzero(sure):
        rows, values = nearest[place]
        expected = np.sort(similar[place])[::-1][: min(3, counts[place])]
        assert values == pytest.approx(expected, abs=1e-5)
        assert similar[place, rows] == pytest.approx(expected, abs=1e-5)


def test_wrong_arguments_are_named():
    vectors = np.eye(4, dtype=np.float32)
    rows = np.arange(2, dtype=np.int64)
    with pytest.raises(UsageError, match="counts"):
        _internal.coverage([vectors], reference=rows, centres=rows, counts=rows, progress=None)
    with pytest.raises(UsageError, match="row 4"):
        _internal.coverage([vectors], reference=rows + 3, centres=rows, counts=rows[1:], progress=None)
    with pytest.raises(UsageError, match="threshold"):
        _internal.near_rows([vectors], None, queries=rows, threshold=1.5, keep=1, progress=None)

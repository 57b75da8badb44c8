"""Near-duplicates, nearest neighbours and facility location on arrays, against plain NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from array_fixtures import ExportedArray, clusters, fixed_lists, grids, without_zero_rows
from mllm_selector.errors import UsageError
from mllm_selector.neighbours import (
    Neighbours,
    facility_location,
    near_duplicates,
    nearest_neighbours,
)

NONE = np.iinfo(np.uint32).max


def canonical_cosines(X):
    """Cosines of all pairs from the package's own dot product, so that ties are ties."""
    X = np.asarray(X, np.float32)
    dots = np.stack([reference.dot(X, row) for row in X]).astype(np.float64)
    squares = dots.diagonal()
    return dots / np.sqrt(np.outer(squares, squares))


def exact_graph(X, k):
    """The k nearest by `canonical_cosines`, ties to the lowest row."""
    scores = canonical_cosines(X).astype(np.float32)
    np.fill_diagonal(scores, -np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


class TestNearDuplicates:
    @pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
    def test_equals_plain_loop(self, threshold):
        X = clusters(3500, 24, centres=300, spread=0.2)
        found = near_duplicates(X, threshold, pairs=True)
        np.testing.assert_array_equal(found.representatives, reference.near_duplicates(X, threshold))
        unit = X.astype(np.float64) / np.linalg.norm(X, axis=1, keepdims=True)
        expected = np.argwhere(np.triu(unit @ unit.T >= threshold, 1))
        np.testing.assert_array_equal(found.pairs, expected)
        assert 0 < len(found.kept) < len(X)
        np.testing.assert_array_equal(near_duplicates(X, threshold).representatives, found.representatives)

    def test_priority_decides_who_is_kept(self):
        X = clusters(2000, 16, centres=100, spread=0.2)
        priority = np.random.default_rng(0).permutation(len(X))
        found = near_duplicates(X, 0.9, priority=priority)
        np.testing.assert_array_equal(found.representatives, reference.near_duplicates(X, 0.9, priority))
        by_pairs = near_duplicates(X, 0.9, priority=priority, pairs=True)
        np.testing.assert_array_equal(by_pairs.representatives, found.representatives)

    @given(grids, st.floats(0.05, 1.0))
    @settings(deadline=None)
    def test_equal_rows_are_duplicates_at_any_threshold(self, X, threshold):
        X = without_zero_rows(X)
        representatives = near_duplicates(np.concatenate([X, X[::-1]]), threshold).representatives
        np.testing.assert_array_equal(representatives[len(X) :], representatives[: len(X)][::-1])
        assert (representatives < len(X)).all()

    @given(grids, st.floats(0.05, 1.0), st.data())
    @settings(deadline=None)
    def test_pairs_and_representatives_agree(self, X, threshold, data):
        X = without_zero_rows(X)
        priority = data.draw(st.permutations(range(len(X))))
        plain = near_duplicates(X, threshold, priority=priority)
        found = near_duplicates(X, threshold, priority=priority, pairs=True)
        np.testing.assert_array_equal(found.representatives, plain.representatives)
        near = canonical_cosines(X) >= threshold
        np.testing.assert_array_equal(found.pairs, np.argwhere(np.triu(near, 1)))
        assert plain.pairs is None

    def test_probes_make_up_no_pair_and_miss_some(self):
        X = clusters(9000, 8, centres=60, spread=0.3)
        exact = near_duplicates(X, 0.97, pairs=True)
        some = near_duplicates(X, 0.97, pairs=True, probes=1)
        codes = [found.pairs @ [len(X), 1] for found in (exact, some)]
        assert np.isin(codes[1], codes[0]).all()
        assert 0.3 * len(codes[0]) < len(codes[1]) < len(codes[0])
        # Every row is near the one that stands for it, and more are kept than need be.
        pairs = {tuple(pair) for pair in some.pairs.tolist()}
        stands = [(other, row) for row, other in enumerate(some.representatives.tolist()) if other != row]
        assert {tuple(sorted(pair)) for pair in stands} <= pairs
        assert len(some.kept) > len(exact.kept)
        many = near_duplicates(X, 0.97, pairs=True, probes=1000)
        np.testing.assert_array_equal(many.pairs, exact.pairs)
        np.testing.assert_array_equal(many.representatives, exact.representatives)

    @pytest.mark.parametrize("pairs", [False, True])
    @pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
    def test_wrong_threshold(self, threshold, pairs):
        with pytest.raises(UsageError, match="threshold"):
            near_duplicates(clusters(10, 4), threshold, pairs=pairs)

    @pytest.mark.parametrize("pairs", [False, True])
    @pytest.mark.parametrize("priority", [[0, 1], [0] * 10, list(range(1, 11)), [*range(10), 0]])
    def test_wrong_priority(self, priority, pairs):
        with pytest.raises(UsageError, match="each of the 10 rows once"):
            near_duplicates(clusters(10, 4), 0.9, priority=priority, pairs=pairs)

    def test_wrong_probes(self):
        with pytest.raises(UsageError, match="without pairs all rows are compared"):
            near_duplicates(clusters(10, 4), 0.9, probes=2)
        with pytest.raises(UsageError, match="probes: 0 is not a whole number"):
            near_duplicates(clusters(10, 4), 0.9, pairs=True, probes=0)


class TestNearestNeighbours:
    @pytest.mark.parametrize("k", [1, 10, 60])
    @pytest.mark.parametrize("d", [3, 64, 100])
    @pytest.mark.parametrize("kind", ["clusters", "normal", "copies"])
    def test_equals_plain_search(self, kind, d, k):
        X = clusters(500, d) if kind != "normal" else np.random.default_rng(0).normal(size=(500, d))
        X = X.astype(np.float32)
        if kind == "copies":
            X[100:300] = X[np.random.default_rng(1).integers(100, size=200)]
        graph = nearest_neighbours(X, k)
        rows, cosines = exact_graph(X, k)
        np.testing.assert_array_equal(graph.rows, rows)
        np.testing.assert_array_equal(graph.cosines, cosines)
        np.testing.assert_allclose(graph.cosines, reference.nearest_neighbours(X, k)[1], atol=3e-6)
        assert graph.recall is None
        assert graph.rows.dtype == np.uint32

    @given(grids, st.data())
    @settings(deadline=None)
    def test_properties(self, X, data):
        X = without_zero_rows(X)
        X = np.concatenate([X, X[: data.draw(st.integers(1, len(X)))]])
        k = data.draw(st.integers(1, len(X) - 1))
        rows, cosines = exact_graph(X, k)
        graph = nearest_neighbours(X, k)
        np.testing.assert_array_equal(graph.rows, rows)
        np.testing.assert_array_equal(graph.cosines, cosines)
        fewer = nearest_neighbours(X, max(1, k - 1))
        np.testing.assert_array_equal(fewer.rows, graph.rows[:, : max(1, k - 1)])

    def test_length_does_not_matter(self):
        X = clusters(400, 20)
        lengths = 2.0 ** np.random.default_rng(0).integers(-9, 10, size=(len(X), 1))
        short, long = nearest_neighbours(X, 7), nearest_neighbours((X * lengths).astype(np.float32), 7)
        np.testing.assert_array_equal(short.rows, long.rows)

    def test_beyond_one_block_of_rows(self):
        X = clusters(9500, 12, centres=300)
        X[5000:5500] = X[:500]
        graph = nearest_neighbours(X, 8)
        asked = np.r_[0:40, 5000:5040, 9460:9500]
        for row in asked:
            scores = cosines_of(X, row)
            expected = np.argsort(-scores, kind="stable")[:8]
            np.testing.assert_array_equal(graph.rows[row], expected)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_arrow(self, dtype):
        X = clusters(700, 20).astype(dtype)
        graph = nearest_neighbours(X, 5)
        column = ExportedArray(fixed_lists(X))
        np.testing.assert_array_equal(nearest_neighbours(column, 5).rows, graph.rows)
        np.testing.assert_array_equal(nearest_neighbours([X[:7], fixed_lists(X[7:])], 5).rows, graph.rows)

    @pytest.mark.parametrize("probes", [1, 2])
    def test_recall_is_what_brute_force_finds(self, probes):
        X = clusters(13_000, 16, centres=40, spread=0.5)
        k = 10
        exact = nearest_neighbours(X, k)
        some = nearest_neighbours(X, k, probes=probes)
        for row in range(0, len(X), 1000):
            scores = cosines_of(X, row)
            np.testing.assert_array_equal(some.cosines[row], scores[some.rows[row]])
            assert len({row, *some.rows[row].tolist()}) == k + 1
            np.testing.assert_array_equal(exact.cosines[row], -np.sort(-scores)[:k])
        assert (np.diff(some.cosines, axis=1) <= 0).all()
        share = (some.cosines >= exact.cosines[:, -1:]).mean()
        assert share < 0.99
        assert some.recall == pytest.approx(share, abs=0.03)

    def test_probes_of_all_blocks_find_all(self):
        X = clusters(9000, 16, centres=40)
        exact, found = nearest_neighbours(X, 6), nearest_neighbours(X, 6, probes=50)
        np.testing.assert_array_equal(found.rows, exact.rows)
        np.testing.assert_array_equal(found.cosines, exact.cosines)
        assert found.recall == 1

    def test_where_too_few_rows_are_compared(self):
        X = clusters(4200, 6)
        graph = nearest_neighbours(X, 200, probes=1)
        missing = graph.rows == NONE
        assert missing.any(axis=1).any()
        np.testing.assert_array_equal(missing, np.isneginf(graph.cosines))
        assert graph.recall < 1
        found = facility_location(None, 10, neighbours=graph)
        gains, greatest = replay(graph, found.rows)
        np.testing.assert_allclose(found.gains, gains, rtol=1e-5)
        np.testing.assert_allclose(found.gains, greatest, rtol=1e-5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 10}, "k: 10 neighbours of 10 rows; give at least 1 and fewer than there are rows"),
            ({"k": 0}, "k: 0 is not a whole number of at least 1"),
            ({"X": clusters(1, 4), "k": 1}, "1 neighbours of 1 rows"),
            ({"X": np.empty((0, 4), np.float32), "k": 1}, "1 neighbours of 0 rows"),
            ({"probes": 0}, "probes: 0"),
            ({"probes": 1.5}, "probes: 1.5"),
            ({"threads": 0}, "threads: 0"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        with pytest.raises(UsageError, match=message):
            nearest_neighbours(**{"X": clusters(10, 4), "k": 3, **change})


def cosines_of(X, row):
    """Canonical cosines of a row with all rows, minus infinity with itself."""
    squares = reference.squared_norms(X).astype(np.float64)
    dots = reference.dot(X, X[row]).astype(np.float64)
    scores = (dots / np.sqrt(squares * squares[row])).astype(np.float32)
    scores[row] = -np.inf
    return scores


def replay(graph, chosen, weights=None):
    """Gain of each chosen row, and the greatest gain that any row had then, in float64."""
    n = len(graph.rows)
    similarities = np.eye(n)
    there = graph.rows != NONE
    similarities[np.nonzero(there)[0], graph.rows[there]] = np.maximum(graph.cosines[there], 0)
    factors = np.ones(n) if weights is None else weights
    covered = np.zeros(n)
    gains, greatest = [], []
    for place, row in enumerate(chosen):
        added = factors @ np.maximum(similarities - covered[:, None], 0)
        added[chosen[:place]] = 0
        gains.append(added[row])
        greatest.append(added.max())
        covered = np.maximum(covered, similarities[:, row])
    return np.array(gains), np.array(greatest)


class TestFacilityLocation:
    @pytest.mark.parametrize("neighbours", [1, 10, 499])
    @pytest.mark.parametrize("kind", ["clusters", "normal"])
    def test_equals_plain_greedy(self, kind, neighbours):
        X = clusters(500, 16) if kind == "clusters" else np.random.default_rng(0).normal(size=(500, 16))
        X = X.astype(np.float32)
        graph = nearest_neighbours(X, neighbours)
        found = facility_location(X, 80, neighbours=neighbours)
        rows, gains = reference.facility_location(graph.rows, graph.cosines, 80)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.gains, gains, atol=1e-5)
        assert found.value == pytest.approx(gains.sum(), abs=1e-4)
        given_graph = facility_location(None, 80, neighbours=graph)
        np.testing.assert_array_equal(given_graph.rows, found.rows)
        np.testing.assert_array_equal(given_graph.gains, found.gains)
        np.testing.assert_array_equal(facility_location(X, 80, neighbours=graph).rows, found.rows)

    def test_weighted_equals_plain_greedy(self):
        X = clusters(600, 12)
        weights = np.random.default_rng(1).exponential(size=len(X)).astype(np.float32)
        weights[:100] = 0
        graph = nearest_neighbours(X, 20)
        found = facility_location(X, 60, neighbours=20, weights=weights)
        rows, gains = reference.facility_location(graph.rows, graph.cosines, 60, weights=weights)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.gains, gains, rtol=1e-5)

    @given(grids, st.data())
    @settings(deadline=None)
    def test_properties(self, X, data):
        X = without_zero_rows(X)
        n = len(X)
        k, count = data.draw(st.integers(1, n)), data.draw(st.integers(1, 40))
        weights = data.draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=n, max_size=n))
        weights = None if weights is None else np.array(weights)
        full = facility_location(X, n, neighbours=count, weights=weights)
        prefix = facility_location(X, k, neighbours=count, weights=weights)
        assert sorted(full.rows) == list(range(n))
        np.testing.assert_array_equal(prefix.rows, full.rows[:k])
        np.testing.assert_array_equal(prefix.gains, full.gains[:k])
        assert (np.diff(full.gains) <= 0).all()
        assert full.value == pytest.approx(n if weights is None else weights.sum(), abs=1e-4)
        if n == 1:
            return
        # Sums in another order may tell equal gains apart, so which of them came first is not compared.
        graph = nearest_neighbours(X, min(count, n - 1))
        gains, greatest = replay(graph, full.rows, weights)
        np.testing.assert_allclose(full.gains, gains, atol=1e-4)
        np.testing.assert_allclose(full.gains, greatest, atol=1e-4)

    @given(grids.filter(lambda X: 1 < len(X) < 9), st.integers(1, 3))
    @settings(deadline=None)
    def test_value_is_near_the_greatest(self, X, k):
        X = without_zero_rows(X)
        k = min(k, len(X))
        similarities = np.maximum(reference.cosines(X), 0)
        value = [similarities[:, list(rows)].max(axis=1).sum() for rows in choices(len(X), k)]
        found = facility_location(X, k, neighbours=len(X))
        assert found.value == pytest.approx(similarities[:, found.rows].max(axis=1).sum(), abs=1e-4)
        assert found.value >= (1 - 1 / np.e) * max(value) - 1e-4

    def test_copies_go_to_the_lowest_row(self):
        X = np.tile(np.eye(3, dtype=np.float32), (4, 1))
        found = facility_location(X, 12, neighbours=11)
        assert found.rows.tolist() == list(range(12))
        np.testing.assert_array_equal(found.gains, [4] * 3 + [0] * 9)

    def test_negative_cosines_cover_nothing(self):
        X = np.array([[1, 0], [-1, 0], [-1, 0.1]], np.float32)
        found = facility_location(X, 3)
        assert found.rows.tolist() == [1, 0, 2]
        assert found.gains[1] == 1

    def test_one_row(self):
        found = facility_location(clusters(1, 4), 1)
        assert (found.rows.tolist(), found.value) == ([0], 1.0)

    def test_graph_from_elsewhere(self):
        # In any order, in other types, with gaps, and a cosine that float16 rounded up.
        rows = np.array([[2, 1], [0, NONE], [NONE, 0], [0, 2]], np.int64)
        cosines = np.array([[0.2, 0.9], [0.9, -np.inf], [-np.inf, 0.2], [1.0005, -0.5]])
        found = facility_location(None, 4, neighbours=Neighbours(rows, cosines))
        assert found.rows.tolist() == [0, 2, 1, 3]
        np.testing.assert_allclose(found.gains, [3.1, 0.8, 0.1, 0], atol=1e-6)

    def test_probes(self):
        X = clusters(9000, 16, centres=40, spread=0.5)
        graph = nearest_neighbours(X, 10, probes=1)
        found = facility_location(X, 50, neighbours=10, probes=1)
        np.testing.assert_array_equal(facility_location(None, 50, neighbours=graph).rows, found.rows)
        assert found.value < facility_location(X, 50, neighbours=10).value

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 0}, "k: 0 is not"),
            ({"k": 11}, "k: 11 rows were asked for of 10; give at least 1 and at most 10"),
            ({"neighbours": 0}, "neighbours: 0 is not"),
            ({"neighbours": "many"}, "neighbours: 'many' is not"),
            ({"X": None}, "X: there are no rows; give them, or a graph"),
            ({"weights": np.ones(9)}, "weights: 9 were given for 10 rows"),
            ({"weights": [np.nan] + [1.0] * 9}, "weights: NaN of row 0"),
            ({"weights": [1.0] * 9 + [-1.0]}, "weights: -1 of row 9"),
            (
                {"weights": 1.0},
                r"weights: give numbers in a one-dimensional array, not float64 of shape \(\)",
            ),
            ({"probes": 0}, "probes: 0 is not"),
            ({"threads": 0}, "threads: 0 is not"),
            ({"X": np.empty((0, 4), np.float32)}, "k: 3 rows were asked for of 0"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        with pytest.raises(UsageError, match=message):
            facility_location(**{"X": clusters(10, 4), "k": 3, **change})

    rows = (np.arange(10)[:, None] + [1, 2]) % 10
    cosines = np.tile([0.9, 0.8], (10, 1))
    ring = Neighbours(rows, cosines)

    @pytest.mark.parametrize(
        ("rows", "cosines", "message"),
        [
            (rows[:, 0], cosines[:, 0], r"shape \(10,\)"),
            (rows, cosines[:, :1], r"cosines of shape \(10, 1\)"),
            (rows[:, :0], cosines[:, :0], r"shape \(10, 0\)"),
            (rows / 1, cosines, "rows are float64"),
            (
                rows - 10,
                cosines,
                "row -9 is not one of the 10 rows; where",
            ),
            (rows + 2**33, cosines, "is not one of the 10 rows"),
            (rows + 10, cosines, "row 0 lists row 11, but there are 10 rows"),
            (rows * 0, cosines, "row 0 lists itself; leave it out"),
            (rows[:, [0, 0]], cosines, "row 0 lists row 1 twice"),
            (rows, cosines + 1, "which is no cosine; give numbers from -1 to 1"),
            (rows, cosines * np.nan, "with NaN, which is no cosine"),
        ],
    )
    def test_wrong_graph(self, rows, cosines, message):
        with pytest.raises(UsageError, match=f"neighbours: .*{message}"):
            facility_location(None, 3, neighbours=Neighbours(rows, cosines))

    def test_graph_and_rows_must_fit(self):
        with pytest.raises(UsageError, match="9 rows for 10 samples"):
            facility_location(clusters(9, 4), 3, neighbours=self.ring)
        with pytest.raises(UsageError, match="so nothing is searched; leave probes out"):
            facility_location(None, 3, neighbours=self.ring, probes=2)


def choices(n, k):
    """Every choice of k rows."""
    return itertools.combinations(range(n), k)

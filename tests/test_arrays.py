"""k-center and k-means against plain NumPy and scikit-learn; what all functions on arrays share."""

from __future__ import annotations

import signal
import struct
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import reference
from array_fixtures import (
    ExportedArray,
    ExportedChunks,
    clusters,
    fixed_lists,
    grids,
    metrics,
    without_zero_rows,
)
from mllm_selector.arrays import k_center, kmeans, pick
from mllm_selector.checks import matrix_parts
from mllm_selector.errors import UsageError
from mllm_selector.neighbours import facility_location, near_duplicates, nearest_neighbours


class TestKCenter:
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("d", [3, 64, 100])
    def test_equals_one_pass_per_centre(self, metric, d):
        X = clusters(700, d)
        cover = k_center(X, 40, metric=metric)
        rows, radii = reference.k_center(X, 40, metric=metric)
        np.testing.assert_array_equal(cover.rows, rows)
        np.testing.assert_array_equal(cover.radii, radii)

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_equals_one_pass_per_centre_beyond_the_pool(self, metric):
        # More rows than the pool of candidates holds, so that rows outside are brought up to date.
        X = clusters(6000, 24, centres=200)
        X = np.concatenate([X, X[:500]])
        cover = k_center(X, 150, metric=metric, first=[6100, 3])
        rows, radii = reference.k_center(X, 150, first=[6100, 3], metric=metric)
        np.testing.assert_array_equal(cover.rows, rows)
        np.testing.assert_array_equal(cover.radii, radii)

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_weighted_equals_one_pass_per_centre(self, metric):
        X = clusters(5000, 16, centres=100)
        weights = np.random.default_rng(1).exponential(size=len(X)).astype(np.float32)
        cover = k_center(X, 60, metric=metric, weights=weights)
        rows, radii = reference.k_center(X, 60, metric=metric, weights=weights)
        np.testing.assert_array_equal(cover.rows, rows)
        np.testing.assert_allclose(cover.radii, radii, rtol=1e-6)

    @given(grids, metrics, st.data())
    @settings(deadline=None)
    def test_properties(self, X, metric, data):
        X = without_zero_rows(X) if metric == "cosine" else X
        k = data.draw(st.integers(1, len(X)))
        full = k_center(X, len(X), metric=metric)
        prefix = k_center(X, k, metric=metric)
        assert sorted(full.rows) == list(range(len(X)))
        np.testing.assert_array_equal(prefix.rows, full.rows[:k])
        np.testing.assert_array_equal(prefix.radii, full.radii[:k])
        assert (np.diff(full.radii) <= 0).all()
        assert full.radii[-1] == 0
        rows, _ = reference.k_center(X, len(X), metric=metric)
        np.testing.assert_array_equal(full.rows, rows)

    @given(grids, st.data())
    @settings(deadline=None)
    def test_given_first_rows_come_first(self, X, data):
        first = data.draw(st.lists(st.integers(0, len(X) - 1), min_size=1, max_size=4, unique=True))
        k = data.draw(st.integers(len(first), len(X)))
        rows, radii = reference.k_center(X, k, first=first)
        cover = k_center(X, k, first=first)
        np.testing.assert_array_equal(cover.rows, rows)
        np.testing.assert_array_equal(cover.radii, radii)

    def test_first_mean_is_the_row_nearest_the_mean(self):
        X = clusters(300, 12)
        nearest = np.linalg.norm(X - X.mean(axis=0, dtype=np.float64), axis=1).argmin()
        assert k_center(X, 1, first="mean").rows[0] == nearest

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 0}, "k: 0"),
            ({"k": 11}, "11 centres were asked for of 10 rows"),
            ({"first": 10}, "row 10 is not one of the 10"),
            ({"first": [1, 1]}, "row 1 is given twice"),
            ({"first": "nearest"}, "neither 'mean'"),
            ({"first": []}, "0 rows were given"),
            ({"metric": "manhattan"}, "not one of euclidean, cosine"),
            ({"weights": np.ones(9)}, "9 were given for 10 rows"),
            ({"weights": [-1.0] + [1.0] * 9}, "-1 of row 0"),
            ({"weights": np.ones((10, 1))}, r"not float64 of shape \(10, 1\)"),
            ({"weights": ["much"] * 10}, "weights: give numbers"),
            ({"threads": 0}, "threads: 0"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        with pytest.raises(UsageError, match=message):
            k_center(**{"X": clusters(10, 4), "k": 3, **change})


class TestKMeans:
    @pytest.mark.parametrize("k", [3, 20, 70])
    def test_result_is_a_fixed_point_of_lloyd(self, k):
        X = clusters(2000, 16)
        found = kmeans(X, k, tolerance=0, max_iterations=300)
        labels, squares = reference.assign(X, found.centroids)
        # Where two centroids are equally near, float32 may decide otherwise than float64.
        gaps = np.abs(((X - found.centroids[found.labels]) ** 2).sum(axis=1) - squares)
        assert (found.labels == labels).mean() > 0.999
        assert gaps.max() < 1e-5
        assert found.inertia == pytest.approx(squares.sum(), rel=1e-5)
        np.testing.assert_allclose(found.centroids, reference.lloyd(X, found.centroids, 1), atol=1e-5)
        assert found.iterations < 300

    def test_inertia_is_as_good_as_that_of_scikit_learn(self):
        X = clusters(4000, 24, centres=60)
        ours = [kmeans(X, 50, seed=seed).inertia for seed in range(5)]
        theirs = [
            KMeans(50, init="k-means++", n_init=1, max_iter=25, random_state=seed).fit(X).inertia_
            for seed in range(5)
        ]
        assert np.mean(ours) < 1.03 * np.mean(theirs)

    def test_cosine_ignores_length(self):
        X = clusters(1000, 16)
        lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, size=(len(X), 1))
        short, long = (
            kmeans(X, 12, metric="cosine"),
            kmeans((X * lengths).astype(np.float32), 12, metric="cosine"),
        )
        np.testing.assert_array_equal(short.labels, long.labels)
        np.testing.assert_allclose(np.linalg.norm(short.centroids, axis=1), 1, rtol=1e-6)
        unit = X / np.linalg.norm(X, axis=1, keepdims=True)
        cosines = (unit * short.centroids[short.labels]).sum(axis=1)
        assert short.inertia == pytest.approx((1 - cosines).sum(), rel=1e-4)

    @given(grids, metrics, st.data())
    @settings(deadline=None)
    def test_properties(self, X, metric, data):
        X = without_zero_rows(X) if metric == "cosine" else X
        k = data.draw(st.integers(1, len(X)))
        found = kmeans(X, k, metric=metric, seed=data.draw(st.integers(0, 2**64 - 1)))
        distinct = len(np.unique(X, axis=0))
        count = len(found.centroids)
        assert sorted(set(found.labels)) == list(range(count))
        assert count <= min(k, distinct)
        if metric == "euclidean":
            # On these rows distances are exact, so only too few distinct rows may lower the count.
            assert count == min(k, distinct)
            assert found.inertia == pytest.approx(reference.assign(X, found.centroids)[1].sum(), abs=1e-4)

    def test_emptied_clusters_are_repaired(self):
        # Many copies of few rows and some outliers: plain Lloyd's iterations lose clusters here.
        rng = np.random.default_rng(3)
        X = np.concatenate([np.repeat(rng.normal(size=(5, 4)), 50, axis=0), rng.normal(size=(40, 4)) * 3])
        for seed in range(20):
            found = kmeans(X.astype(np.float32), 30, seed=seed, tolerance=0)
            assert np.bincount(found.labels, minlength=30).min() > 0

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("train_rows", [None, 3000])
    def test_fewer_distinct_rows_than_clusters(self, metric, train_rows):
        # So many that seeding and the first iterations see samples; as many distinct rows as clusters result.
        rng = np.random.default_rng(0)
        distinct = rng.normal(size=(7, 5)).astype(np.float32)
        for count in (1, 7):
            labels = rng.integers(count, size=20_000)
            found = kmeans(distinct[labels], 20, metric=metric, train_rows=train_rows)
            assert len(found.centroids) == count
            assert found.inertia == pytest.approx(0, abs=1e-2)
            expected = np.unique(labels, return_index=True)[1]
            np.testing.assert_array_equal(found.labels, found.labels[expected][labels])

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_rows_that_no_sample_has_get_clusters_of_their_own(self, metric):
        rng = np.random.default_rng(1)
        X = np.tile(rng.normal(size=5), (20_000, 1)).astype(np.float32)
        rare = [3, 4321, 8000, 15_000, 19_999]
        X[rare] = rng.normal(size=(5, 5))
        for seed in range(5):
            found = kmeans(X, 6, metric=metric, seed=seed)
            assert len(found.centroids) == 6
            assert np.bincount(found.labels).tolist().count(1) == 5
            assert len(set(found.labels[rare])) == 5

    def test_row_that_cannot_be_used_is_found_outside_of_every_sample(self):
        X = clusters(20_000, 5)
        X[12_345] = 0
        assert len(kmeans(X, 3).centroids) == 3
        with pytest.raises(UsageError, match="row 12345 is zero"):
            kmeans(X, 3, metric="cosine", train_rows=100)
        X[12_345, 1] = np.nan
        for metric in ("euclidean", "cosine"):
            with pytest.raises(UsageError, match="row 12345 holds NaN, infinity"):
                kmeans(X, 3, metric=metric, train_rows=100)

    def test_training_sample(self):
        X = clusters(5000, 16, centres=10)
        whole, part = kmeans(X, 10), kmeans(X, 10, train_rows=1000)
        assert len(part.labels) == len(X)
        assert part.inertia == pytest.approx(reference.assign(X, part.centroids)[1].sum(), rel=1e-4)
        assert part.inertia < 1.5 * whole.inertia

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 11}, "11 clusters were asked for of 10 rows"),
            ({"k": 0}, "k: 0"),
            ({"k": 2.5}, "k: 2.5"),
            ({"max_iterations": 0}, "max_iterations: 0"),
            ({"tolerance": -1.0}, "tolerance: -1"),
            ({"train_rows": 2}, "cannot train 3 clusters"),
            ({"seed": -1}, "seed: -1"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        with pytest.raises(UsageError, match=message):
            kmeans(**{"X": clusters(10, 4), "k": 3, **change})


def everything(X, threads=None):
    """What all functions return, as one list of arrays."""
    cover = k_center(X, 60, threads=threads)
    cosine = k_center(X, 60, metric="cosine", first="mean", threads=threads)
    found = kmeans(X, 23, threads=threads)
    sampled = kmeans(X, 23, metric="cosine", train_rows=2000, threads=threads)
    near = near_duplicates(X, 0.9, threads=threads)
    pairs = near_duplicates(X, 0.9, pairs=True, threads=threads)
    some = near_duplicates(X, 0.9, pairs=True, probes=1, threads=threads)
    graph = nearest_neighbours(X, 9, threads=threads)
    part = nearest_neighbours(X, 9, probes=1, threads=threads)
    facilities = facility_location(X, 40, neighbours=9, threads=threads)
    return [
        *(cover.rows, cover.radii, cosine.rows, cosine.radii, found.labels, found.centroids, found.inertia),
        *(found.iterations, sampled.labels, sampled.centroids, near.representatives),
        *(pairs.representatives, pairs.pairs, some.representatives, some.pairs),
        *(graph.rows, graph.cosines, part.rows, part.cosines, part.recall, facilities.rows, facilities.gains),
    ]


class TestSameResult:
    X = clusters(7000, 70, centres=50)

    @pytest.mark.parametrize("threads", [1, 2, 4, 8])
    def test_for_any_number_of_threads(self, threads):
        for expected, found in zip(everything(self.X), everything(self.X, threads), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_for_parts_and_for_float16(self, tmp_path):
        half = self.X.astype(np.float16)
        assert (half.astype(np.float32) == self.X).all()
        np.save(tmp_path / "part.npy", half[2100:])
        parts = [
            half[:96],
            half[96:97],
            half[:0],
            self.X[97:2100],
            np.load(tmp_path / "part.npy", mmap_mode="r"),
        ]
        for expected, found in zip(everything(self.X), everything(parts), strict=True):
            np.testing.assert_array_equal(found, expected)


class TestArrow:
    X = clusters(3000, 20)

    def columns(self, X):
        """Ways to hand over the rows of X in Arrow, cut, sliced and exported."""
        whole = fixed_lists(np.ascontiguousarray(X))
        chunks = [whole.slice(0, 100), whole.slice(100, 0), whole.slice(100, 1), whole.slice(101)]
        chunked = pa.chunked_array(chunks)
        return {
            "array": whole,
            "chunks": chunked,
            "column": pa.table({"embedding": chunked})["embedding"],
            "exported array": ExportedArray(whole),
            "exported chunks": ExportedChunks(chunked),
            "list of both kinds": [whole.slice(0, 7), X[7:900], ExportedArray(whole.slice(900))],
        }

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_gives_the_same_results(self, dtype):
        X = self.X.astype(dtype)
        expected = everything(X)
        for column in self.columns(X).values():
            for found, wanted in zip(everything(column), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
        necessity = np.random.default_rng(0).exponential(size=len(X))
        rows = pick(necessity, X, budget=100, within="k-center")
        for column in self.columns(X).values():
            np.testing.assert_array_equal(pick(necessity, column, budget=100, within="k-center"), rows)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_is_not_copied(self, dtype):
        X = self.X.astype(dtype)
        start, size = X.__array_interface__["data"][0], X.itemsize * X.shape[1]
        for name, column in self.columns(X).items():
            row = 0
            for view in matrix_parts(column):
                assert not len(view) or view.__array_interface__["data"][0] == start + row * size, name
                assert view.dtype == dtype
                row += len(view)
            assert row == len(X), name

    def test_keeps_its_memory_alive(self):
        parts = matrix_parts(ExportedArray(fixed_lists(self.X.copy())))
        np.testing.assert_array_equal(parts[0], self.X)

    def test_of_a_mapped_file_is_not_copied(self, tmp_path):
        path = tmp_path / "embeddings.arrow"
        table = pa.table({"embedding": fixed_lists(self.X)})
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
        allocated = pa.total_allocated_bytes()
        with pa.memory_map(str(path)) as source:
            column = pa.ipc.open_file(source).read_all()["embedding"]
        parts = matrix_parts(column)
        assert pa.total_allocated_bytes() == allocated
        assert [len(part) for part in parts] == [700, 700, 700, 700, 200]
        np.testing.assert_array_equal(k_center(column, 50).rows, k_center(self.X, 50).rows)

    def test_rows_before_and_after_a_slice_may_be_null(self):
        column = pa.array([None, [1.0, 0.0], [0.0, 1.0], [None, 1.0]], pa.list_(pa.float32(), 2))
        np.testing.assert_array_equal(matrix_parts(column.slice(1, 2))[0], np.eye(2))

    def test_without_rows(self):
        column = pa.chunked_array([], pa.list_(pa.float16(), 3))
        assert [part.shape for part in matrix_parts(column)] == [(0, 3)]
        rows = k_center([column, self.X[:, :3].copy()], 5).rows
        np.testing.assert_array_equal(rows, k_center(self.X[:, :3].copy(), 5).rows)

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            (pa.array([[1.0], None], pa.list_(pa.float32(), 1)), "embeddings: row 1 is null; leave such"),
            (
                pa.chunked_array([[[1.0, 2.0]] * 3, [[1.0, 2.0], [3.0, None]]], pa.list_(pa.float32(), 2)),
                "embeddings: row 4 holds a null in column 1",
            ),
            (
                pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
                r"type list<.*>; give one column of fixed-size",
            ),
            (pa.array([[1.0], [2.0]], pa.list_(pa.float64(), 1)), r"type fixed_size_list<item: double>\[1\]"),
            (pa.array([1.0, 2.0]), "type double; give one column"),
            (pa.table({"embedding": [[1.0]]}), "type struct<embedding"),
            (
                [np.ones((2, 1), np.float32), pa.array([None], pa.list_(pa.float32(), 1))],
                "embeddings: part 1: row 0 is null",
            ),
            (
                [np.ones((2, 1), np.float32), pa.array([[1.0, 1.0]], pa.list_(pa.float32(), 2))],
                "part 1: 2 columns, but part 0 has 1",
            ),
        ],
    )
    def test_that_is_no_matrix(self, column, message):
        with pytest.raises(UsageError, match=message):
            k_center(column, 1)

    def test_that_is_damaged(self):
        table = pa.table({"embedding": fixed_lists(np.ones((1237, 3), np.float32))})
        with pa.BufferOutputStream() as sink:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            whole = sink.getvalue().to_pybytes()
        # The number of values as the file's metadata says it, with no nulls; made to lie.
        node, lie = (struct.pack("<qq", rows * 3, 0) for rows in (1237, 1_000_000))
        assert whole.count(node) == 1
        column = pa.ipc.open_file(pa.py_buffer(whole.replace(node, lie))).read_all()["embedding"]
        with pytest.raises(UsageError, match="Arrow data is damaged"):
            k_center(column, 1)


def test_a_mapped_array_is_not_copied(tmp_path):
    X = clusters(500, 8)
    X.tofile(tmp_path / "rows.f32")
    mapped = np.memmap(tmp_path / "rows.f32", np.float32, "r", shape=X.shape)
    assert matrix_parts(mapped)[0] is mapped
    for expected, found in zip(everything(X), everything(mapped), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda X: kmeans(X, 2),
        lambda X: k_center(X, 2),
        lambda X: near_duplicates(X, 0.9),
        lambda X: near_duplicates(X, 0.9, pairs=True),
        lambda X: nearest_neighbours(X, 2),
        lambda X: facility_location(X, 2),
    ],
)
class TestWrongMatrix:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, call, value):
        X = clusters(200, 4)
        X[137, 2] = value
        with pytest.raises(UsageError, match="row 137 holds NaN, infinity"):
            call(X)

    def test_not_a_matrix(self, call):
        with pytest.raises(UsageError, match=r"shape \(4,\) is not a matrix"):
            call(np.zeros(4, np.float32))
        with pytest.raises(UsageError, match="the list holds no arrays"):
            call([])
        with pytest.raises(UsageError, match="part 0: int is not a matrix"):
            call([1, 2])

    def test_type(self, call):
        with pytest.raises(UsageError, match="float64 values; convert"):
            call(np.ones((4, 4)))

    def test_layout(self, call):
        with pytest.raises(UsageError, match="ascontiguousarray"):
            call(np.ones((4, 4), np.float32).T[:, ::2])

    def test_alignment(self, call, tmp_path):
        (tmp_path / "rows.f32").write_bytes(bytes(65))
        mapped = np.memmap(tmp_path / "rows.f32", np.float32, "r", offset=1, shape=(4, 4))
        with pytest.raises(UsageError, match="do not begin at a multiple of 4"):
            call(mapped)

    def test_widths(self, call):
        with pytest.raises(UsageError, match="part 1: 3 columns, but part 0 has 4"):
            call([np.ones((4, 4), np.float32), np.ones((4, 3), np.float32)])

    def test_no_columns(self, call):
        with pytest.raises(UsageError, match="no columns"):
            call(np.ones((4, 0), np.float32))


@pytest.mark.parametrize(
    "call",
    [
        lambda X: kmeans(X, 2, metric="cosine"),
        lambda X: k_center(X, 2, metric="cosine"),
        lambda X: near_duplicates(X, 0.9),
        lambda X: near_duplicates(X, 0.9, pairs=True),
        lambda X: nearest_neighbours(X, 2),
        lambda X: facility_location(X, 2),
        lambda X: facility_location(X[42:43], 1),
    ],
)
def test_zero_rows_have_no_cosine(call):
    X = clusters(100, 4)
    X[42] = 0
    with pytest.raises(UsageError, match=r"row (42|0) is zero"):
        call(X)


LONG_CALLS = [
    lambda X, **how: k_center(X, len(X), **how),
    lambda X, **how: kmeans(X, 4000, tolerance=0, max_iterations=1000, **how),
    lambda X, **how: near_duplicates(X, 0.9, pairs=True, **how),
    lambda X, **how: nearest_neighbours(X, 50, **how),
    lambda X, **how: facility_location(X, 50, **how),
]


@pytest.mark.parametrize(
    "call",
    [
        lambda X, **how: kmeans(X, 40, **how),
        lambda X, **how: k_center(X, 200, **how),
        lambda X, **how: near_duplicates(X, 0.9, pairs=True, **how),
        lambda X, **how: nearest_neighbours(X, 5, probes=2, **how),
        lambda X, **how: facility_location(X, 20, neighbours=5, **how),
    ],
)
def test_progress_is_reported(call):
    seen = []
    call(clusters(20_000, 64), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("call", LONG_CALLS)
def test_an_error_of_the_progress_callback_stops_the_call(call):
    class StopError(Exception):
        pass

    def stop(done, total):
        raise StopError

    with pytest.raises(StopError):
        call(clusters(50_000, 64), progress=stop)


@pytest.mark.parametrize("call", LONG_CALLS)
def test_control_c_stops_a_long_call(call):
    X = clusters(200_000, 128)
    # A shell starts background jobs with the signal ignored, and Python then installs no handler.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    # Sent from another thread while this one waits inside the call, which would take half a minute or more.
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call(X)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, earlier)

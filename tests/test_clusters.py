"""Clusters of a pool of which only some samples were scored: who is drawn, and what the others count with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mllm_selector.drawn import Clusters
from mllm_selector.scoring.drawing import draw


def plain_fill(
    labels: np.ndarray, drawn: np.ndarray, values: np.ndarray, scored: np.ndarray
) -> tuple[np.ndarray, int]:
    """The same, sample by sample."""
    means = {}
    for cluster in range(labels.max(initial=-1) + 1):
        own = values[(labels == cluster) & ~np.isnan(values)].astype(np.float64)
        means[cluster] = own.mean() if len(own) else None
    sizes = {cluster: int((labels == cluster).sum()) for cluster in means}
    known = [cluster for cluster, mean in means.items() if mean is not None]
    total = sum(sizes[cluster] for cluster in known)
    pool = sum(means[cluster] * sizes[cluster] for cluster in known) / total if known else np.nan
    without = [cluster for cluster in means if not scored[labels == cluster].any()]
    filled = np.full(len(labels), np.nan)
    for row, cluster in enumerate(labels):
        if cluster < 0 or (drawn[row] and np.isnan(values[row])):
            continue
        mean = pool if cluster in without else means[cluster]
        filled[row] = np.nan if mean is None else mean
    return filled, len(without)


@st.composite
def pools(draw_value: st.DrawFn) -> tuple[np.ndarray, ...]:
    count = draw_value(st.integers(1, 40))
    labels = draw_value(arrays(np.int32, count, elements=st.integers(-1, 5)))
    _, labels[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)
    drawn = draw_value(arrays(np.bool_, count)) & (labels >= 0)
    scored = drawn & draw_value(arrays(np.bool_, count))
    has_metric = scored & draw_value(arrays(np.bool_, count))
    values = draw_value(arrays(np.float32, count, elements=st.floats(0, 100, width=32)))
    values[~has_metric] = np.nan
    return labels, drawn, values, scored


@given(pools())
def test_every_sample_counts_with_the_mean_of_its_cluster(pool: tuple[np.ndarray, ...]) -> None:
    labels, drawn, values, scored = pool
    filled = Clusters(labels, drawn).fill(values, scored)
    expected, without = plain_fill(labels, drawn, values, scored)
    np.testing.assert_allclose(filled.values, expected, rtol=1e-6)
    assert filled.without == without
    assert filled.measured == np.count_nonzero(~np.isnan(values))


def test_a_cluster_without_scores_has_the_mean_of_the_pool_by_size() -> None:
    """Eight samples of 1 and two of 6, of which as many are scored: the pool's mean is 2, not 3.5."""
    labels = np.array([0] * 8 + [1] * 2 + [2], dtype=np.int32)
    drawn = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0], dtype=np.bool_)
    values = np.where(drawn, np.array([1] * 8 + [6] * 2 + [0], dtype=np.float32), np.float32(np.nan))
    filled = Clusters(labels, drawn).fill(values, drawn)
    assert filled.values.tolist() == [1] * 8 + [6] * 2 + [2]
    assert (filled.measured, filled.without) == (4, 1)


@given(
    arrays(np.int32, st.integers(1, 60), elements=st.integers(-1, 6)),
    st.integers(1, 8),
    st.integers(0, 2**64 - 1),
)
def test_so_many_are_drawn_of_each_cluster(labels: np.ndarray, count: int, seed: int) -> None:
    drawn = draw(labels, count, seed)
    assert not drawn[labels < 0].any()
    for cluster in set(labels[labels >= 0].tolist()):
        assert drawn[labels == cluster].sum() == min(count, (labels == cluster).sum())
    more = draw(labels, count + 1, seed)
    assert more[drawn].all(), "who is drawn stays drawn when more are"


def test_draws_are_uniform_and_not_those_of_the_seed_subset() -> None:
    labels = np.repeat(np.arange(2, dtype=np.int32), 6)
    counts = np.sum([draw(labels, 2, seed) for seed in range(1500)], axis=0)
    assert counts.sum() == 1500 * 4
    assert np.abs(counts / 1500 - 1 / 3).max() < 0.05  # four standard deviations
    seed_order = np.argsort(np.random.Philox(key=np.array([0, 0], dtype=np.uint64)).random_raw(1000))
    mine = np.flatnonzero(draw(np.zeros(1000, np.int32), 100, 0))
    assert 0 < len(np.intersect1d(mine, seed_order[:100])) < 30


def test_what_is_written_is_read(tmp_path: Path) -> None:
    clusters = Clusters(np.array([1, -1, 0, 1], np.int32), np.array([True, False, False, True]))
    clusters.save(tmp_path / "clusters.arrow", {"mllm_selector.key": "k"})
    found = Clusters.load(tmp_path / "clusters.arrow")
    assert found.labels.tolist() == [1, -1, 0, 1]
    assert found.drawn.tolist() == [True, False, False, True]
    assert found.count == 2
    some = Clusters.load(tmp_path / "clusters.arrow", range(1, 3))
    assert (some.labels.tolist(), some.drawn.tolist()) == ([-1, 0], [False, False])


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_nothing_that_can_be_read(labels: list[int]) -> None:
    clusters = Clusters(np.array(labels, np.int32), np.zeros(len(labels), np.bool_))
    assert clusters.count == 0
    filled = clusters.fill(np.full(len(labels), np.nan, np.float32), np.zeros(len(labels), np.bool_))
    assert np.isnan(filled.values).all()
    assert (filled.measured, filled.without) == (0, 0)

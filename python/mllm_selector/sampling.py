"""Grouped sampling: what `arrays.pick` and the pick stage have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_selector import _internal
from mllm_selector.config import PickOptions, default_within
from mllm_selector.errors import UsageError
from mllm_selector.limits import limits_of
from mllm_selector.progress import Progress, SilentProgress
from mllm_selector.samples import Candidates, Choice, Scored, labels_of

__all__ = ["cluster", "cluster_count", "grouped_sample", "reporter"]

MOST_CLUSTERS = 10_000
STRATA = 10
# More rows a cluster do not move the centroids much; the default of faiss.
TRAINING_ROWS_PER_CLUSTER = 256
# Groups need no settled centroids: on sentence embeddings, later iterations gain under 1 % of the inertia.
CLUSTER_ITERATIONS = 10
# Of so many neighbours one is left out at either end, so that single wrong answers do not count.
SMOOTHING_TRIM = 10


def grouped_sample(
    scored: Scored,
    options: PickOptions,
    *,
    groups: ArrayLike | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Choose samples by grouped sampling and say how; `pick` explains the method.

    Parameters
    ----------
    scored : Scored
        What is known of the samples. The sources are the groups if `options.groups` is ``source``, and what
        limits apply to.
    options : PickOptions
        `out` and `order` are not used.
    groups : array of shape (n,), optional
        Group of each sample, used instead of `options.groups`.
    progress : Progress, optional
        What is told of the steps.

    Returns
    -------
    Choice

    Raises
    ------
    UsageError
        As in `pick`.
    """
    progress = SilentProgress() if progress is None else progress
    candidates = Candidates.of(scored, options)
    rows = candidates.rows
    matrix, index = scored.embeddings, None if len(rows) == len(scored) else rows
    given = None if groups is None else labels_of("groups", groups, len(scored))
    if given is None and options.groups == "source":
        given = scored.sources
    if given is None and options.groups == "cluster":
        given = scored.clusters
    limited, limits = limits_of(given, scored.sources, options, candidates.budget)
    limited_codes = None if limited is None else limited.codes[rows]
    if limited_codes is not None:
        available = np.bincount(limited_codes, minlength=len(limits)).tolist()
        _internal.check_limits(candidates.budget, limits, available)
    necessity = scored.necessity if index is None else scored.necessity[rows]
    if options.smooth is not None:
        necessity = _smoothed(necessity, matrix, index, options, progress)
    labels = _make_groups(necessity, matrix, index, options, progress) if given is None else given.codes[rows]
    chosen = _internal.grouped_sample(
        necessity,
        labels,
        candidates.taken,
        matrix,
        index,
        sources=limited_codes,
        limits=limits,
        budget=candidates.budget,
        share=options.share,
        within=options.within or default_within(options.groups if groups is None else "given"),
        trim=options.trim,
        skip_duplicates=options.skip_duplicates,
        seed=options.seed,
        threads=options.threads,
        progress=reporter(progress, "draw", "steps"),
    )
    return Choice.of(scored, candidates, chosen, labels)


def _make_groups(
    necessity: NDArray[np.float32],
    matrix: list[NDArray[Any]] | None,
    index: NDArray[np.int64] | None,
    options: PickOptions,
    progress: Progress,
) -> NDArray[np.uint32]:
    """Group the candidates as the options say."""
    n = len(necessity)
    if options.group_count is not None and options.group_count > n:
        msg = f"group_count: {options.group_count} groups of {n} candidates; ask for at most {n}"
        raise UsageError(msg)
    if options.groups == "necessity":
        return _internal.strata(necessity, options.group_count or STRATA)
    if options.groups == "random":
        return _internal.random_groups(n, options.group_count or STRATA, options.seed)
    if options.groups == "source":
        msg = "groups: 'source' needs the sources; give an array with the source of each sample as sources"
        raise UsageError(msg)
    if matrix is None:
        msg = (
            "groups: clusters need embeddings; give them, or an array of groups, or one of "
            "'necessity' and 'random'"
        )
        raise UsageError(msg)
    _, labels = cluster(matrix, index, n, options.group_count, options.seed, options.threads, progress)
    return labels


def cluster(
    matrix: list[NDArray[Any]],
    index: NDArray[np.int64] | None,
    n: int,
    count: int | None,
    seed: int,
    threads: int | None,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Cluster rows by spherical k-means.

    Parameters
    ----------
    matrix : list of ndarray
        Embeddings.
    index : ndarray of int64, shape (n,), or None
        The rows to cluster; None for all.
    n : int
        Their number.
    count : int or None
        Clusters; by default ``sqrt(n / 2)``, up to 10,000.
    seed : int
        Of the first centroids.
    threads : int or None
        CPU threads; the result does not depend on it.
    progress : Progress
        What is told of the steps.

    Returns
    -------
    centroids : ndarray of float32, shape (clusters, d)
        Of length 1.
    labels : ndarray of uint32, shape (n,)
        Cluster of each row.
    """
    k = cluster_count(n, count)
    centroids, labels, _, _ = _internal.kmeans(
        matrix,
        index,
        k=k,
        metric="cosine",
        seed=seed,
        max_iterations=CLUSTER_ITERATIONS,
        tolerance=1e-4,
        train_rows=TRAINING_ROWS_PER_CLUSTER * k,
        threads=threads,
        progress=reporter(progress, "cluster", "rows"),
    )
    return centroids, labels


def cluster_count(n: int, count: int | None = None) -> int:
    """Return the number of clusters of n rows: as asked for, by default ``sqrt(n / 2)``, up to 10,000."""
    return count or min(MOST_CLUSTERS, max(1, math.isqrt(n // 2)))


def _smoothed(
    necessity: NDArray[np.float32],
    matrix: list[NDArray[Any]] | None,
    index: NDArray[np.int64] | None,
    options: PickOptions,
    progress: Progress,
) -> NDArray[np.float32]:
    """Return for each candidate the trimmed mean necessity of its nearest other candidates by cosine."""
    if matrix is None:
        msg = "smooth: neighbours need embeddings; give them, or leave smooth out"
        raise UsageError(msg)
    if options.smooth is None or options.smooth >= len(necessity):
        msg = (
            f"smooth: {options.smooth} neighbours of {len(necessity)} candidates; ask for fewer than "
            "there are"
        )
        raise UsageError(msg)
    neighbours, _, _ = _internal.nearest_neighbours(
        matrix,
        k=options.smooth,
        probes=None,
        threads=options.threads,
        progress=reporter(progress, "smooth", "blocks"),
        index=index,
    )
    trimmed = options.smooth // SMOOTHING_TRIM
    means = np.empty_like(necessity)
    for first in range(0, len(means), 1 << 16):
        near = np.sort(necessity[neighbours[first : first + (1 << 16)]], axis=1)
        middle = near[:, trimmed : options.smooth - trimmed]
        means[first : first + len(near)] = middle.mean(axis=1, dtype=np.float64)
    return means


def reporter(progress: Progress, step: str, unit: str) -> Callable[[int, int], None]:
    """Turn (done, total) calls into a step of `progress`."""
    started = False

    def report(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start(step, total, unit)
            started = True
        progress.update(done)

    return report

"""Grouped sampling: what `arrays.pick` and the pick stage have in common."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_selector import _internal
from mllm_selector.checks import Embeddings, checked_rows, matrix_parts
from mllm_selector.config import Limits, PickOptions
from mllm_selector.errors import UsageError
from mllm_selector.progress import Progress, SilentProgress

__all__ = ["GroupedSample", "Labels", "Scored", "check_limits", "grouped_sample"]

MOST_CLUSTERS = 10_000
STRATA = 10
# More rows a cluster do not move the centroids much; the default of faiss.
TRAINING_ROWS_PER_CLUSTER = 256
# Groups need no settled centroids: on sentence embeddings, later iterations gain under 1 % of the inertia.
CLUSTER_ITERATIONS = 10
NO_CEILING = 2**64 - 1
# More names in a message help nobody.
NAMES_SHOWN = 20


@dataclass(frozen=True)
class Labels:
    """A label of each sample.

    Attributes
    ----------
    codes : ndarray of uint32, shape (n,)
        Index of each sample's label in `names`.
    names : sequence
        The labels.
    """

    codes: NDArray[np.uint32]
    names: Sequence[Any]


@dataclass(frozen=True)
class Scored:
    """What is known of the pool's samples when it comes to choosing.

    Attributes
    ----------
    necessity : ndarray of float32, shape (n,)
        NaN for samples that were not scored.
    embeddings : sequence of ndarray of float16, each of shape (rows of the part, d)
        Parts in the order of the pool.
    sources : Labels
        Source of each sample.
    seed_rows : ndarray of int, shape (s,)
        Rows of the seed subset.
    """

    necessity: NDArray[np.float32]
    embeddings: Embeddings
    sources: Labels
    seed_rows: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class GroupedSample:
    """Result of `grouped_sample`.

    Attributes
    ----------
    rows : ndarray of int64, shape (budget,)
        Chosen rows in the order of choice.
    groups : ndarray of int32, shape (budget,)
        Group of each chosen row.
    group_sizes : ndarray of int64, shape (g,)
        Candidates in each group, by group number; 0 for a number that no candidate has.
    group_necessity : ndarray of float64, shape (g,)
        Mean necessity of each group's candidates; NaN where there are none.
    candidates : int
        Rows that could be chosen.
    unscored : int
        Rows without necessity; they are never chosen.
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.int32]
    group_sizes: NDArray[np.int64]
    group_necessity: NDArray[np.float64]
    candidates: int
    unscored: int

    @property
    def group_count(self) -> int:
        """Number of groups that have candidates."""
        return int(np.count_nonzero(self.group_sizes))


def grouped_sample(
    necessity: ArrayLike,
    embeddings: Embeddings | None,
    options: PickOptions,
    *,
    groups: ArrayLike | None = None,
    sources: ArrayLike | Labels | None = None,
    seed_rows: ArrayLike | None = None,
    progress: Progress | None = None,
) -> GroupedSample:
    """Choose samples by grouped sampling and say how; `pick` explains the method.

    Parameters
    ----------
    necessity, embeddings
        As in `pick`.
    options : PickOptions
        `out` and `order` are not used.
    groups : array of shape (n,), optional
        Group of each sample, used instead of `options.groups`.
    sources : array of shape (n,) or Labels, optional
        Source of each sample: the groups if `options.groups` is ``source``, and what limits apply to.
    seed_rows : array of int, optional
        Rows of the seed subset.
    progress : Progress, optional
        What is told of the steps.

    Returns
    -------
    GroupedSample

    Raises
    ------
    UsageError
        As in `pick`.
    """
    progress = SilentProgress() if progress is None else progress
    scores = _checked_necessity(necessity)
    matrix = None if embeddings is None else matrix_parts(embeddings, rows=len(scores))
    seeds = _checked_seed_rows(seed_rows, len(scores))
    scored = ~np.isnan(scores)
    open_rows = scored.copy()
    if options.seed_samples == "exclude":
        open_rows[seeds] = False
    candidates = np.flatnonzero(open_rows)
    budget = options.budget.of(len(scores))
    _check_budget(budget, len(scores), len(candidates), int((~scored).sum()))

    index = None if len(candidates) == len(scores) else candidates
    given = None if groups is None else _labels("groups", groups, len(scores))
    origins = None if sources is None else _labels("sources", sources, len(scores))
    if given is None and options.groups == "source":
        given = origins
    limited, limits = _limited(given, origins, options, budget)
    limited_codes = None if limited is None else limited.codes[candidates]
    if limited_codes is not None:
        available = np.bincount(limited_codes, minlength=len(limits)).tolist()
        _internal.check_limits(budget, limits, available)
    if given is None:
        labels = _make_groups(scores[candidates], matrix, index, options, progress)
    else:
        labels = given.codes[candidates]
    included = seeds[scored[seeds]] if options.seed_samples == "include" else seeds[:0]
    chosen = _internal.grouped_sample(
        scores[candidates],
        labels,
        np.searchsorted(candidates, included),
        matrix,
        index,
        sources=limited_codes,
        limits=limits,
        budget=budget,
        share=options.share,
        within=options.within,
        trim=options.trim,
        skip_duplicates=options.skip_duplicates,
        seed=options.seed,
        threads=options.threads,
        progress=_reporter(progress, "draw", "steps"),
    )
    sizes = np.bincount(labels)
    sums = np.bincount(labels, weights=scores[candidates])
    return GroupedSample(
        rows=candidates[chosen],
        groups=labels[chosen].astype(np.int32),
        group_sizes=sizes,
        group_necessity=np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0),
        candidates=len(candidates),
        unscored=int((~scored).sum()),
    )


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
    k = options.group_count or min(MOST_CLUSTERS, max(1, math.isqrt(n // 2)))
    _, labels, _, _ = _internal.kmeans(
        matrix,
        index,
        k=k,
        metric="cosine",
        seed=options.seed,
        max_iterations=CLUSTER_ITERATIONS,
        tolerance=1e-4,
        train_rows=TRAINING_ROWS_PER_CLUSTER * k,
        threads=options.threads,
        progress=_reporter(progress, "cluster", "rows"),
    )
    return labels


def _reporter(progress: Progress, step: str, unit: str) -> Callable[[int, int], None]:
    """Turn (done, total) calls into a step of `progress`."""
    started = False

    def report(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start(step, total, unit)
            started = True
        progress.update(done)

    return report


def _checked_necessity(necessity: ArrayLike) -> NDArray[np.float32]:
    try:
        given = np.asarray(necessity, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"necessity: not numbers ({error}); give one number for each sample, NaN where there is none"
        raise UsageError(msg) from error
    if given.ndim != 1 or len(given) == 0:
        msg = f"necessity: shape {given.shape}; give a one-dimensional array of at least one number"
        raise UsageError(msg)
    with np.errstate(over="ignore"):
        # Adding zero turns -0.0 into 0.0, so that equal numbers have equal bits.
        scores = given.astype(np.float32) + np.float32(0)
    if np.isinf(scores).any():
        row = int(np.flatnonzero(np.isinf(scores))[0])
        msg = f"necessity: {given[row]} of row {row} is not finite in float32; give NaN if it was not scored"
        raise UsageError(msg)
    return scores


def _checked_seed_rows(seed_rows: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if seed_rows is None:
        return np.empty(0, np.int64)
    rows = np.unique(checked_rows("seed_rows", seed_rows))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < n:
        msg = f"seed_rows: rows must be from 0 to {n - 1}; the array reaches from {rows[0]} to {rows[-1]}"
        raise UsageError(msg)
    return rows


def _labels(name: str, given: ArrayLike | Labels, n: int) -> Labels:
    if isinstance(given, Labels):
        return given
    values = np.asarray(given)
    if values.shape != (n,):
        msg = f"{name}: an array of shape {values.shape} for {n} samples; give one {name[:-1]} for each"
        raise UsageError(msg)
    names, codes = np.unique(values, return_inverse=True)
    return Labels(codes.astype(np.uint32), names.tolist())


def _limited(
    groups: Labels | None, sources: Labels | None, options: PickOptions, budget: int
) -> tuple[Labels | None, list[tuple[str, int, int]]]:
    """Return the labels that limits apply to, and the limit of each."""
    if options.source_floor is None and options.source_ceiling is None:
        return None, []
    labels = groups if sources is None else sources
    if labels is None:
        msg = "floor, ceiling: these need names; give an array with the source of each sample as sources"
        raise UsageError(msg)
    return labels, _limits([str(name) for name in labels.names], options, budget)


def _limits(names: list[str], options: PickOptions, budget: int) -> list[tuple[str, int, int]]:
    """Return name, floor and ceiling of each source in samples.

    Shares are rounded down for floors and up for ceilings: so floors that add up to 100 % or less, and
    ceilings that add up to 100 % or more, fit any budget.
    """
    floors = _amounts("floor", options.source_floor, names)
    ceilings = _amounts("ceiling", options.source_ceiling, names)
    limits = []
    for name in names:
        floor, ceiling = floors.of(name), ceilings.of(name)
        least = 0 if floor is None else math.floor(floor.exactly_of(budget))
        most = NO_CEILING if ceiling is None else math.ceil(ceiling.exactly_of(budget))
        limits.append((name, least, most))
    return limits


def _amounts(what: str, limits: Limits | None, names: list[str]) -> Limits:
    """Check that every name is known."""
    if limits is None:
        return Limits({})
    for name in limits.amounts:
        if name != "*" and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            shown = ", ".join(sorted(names)[:NAMES_SHOWN])
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            msg = f"{what} of '{name}': nothing has this name; {hint}known are {shown}{more}"
            raise UsageError(msg)
    return limits


def check_limits(sizes: Mapping[str, int], options: PickOptions, budget: int) -> None:
    """Check that limits can be kept by sources of given sizes, as far as that is known before scoring.

    Parameters
    ----------
    sizes : mapping of str to int
        Samples of each source.
    options : PickOptions
        With the limits.
    budget : int
        Samples to choose.

    Raises
    ------
    UsageError
        If a limit names no source, or the limits cannot be kept.
    """
    if options.source_floor is None and options.source_ceiling is None:
        return
    _internal.check_limits(budget, _limits(list(sizes), options, budget), list(sizes.values()))


def _check_budget(budget: int, total: int, candidates: int, unscored: int) -> None:
    if budget <= candidates:
        return
    excluded = total - candidates - unscored
    reasons = [
        f"{count} {why}"
        for count, why in ((unscored, "not scored"), (excluded, "excluded as seed samples"))
        if count
    ]
    but = f" ({', '.join(reasons)})" if reasons else ""
    msg = (
        f"budget: {budget} samples cannot be chosen: {candidates} of {total} are candidates{but}; "
        "lower the budget"
    )
    raise UsageError(msg)

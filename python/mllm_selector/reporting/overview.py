"""What the report shows of the embeddings: a flat map, coverage, near-duplicates; in bounded time and memory.

Everything that compares rows looks at a sample of them. Samples are drawn by Philox generators of fixed
seeds, and products are computed in Rust, so the same run gives the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal

__all__ = ["Coverage", "DuplicateSet", "Duplicates", "Embedded", "Map", "Point", "products"]

GRID = (96, 64)
AXIS_ROWS = 4096
POOL_POINTS, CHOSEN_POINTS = 1000, 500
MOST_REFERENCES = 2000
# Products of two numbers that one figure may cost: some seconds to half a minute on two cores.
MOST_PRODUCTS = 5e11
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
LARGER = (1.5, 2.0, 3.0, 4.0)
NEAREST = 3

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Report = Callable[[int, int], object]


@dataclass(frozen=True)
class Point:
    """A sample on the map; `x` and `y` are in [0, 1], `group` is None where the sample was not chosen."""

    row: int
    x: float
    y: float
    group: int | None


@dataclass(frozen=True)
class Map:
    """The pool along the two principal axes of its embeddings.

    Attributes
    ----------
    columns, rows : int
        Size of the grid.
    counts, chosen : list of int
        Scored samples of the pool, and chosen ones among them, in each tile, row by row from the bottom left.
    variance : float
        Share of the embeddings' variance that the two axes show, in [0, 1].
    points : list of Point
        Samples drawn uniformly from the pool, and from the selection.
    """

    columns: int
    rows: int
    counts: list[int]
    chosen: list[int]
    variance: float
    points: list[Point]


@dataclass(frozen=True)
class Coverage:
    """Cosine distance of samples of the pool to the nearest chosen one, as the selection grows.

    Attributes
    ----------
    references : int
        Samples, drawn uniformly from the pool, whose distance was measured.
    counts : list of int
        Numbers of chosen samples; those above the budget are the selection and uniform draws of what is left.
    median, p95 : list of float
        Distances for each count.
    random_median, random_p95 : list of float
        The same for as many uniform draws of the pool.
    """

    references: int
    counts: list[int]
    median: list[float]
    p95: list[float]
    random_median: list[float]
    random_p95: list[float]

    def at(self, count: int) -> tuple[float, float]:
        """Return the two distances for a count that was measured."""
        place = self.counts.index(count)
        return self.median[place], self.p95[place]


@dataclass(frozen=True)
class DuplicateSet:
    """A sample, how many near-duplicates of it the pool has, and the nearest of these with their cosines."""

    row: int
    count: int
    nearest: list[int]
    cosines: list[float]


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates of samples drawn uniformly.

    Attributes
    ----------
    cosine : float
        From which two samples count as near-duplicates.
    pool, pool_near : int
        Samples of the pool looked at, and those that have a near-duplicate in the pool.
    chosen, chosen_near : int
        Chosen samples looked at, and those that have a near-duplicate among the chosen.
    sets : list of DuplicateSet
        The largest found, none with a sample of another.
    """

    cosine: float
    pool: int
    pool_near: int
    chosen: int
    chosen_near: int
    sets: list[DuplicateSet]


class Embedded:
    """The embeddings of the scored samples and which of them were chosen.

    Parameters
    ----------
    embeddings : list of ndarray of float16 or float32, each of shape (rows of the part, d)
        All samples of the pool, in order; those that were not scored are not looked at.
    scored : ndarray of bool, shape (n,)
        Whether a sample was scored.
    chosen : ndarray of int64, shape (k,)
        Rows that were chosen, in the order in which they were chosen.
    progress : callable, optional
        Called with work done and work in all.
    """

    def __init__(
        self,
        embeddings: list[NDArray[np.float16]],
        scored: Flags,
        chosen: Rows,
        progress: Report | None = None,
    ) -> None:
        self._parts = list(embeddings)
        self._rows = np.flatnonzero(scored)
        self._index = None if len(self._rows) == len(scored) else self._rows
        self._order = chosen[scored[chosen]]
        self._chosen = np.zeros(len(scored), dtype=np.bool_)
        self._chosen[self._order] = True
        self._size = self._parts[0].shape[1] if self._parts else 0
        self._progress = progress

    def __len__(self) -> int:
        return len(self._rows)

    def map(self, group_of: dict[int, int]) -> Map | None:
        """Lay the samples out flat; `group_of` tells the group of a chosen row. None for fewer than three."""
        if len(self) < 3:
            return None
        sample = _draw(len(self), AXIS_ROWS, seed=1)
        places = _internal.flat_map(self._parts, self._index, sample=sample, progress=self._progress)
        x, y = (_unit(places[:, axis].astype(np.float64)) for axis in range(2))
        columns, rows = GRID
        tile = np.minimum((y * rows).astype(np.int64), rows - 1) * columns
        tile += np.minimum((x * columns).astype(np.int64), columns - 1)
        is_chosen = self._chosen[self._rows]
        drawn = set(_draw(len(self), POOL_POINTS, seed=2).tolist())
        own = np.flatnonzero(is_chosen)
        drawn |= set(own[_draw(len(own), CHOSEN_POINTS, seed=3)].tolist())
        points = [
            Point(
                int(self._rows[at]),
                round(float(x[at]), 4),
                round(float(y[at]), 4),
                group_of.get(int(self._rows[at])),
            )
            for at in sorted(drawn)
        ]
        return Map(
            columns,
            rows,
            np.bincount(tile, minlength=columns * rows).tolist(),
            np.bincount(tile[is_chosen], minlength=columns * rows).tolist(),
            self._shown_variance(sample, places[sample].astype(np.float64)),
            points,
        )

    def coverage(self) -> Coverage | None:
        """Measure how near the pool is to what was chosen; None where nothing was."""
        budget = len(self._order)
        if not budget:
            return None
        left = self._rows[~self._chosen[self._rows]]
        furthest = _furthest(budget, len(self))
        more = left[_draw(len(left), furthest - budget, seed=4, in_order=False)]
        wanted = {max(1, round(budget * fraction)) for fraction in FRACTIONS}
        wanted |= {min(furthest, round(budget * times)) for times in LARGER}
        counts = np.array(sorted(wanted), dtype=np.int64)
        references = self._rows[_draw(len(self), _affordable(2 * furthest, self._size), seed=5)]
        random = self._rows[_draw(len(self), furthest, seed=6, in_order=False)]
        # Half a millionth is below what float16 embeddings can tell apart.
        own, drawn = (
            np.round(
                np.quantile(
                    _internal.coverage(
                        self._parts,
                        reference=references,
                        centres=centres,
                        counts=counts,
                        progress=self._progress,
                    ).astype(np.float64),
                    [0.5, 0.95],
                    axis=1,
                ),
                6,
            ).tolist()
            for centres in (np.concatenate([self._order, more]), random)
        )
        return Coverage(len(references), counts.tolist(), own[0], own[1], drawn[0], drawn[1])

    def duplicates(self, cosine: float, sets: int) -> Duplicates | None:
        """Look for near-duplicates and keep up to `sets` sets; None without samples."""
        if not len(self):
            return None
        asked = _draw(len(self), _affordable(len(self), self._size), seed=7)
        counts, nearest = _internal.near_rows(
            self._parts, self._index, queries=asked, threshold=cosine, keep=NEAREST, progress=self._progress
        )
        own = np.sort(self._order)
        of_own = _draw(len(own), _affordable(len(own), self._size), seed=8)
        own_counts = np.zeros(0, dtype=np.int64)
        if len(own):
            own_counts, _ = _internal.near_rows(
                self._parts, own, queries=of_own, threshold=cosine, keep=0, progress=self._progress
            )
        found: list[DuplicateSet] = []
        taken: set[int] = set()
        for place in np.argsort(-counts, kind="stable").tolist():
            if len(found) == sets or not counts[place]:
                break
            row = int(self._rows[asked[place]])
            others = self._rows[nearest[place][0]].tolist()
            if taken.isdisjoint([row, *others]):
                taken |= {row, *others}
                cosines = [round(value, 4) for value in nearest[place][1].tolist()]
                found.append(DuplicateSet(row, int(counts[place]), others, cosines))
        return Duplicates(
            cosine, len(asked), int((counts > 0).sum()), len(of_own), int((own_counts > 0).sum()), found
        )

    def _shown_variance(self, sample: Rows, places: Floats) -> float:
        starts = np.cumsum([0, *(len(part) for part in self._parts)])
        rows = self._rows[sample]
        part_of = np.searchsorted(starts, rows, side="right") - 1
        values = np.stack(
            [self._parts[part][row - starts[part]] for part, row in zip(part_of, rows, strict=True)]
        )
        whole = sum(float(column.astype(np.float64).var()) for column in values.T)
        return round(min(1.0, float(places.var(axis=0).sum()) / whole), 4) if whole > 0 else 0.0


def products(samples: int, chosen: int, width: int) -> float:
    """Return how many products of two numbers coverage and near-duplicates take: nearly all of the time.

    Parameters
    ----------
    samples, chosen : int
        Samples of the pool and of the selection.
    width : int
        Numbers of an embedding.
    """
    compared = ((samples, 2 * _furthest(chosen, samples)), (samples, samples), (chosen, chosen))
    return float(width) * sum(min(rows, _affordable(others, width)) * others for rows, others in compared)


def _furthest(budget: int, samples: int) -> int:
    """Return the largest number of samples whose coverage is measured."""
    return min(int(budget * LARGER[-1]), samples)


def _affordable(comparisons: int, width: int) -> int:
    """Return how many rows may be compared with that many others."""
    return min(MOST_REFERENCES, max(50, int(MOST_PRODUCTS / max(1, comparisons * width))))


def _draw(count: int, wanted: int, seed: int, *, in_order: bool = True) -> Rows:
    """Draw numbers below `count` without replacement; ascending, or as they were drawn."""
    random = np.random.Generator(np.random.Philox(seed))
    drawn: Rows = random.permutation(count)[: max(0, wanted)].astype(np.int64)
    return np.sort(drawn) if in_order else drawn


def _unit(values: Floats) -> Floats:
    """Scale to [0, 1] by what all but a few outliers span; those go to the edge."""
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.04 * (high - low)
    span = high - low + 2 * margin
    scaled: Floats = np.full(len(values), 0.5)
    if span > 0:
        scaled = np.clip((values - low + margin) / span, 0.0, 1.0)
    return scaled

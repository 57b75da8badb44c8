"""What sets two selections of one pool apart, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import ScoreTable, open_arrow
from mllm_selector.drawn import estimate
from mllm_selector.errors import UsageError
from mllm_selector.pool import Pool
from mllm_selector.reporting import command
from mllm_selector.reporting.histograms import bin_edges
from mllm_selector.reporting.known import GalleryItem
from mllm_selector.reporting.numbers import Statistics, spaced
from mllm_selector.reporting.overview import Coverage, Embedded, Map
from mllm_selector.rundir import RunDirectory, read_manifest

__all__ = ["MEMBERSHIPS", "Difference", "Selected", "SharesOfSource", "find_differences"]

MEMBERSHIPS = ("both", "only the first", "only the second", "neither")

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Selected:
    """One of the two selections.

    Attributes
    ----------
    name : str
        The run directory, or the file of the selection.
    chosen, alone : int
        Samples chosen, and those that the other one did not choose.
    necessity, alone_necessity : Statistics
        Of these, by the scores of the first run.
    histogram : list of int
        Chosen samples in each bin of `Difference.edges`.
    coverage : Coverage or None
        Distance of the pool to this selection, by the embeddings of the first run.
    """

    name: str
    chosen: int
    alone: int
    necessity: Statistics
    alone_necessity: Statistics
    histogram: list[int]
    coverage: Coverage | None


@dataclass(frozen=True)
class SharesOfSource:
    """One source: its samples in the pool and in each selection, and in both."""

    source: str
    pool: int
    first: int
    second: int
    both: int


@dataclass(frozen=True)
class Difference:
    """Two selections side by side.

    Attributes
    ----------
    samples : int
        Size of the pool.
    first, second : Selected
        The two.
    both : int
        Samples that both chose.
    both_necessity : Statistics
        Of these.
    jaccard : float
        Samples that both chose, divided by those that either chose.
    by_chance : float
        How many samples two uniform draws of these sizes would have in common on average.
    rank_correlation : float or None
        Spearman's, of the necessities of the two runs; None where both use the same scores.
    options : list of dict
        ``stage``, ``option``, ``first`` and ``second`` of each option that differs.
    edges : list of float
        Bins of necessity.
    sources : list of SharesOfSource
        Largest first.
    map : Map or None
        The pool laid flat; its groups are numbers of `MEMBERSHIPS`.
    map_items, only_first, only_second : list of GalleryItem
        The samples of the map's points; some that one alone chose, from the highest necessity to the lowest.
    """

    samples: int
    first: Selected
    second: Selected
    both: int
    both_necessity: Statistics
    jaccard: float
    by_chance: float
    rank_correlation: float | None
    options: list[dict[str, Any]]
    edges: list[float]
    sources: list[SharesOfSource]
    map: Map | None
    map_items: list[GalleryItem]
    only_first: list[GalleryItem]
    only_second: list[GalleryItem]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Side:
    """A selection as it is read: its run, if it has one, and its rows in the order of choice."""

    name: str
    run: RunDirectory | None
    rows: Rows
    ids: pa.ChunkedArray

    @classmethod
    def of(cls, path: Path) -> _Side:
        if not path.exists():
            msg = f"{path} does not exist; name a run directory or a selection.arrow of one"
            raise UsageError(msg)
        run = None if path.is_file() else _reading(path)
        if run is not None:
            run.need("pick")
        table = open_arrow(path if run is None else run.selection)
        missing = {"row", "id", "order"} - set(table.column_names)
        if missing:
            msg = f"{path} has no column {min(missing)}; name a run directory or a selection.arrow of one"
            raise UsageError(msg)
        table = table.take(np.argsort(table["order"].to_numpy(), kind="stable"))
        return cls(str(path), run, table["row"].to_numpy().astype(np.int64), table["id"])


def find_differences(first: Path, second: Path, gallery: int = 12) -> tuple[Difference, Pool]:
    """Compare two selections of one pool.

    Parameters
    ----------
    first, second : Path
        Run directories, or one of them a ``selection.arrow`` kept from an earlier `pick` in the other.
    gallery : int
        Samples to show of what one alone chose.

    Returns
    -------
    Difference
        The numbers.
    Pool
        The pool, for showing samples.

    Raises
    ------
    UsageError
        If both are files, or the selections are of different pools.
    RunDirectoryError, PoolError
        If a run has no selection, or a file is damaged.
    """
    sides = [_Side.of(first), _Side.of(second)]
    runs = [side.run for side in sides if side.run is not None]
    if not runs:
        msg = (
            f"{first} and {second} are files; name the run directory of one of them, "
            "which holds pool and scores"
        )
        raise UsageError(msg)
    pool = Pool.of(runs[0])
    for run in runs[1:]:
        _check_same_pool(runs[0], pool, run, Pool.of(run))
    for side in sides:
        _check_ids(side, pool)
    scores, necessity = _scored(runs[0])
    codes, names = pool.sources()
    flags = [_flags(side.rows, len(pool)) for side in sides]
    both = flags[0] & flags[1]
    membership = np.where(both, 0, np.where(flags[0], 1, np.where(flags[1], 2, 3)))
    edges = bin_edges(necessity)
    scored = ~np.isnan(necessity) & np.concatenate([part.any(axis=1) for part in scores.embeddings])

    def items(which: Rows | list[int]) -> list[GalleryItem]:
        return [
            GalleryItem(
                row=int(row),
                id=sample_id,
                source=names[codes[row]],
                necessity=None if np.isnan(necessity[row]) else float(necessity[row]),
                answer_tokens=int(scores.answer_tokens[row]),
                chosen=bool(membership[row] < 3),
                seed=False,
                scores={},
                measured=not np.isnan(scores.necessity[row]),
            )
            for row, sample_id in zip(which, pool.ids(which), strict=True)
        ]

    def selected(side: _Side, own: NDArray[np.bool_]) -> Selected:
        return Selected(
            name=side.name,
            chosen=int(own.sum()),
            alone=int((own & ~both).sum()),
            necessity=Statistics.of(necessity[own]),
            alone_necessity=Statistics.of(necessity[own & ~both]),
            histogram=np.histogram(necessity[own & scored], edges)[0].tolist(),
            coverage=Embedded(list(scores.embeddings), scored, side.rows).coverage(),
        )

    def gallery_of(own: NDArray[np.bool_]) -> list[GalleryItem]:
        rows = np.flatnonzero(own & ~both & scored)
        return items(spaced(rows[np.argsort(-necessity[rows], kind="stable")], gallery))

    either = np.flatnonzero(membership < 3)
    laid = Embedded(list(scores.embeddings), scored, either).map(
        dict(zip(either.tolist(), membership[either].tolist(), strict=True))
    )
    difference = Difference(
        samples=len(pool),
        first=selected(sides[0], flags[0]),
        second=selected(sides[1], flags[1]),
        both=int(both.sum()),
        both_necessity=Statistics.of(necessity[both]),
        jaccard=float(both.sum() / max(1, len(either))),
        by_chance=float(flags[0].sum() * flags[1].sum() / max(1, len(pool))),
        rank_correlation=_rank_correlation(necessity, runs),
        options=_options(sides),
        edges=edges.tolist(),
        sources=_sources(codes, names, flags),
        map=laid,
        map_items=items([point.row for point in laid.points]) if laid else [],
        only_first=gallery_of(flags[0]),
        only_second=gallery_of(flags[1]),
    )
    return difference, pool


def _reading(path: Path) -> RunDirectory:
    """Open a run directory for reading, without its lock."""
    run = RunDirectory(path)
    run.stages = read_manifest(path)
    return run


def _flags(rows: Rows, count: int) -> NDArray[np.bool_]:
    flags = np.zeros(count, dtype=np.bool_)
    flags[rows] = True
    return flags


def _check_same_pool(first: RunDirectory, pool: Pool, second: RunDirectory, other: Pool) -> None:
    if len(pool) != len(other):
        reason = f"{first.path} has {len(pool):,} samples, {second.path} has {len(other):,}"
    else:
        same = np.asarray(pa.compute.equal(pool.column("id"), other.column("id")))
        if same.all():
            return
        row = int(np.argmin(same))
        ids = [which.ids([row])[0] for which in (pool, other)]
        reason = f"row {row} is {ids[0]!r} in {first.path} and {ids[1]!r} in {second.path}"
    msg = f"the selections are of different pools: {reason}; only selections of one pool can be compared"
    raise UsageError(msg)


def _check_ids(side: _Side, pool: Pool) -> None:
    known = len(side.rows) == 0 or (side.rows.min() >= 0 and side.rows.max() < len(pool))
    if not known or pool.ids(side.rows) != side.ids.to_pylist():
        msg = (
            f"the selections are of different pools: {side.name} names samples that {pool.path} does not "
            "have in these rows; only selections of one pool can be compared"
        )
        raise UsageError(msg)


def _scored(run: RunDirectory) -> tuple[ScoreTable, NDArray[np.float64]]:
    """Return the scores and the necessity of all samples, which may be the mean of their cluster."""
    scores = ScoreTable.load(run.scores)
    estimated = estimate(run.scores, scores)
    necessity = scores.necessity if estimated is None else estimated[1].values
    return scores, necessity.astype(np.float64)


def _rank_correlation(necessity: NDArray[np.float64], runs: list[RunDirectory]) -> float | None:
    if len(runs) < 2:
        return None
    _, other = _scored(runs[1])
    scored = ~np.isnan(necessity) & ~np.isnan(other)
    if np.array_equal(necessity, other, equal_nan=True) or scored.sum() < 2:
        return None
    ranks = [_ranks(values[scored]) for values in (necessity, other)]
    if not all(rank.std() > 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks, equal values sharing the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[index]
    return ranks


def _options(sides: list[_Side]) -> list[dict[str, Any]]:
    if any(side.run is None for side in sides):
        return []
    settings = [command.settings(side.run.stages) for side in sides if side.run is not None]
    return [
        {"stage": stage, "option": option, "first": value, "second": settings[1][stage][option]}
        for stage, options in settings[0].items()
        for option, value in options.items()
        if value != settings[1][stage][option] and option not in ("out", "threads")
    ]


def _sources(
    codes: NDArray[np.int32], names: list[str], flags: list[NDArray[np.bool_]]
) -> list[SharesOfSource]:
    def counts(which: NDArray[np.bool_]) -> list[int]:
        found: list[int] = np.bincount(codes[which], minlength=len(names)).tolist()
        return found

    columns = [counts(np.ones_like(flags[0])), *map(counts, flags), counts(flags[0] & flags[1])]
    rows = [SharesOfSource(name, *numbers) for name, *numbers in zip(names, *columns, strict=True)]
    return sorted(rows, key=lambda source: -source.pool)

"""What the report says in numbers: read once from the run directory, written as JSON, shown on the page."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import ScoreTable, open_arrow
from mllm_selector.errors import PoolError, RunDirectoryError
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory

__all__ = [
    "GalleryItem",
    "Group",
    "Histogram",
    "Numbers",
    "Reason",
    "Source",
    "Stage",
    "Statistics",
    "collect",
    "nice_step",
]

STAGES = ("ingest", "seed", "export", "score", "pick")
GROUPS_KEY = b"mllm_selector.groups"
LEAST_BINS, MOST_BINS = 10, 60
SOURCE_HISTOGRAMS = 12
EXAMPLES = 3

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Histogram:
    """Numbers of samples by necessity.

    Attributes
    ----------
    edges : list of float
        Edges of the bins, closed on the left; the last bin is closed on both sides and may be wider
        than the others.
    pool, chosen : list of int
        Samples of the pool, and chosen ones among them, in each bin.
    """

    edges: list[float]
    pool: list[int]
    chosen: list[int]

    @classmethod
    def of(cls, necessity: Floats, chosen: Flags, edges: Floats) -> Self:
        """Count the samples that were scored."""
        scored = ~np.isnan(necessity)
        return cls(
            edges=edges.tolist(),
            pool=np.histogram(necessity[scored], edges)[0].tolist(),
            chosen=np.histogram(necessity[scored & chosen], edges)[0].tolist(),
        )


@dataclass(frozen=True)
class Statistics:
    """Necessity of some samples, in nats per answer token; None where no sample was scored."""

    scored: int
    mean: float | None
    p10: float | None
    median: float | None
    p90: float | None
    highest: float | None

    @classmethod
    def of(cls, necessity: Floats) -> Self:
        """Describe the scored ones among some samples."""
        values = necessity[~np.isnan(necessity)]
        if not len(values):
            return cls(0, None, None, None, None, None)
        p10, median, p90 = (float(value) for value in np.quantile(values, [0.1, 0.5, 0.9]))
        return cls(len(values), float(values.mean()), p10, median, p90, float(values.max()))


@dataclass(frozen=True)
class Reason:
    """Why some records or samples were set aside, with the first of them."""

    reason: str
    count: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """One source before and after; the shares are of the pool and of the selection."""

    source: str
    pool: int
    chosen: int
    pool_share: float
    chosen_share: float
    mean_necessity: float | None
    histogram: Histogram | None


@dataclass(frozen=True)
class Group:
    """One group; `size` is None where the selection does not say it.

    `mean_necessity` is that of all samples of the group where the selection says it, else of the
    chosen ones. `main_source` is the most frequent source of the chosen ones.
    """

    group: int
    size: int | None
    chosen: int
    mean_necessity: float | None
    main_source: str | None
    main_source_share: float | None


@dataclass(frozen=True)
class GalleryItem:
    """A sample that the page shows."""

    row: int
    id: str
    source: str
    necessity: float
    answer_tokens: int
    chosen: bool
    seed: bool


@dataclass(frozen=True)
class Stage:
    """What a stage cost and counted."""

    stage: str
    seconds: float
    peak_mb: float | None
    counts: dict[str, Any]


@dataclass(frozen=True)
class Numbers:
    """Everything that the report says.

    Attributes
    ----------
    read, rejected, samples : int
        Records of the input, those set aside, and the rest, which is the pool.
    chosen : int
        Samples of the selection.
    budget : str
        What was asked for.
    seed_subset, seed_chosen : int
        Samples the seed model was tuned on, and those of them that were chosen.
    pool_necessity, chosen_necessity : Statistics
        Necessity of all scored samples and of the chosen ones.
    rejected_reasons, unscored_reasons : list of Reason
        Most frequent first.
    histogram : Histogram
        Of the whole pool.
    sources : list of Source
        Largest first; the first ones have histograms.
    groups_are_whole : bool
        Whether `groups` speaks of all samples of each group, or of the chosen ones only.
    groups : list of Group
        By number.
    highest, across, lowest : list of GalleryItem
        Samples of highest necessity; chosen ones from highest to lowest, evenly spaced; of lowest.
    stages : list of Stage
        In the order of the run.
    """

    mllm_selector: str
    format: str
    read: int
    rejected: int
    samples: int
    chosen: int
    budget: str
    seed_subset: int
    seed_chosen: int
    pool_necessity: Statistics
    chosen_necessity: Statistics
    rejected_reasons: list[Reason]
    unscored_reasons: list[Reason]
    histogram: Histogram
    sources: list[Source]
    groups_are_whole: bool
    groups: list[Group]
    highest: list[GalleryItem]
    across: list[GalleryItem]
    lowest: list[GalleryItem]
    stages: list[Stage]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def collect(run: RunDirectory, pool: Pool, gallery: int) -> Numbers:
    """Read everything that the report says.

    Parameters
    ----------
    run : RunDirectory
        With the stages ingest, score and pick done.
    pool : Pool
        Its pool.
    gallery : int
        Samples in each gallery.

    Raises
    ------
    RunDirectoryError
        If one of these stages is not done, or their files do not belong together.
    PoolError
        If a file is damaged.
    """
    from mllm_selector import __version__

    run.need("score")
    pick = run.need("pick")
    scores = ScoreTable.load(run.scores, str(pick.options["necessity"]))
    if len(scores) != len(pool):
        msg = f"{run.scores} has {len(scores)} scores for {len(pool)} samples; run 'score' again"
        raise RunDirectoryError(msg)
    selection = open_arrow(run.selection)
    rows = selection["row"].to_numpy().astype(np.int64)
    if len(rows) and rows.max() >= len(pool):
        msg = f"{run.selection} has row {rows.max()} of a pool of {len(pool)} samples; run 'pick' again"
        raise RunDirectoryError(msg)

    necessity = scores.necessity.astype(np.float64)
    chosen = np.zeros(len(pool), dtype=np.bool_)
    chosen[rows] = True
    codes, names = pool.sources()
    seed_rows = _seed_rows(run)
    rejected = _rejected(run.rejected)
    edges = _edges(necessity)
    groups, groups_are_whole = _groups(selection, codes, names)

    def items(which: NDArray[np.int64]) -> list[GalleryItem]:
        return [
            GalleryItem(
                row=int(row),
                id=sample_id,
                source=names[codes[row]],
                necessity=float(necessity[row]),
                answer_tokens=int(scores.answer_tokens[row]),
                chosen=bool(chosen[row]),
                seed=bool(np.isin(row, seed_rows)),
            )
            for row, sample_id in zip(which, pool.ids(which), strict=True)
        ]

    descending = _descending(necessity)
    chosen_descending = descending[chosen[descending]]
    rejected_count = sum(reason.count for reason in rejected)
    return Numbers(
        mllm_selector=__version__,
        format=pool.format,
        read=len(pool) + rejected_count,
        rejected=rejected_count,
        samples=len(pool),
        chosen=len(rows),
        budget=str(pick.options.get("budget", len(rows))),
        seed_subset=len(seed_rows),
        seed_chosen=int(np.isin(rows, seed_rows).sum()),
        pool_necessity=Statistics.of(necessity),
        chosen_necessity=Statistics.of(necessity[rows]),
        rejected_reasons=rejected,
        unscored_reasons=_unscored(scores.reasons, pool),
        histogram=Histogram.of(necessity, chosen, edges),
        sources=_sources(codes, names, necessity, chosen, edges),
        groups_are_whole=groups_are_whole,
        groups=groups,
        highest=items(descending[:gallery]),
        across=items(_spaced(chosen_descending, gallery)),
        lowest=items(descending[::-1][:gallery]),
        stages=[
            Stage(name, record.seconds, record.peak_mb, record.counts)
            for name, record in ((name, run.stages.get(name)) for name in STAGES)
            if record is not None and record.state == "done"
        ],
    )


def nice_step(span: float, steps: int) -> float:
    """Return the round number (1, 2 or 5 times a power of ten) that cuts a span into at most some steps."""
    rough = span / steps
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _edges(necessity: Floats) -> Floats:
    """Choose bins of a round width, and one last bin for the thin tail, which would flatten the rest."""
    values = necessity[~np.isnan(necessity)]
    if not len(values):
        return np.array([0.0, 1.0])
    low, high, highest = float(min(values.min(), 0.0)), float(np.quantile(values, 0.995)), float(values.max())
    if highest <= low:
        return np.array([low, low + 1.0])
    bins = min(MOST_BINS, max(LEAST_BINS, int(2 * math.sqrt(len(values)))))
    step = nice_step((high if high > low else highest) - low, bins)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    edges = [step * number for number in range(first, last + 1)]
    return np.array(edges if highest <= edges[-1] else [*edges, highest], dtype=np.float64)


def _sources(
    codes: NDArray[np.int32], names: list[str], necessity: Floats, chosen: Flags, edges: Floats
) -> list[Source]:
    sizes = np.bincount(codes, minlength=len(names))
    rows_of = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    sources = []
    for rank, code in enumerate(np.argsort(-sizes, kind="stable")):
        own, own_chosen = necessity[rows_of[code]], chosen[rows_of[code]]
        source = Source(
            source=names[code],
            pool=len(own),
            chosen=int(own_chosen.sum()),
            pool_share=len(own) / len(chosen),
            chosen_share=float(own_chosen.sum() / max(1, chosen.sum())),
            mean_necessity=Statistics.of(own).mean,
            histogram=Histogram.of(own, own_chosen, edges) if rank < SOURCE_HISTOGRAMS else None,
        )
        sources.append(source)
    return sources


def _groups(selection: pa.Table, codes: NDArray[np.int32], names: list[str]) -> tuple[list[Group], bool]:
    """Describe the groups: as the selection's metadata tells them, else by the chosen samples alone."""
    numbers = selection["group"].to_numpy()
    sources = codes[selection["row"].to_numpy().astype(np.int64)]
    chosen = dict(zip(*(part.tolist() for part in np.unique(numbers, return_counts=True)), strict=True))
    main = _main_sources(numbers, sources, names)
    metadata = selection.schema.metadata or {}
    whole = GROUPS_KEY in metadata
    told = json.loads(metadata[GROUPS_KEY]) if whole else _of_chosen(selection)
    return [
        Group(
            group=group["group"],
            size=group["size"],
            chosen=chosen.get(group["group"], 0),
            mean_necessity=group["mean_necessity"],
            main_source=main.get(group["group"], (None, None))[0],
            main_source_share=main.get(group["group"], (None, None))[1],
        )
        for group in told
    ], whole


def _of_chosen(selection: pa.Table) -> list[dict[str, Any]]:
    """Return number and mean necessity of each group among the chosen samples."""
    necessity = selection["necessity"].to_numpy().astype(np.float64)
    scored = ~np.isnan(necessity)
    groups, index = np.unique(selection["group"].to_numpy(), return_inverse=True)
    sums = np.bincount(index[scored], necessity[scored], minlength=len(groups))
    counts = np.bincount(index[scored], minlength=len(groups))
    return [
        {"group": group, "size": None, "mean_necessity": total / count if count else None}
        for group, total, count in zip(groups.tolist(), sums.tolist(), counts.tolist(), strict=True)
    ]


def _main_sources(
    numbers: NDArray[np.int32], sources: NDArray[np.int32], names: list[str]
) -> dict[int, tuple[str, float]]:
    """Return the most frequent source of each group's chosen samples, and its share of them."""
    pairs, counts = np.unique(np.stack([numbers, sources], axis=1), axis=0, return_counts=True)
    totals: Counter[int] = Counter()
    best: dict[int, tuple[int, int]] = {}
    for (group, code), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        totals[group] += count
        best[group] = max(best.get(group, (0, 0)), (count, -code))
    return {group: (names[-code], count / totals[group]) for group, (count, code) in best.items()}


def _seed_rows(run: RunDirectory) -> NDArray[np.int64]:
    if not run.seed_rows.is_file():
        return np.empty(0, dtype=np.int64)
    rows: NDArray[np.int64] = open_arrow(run.seed_rows)["row"].to_numpy().astype(np.int64)
    return rows


def _rejected(path: Path) -> list[Reason]:
    if not path.is_file():
        return []
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                reason = entry["reason"]
                example = {key: entry[key] for key in ("id", "record", "detail")}
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{path}, line {number} is damaged ({error!r}); delete the file and ingest again"
                raise PoolError(msg) from error
            counts[reason] += 1
            examples.setdefault(reason, [])
            if len(examples[reason]) < EXAMPLES:
                examples[reason].append(example)
    return [Reason(reason, count, examples[reason]) for reason, count in counts.most_common()]


def _unscored(reasons: pa.ChunkedArray, pool: Pool) -> list[Reason]:
    """Count why samples were not scored; a reason is a code, a colon and a detail."""
    rows = np.flatnonzero(reasons.is_valid().to_numpy())
    texts: list[str] = reasons.take(pa.array(rows)).to_pylist()
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    for row, text in zip(rows.tolist(), texts, strict=True):
        code, _, detail = text.partition(": ")
        counts[code] += 1
        examples.setdefault(code, [])
        if len(examples[code]) < EXAMPLES:
            examples[code].append({"id": pool.ids([row])[0], "row": row, "detail": detail})
    return [Reason(code, count, examples[code]) for code, count in counts.most_common()]


def _descending(necessity: Floats) -> NDArray[np.int64]:
    """Return the scored rows from highest to lowest necessity, ties by row."""
    scored = np.flatnonzero(~np.isnan(necessity))
    return scored[np.argsort(-necessity[scored], kind="stable")]


def _spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Take up to `count` rows at even distances, both ends among them."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]

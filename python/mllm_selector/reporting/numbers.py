"""What the report says in numbers: read once from the run directory, written as JSON, shown on the page."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import ScoreTable, open_arrow
from mllm_selector.config import ReportOptions
from mllm_selector.metrics import METRICS, NLL
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.reporting import reasons
from mllm_selector.reporting.groups import Group, describe_groups
from mllm_selector.reporting.histograms import Histogram, bin_edges
from mllm_selector.reporting.known import Drawn, GalleryItem, Samples
from mllm_selector.reporting.overview import Coverage, Duplicates, Embedded, Map
from mllm_selector.reporting.reasons import Reason
from mllm_selector.rundir import RunDirectory, StageRecord

__all__ = [
    "Numbers",
    "Score",
    "Source",
    "Stage",
    "Statistics",
    "collect",
    "spaced",
    "unit_of",
]

STAGES = ("ingest", "seed", "export", "score", "pick")
SOURCE_HISTOGRAMS = 12
SET_SIZE = 4
DUPLICATE_COSINE = 0.98

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Statistics:
    """A score of some samples; None where no sample was scored."""

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
class Score:
    """A score beside necessity, of the pool and of the chosen samples."""

    name: str
    pool: Statistics
    chosen: Statistics


@dataclass(frozen=True)
class Stage:
    """What a stage took and counted.

    `samples` is what went through it, None where that says little; `cost` is by the price of the machine,
    if that was given.
    """

    stage: str
    seconds: float
    peak_mb: float | None
    samples: int | None
    cost: float | None
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
    metric, unit : str
        The metric that is the necessity, and its unit in words; empty for a pure number.
    drawn : Drawn or None
        Where only some samples were scored. The necessity of any sample is then the mean of its cluster, but
        for `highest`, `across` and `lowest`, which show scored samples with their own.
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
    scores : list of Score
        What was scored beside necessity.
    map, coverage, duplicates : Map, Coverage, Duplicates, or None
        What the embeddings show (`mllm_selector.reporting.overview`).
    map_items : list of GalleryItem
        The samples of the map's points, in their order.
    duplicate_items : list of list of GalleryItem
        The samples of each set of near-duplicates.
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
    metric: str
    unit: str
    drawn: Drawn | None
    pool_necessity: Statistics
    chosen_necessity: Statistics
    rejected_reasons: list[Reason]
    unscored_reasons: list[Reason]
    histogram: Histogram
    sources: list[Source]
    groups_are_whole: bool
    groups: list[Group]
    scores: list[Score]
    map: Map | None
    map_items: list[GalleryItem]
    coverage: Coverage | None
    duplicates: Duplicates | None
    duplicate_items: list[list[GalleryItem]]
    highest: list[GalleryItem]
    across: list[GalleryItem]
    lowest: list[GalleryItem]
    stages: list[Stage]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def collect(
    run: RunDirectory, pool: Pool, options: ReportOptions, progress: Progress
) -> tuple[Numbers, float]:
    """Read everything that the report says.

    Parameters
    ----------
    run : RunDirectory
        With the stages ingest, score and pick done.
    pool : Pool
        Its pool.
    options : ReportOptions
        Size of the galleries; price of the machine.
    progress : Progress
        Told of each step that takes long.

    Returns
    -------
    numbers : Numbers
        What the report says.
    seconds : float
        What its figures of the embeddings took.

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
    selection = open_arrow(run.selection)
    samples = Samples.read(run, pool, selection, str(pick.options.get("necessity", NLL)))
    rows, necessity, own = samples.rows, samples.necessity, samples.own[samples.metric]
    rejected = reasons.rejected(run.rejected, pool.format)
    rejected_count = sum(reason.count for reason in rejected)
    edges = bin_edges(necessity)
    groups, groups_are_whole = describe_groups(selection, samples.codes, samples.names)
    started = time.monotonic()
    flat, coverage, duplicates = _overview(samples.scores, necessity, selection, pick, options, progress)
    seconds = time.monotonic() - started
    descending = _descending(own)
    chosen_descending = descending[samples.chosen[descending]]
    numbers = Numbers(
        mllm_selector=__version__,
        format=pool.format,
        read=len(pool) + rejected_count,
        rejected=rejected_count,
        samples=len(pool),
        chosen=len(rows),
        budget=str(pick.options.get("budget", len(rows))),
        seed_subset=len(samples.seed_rows),
        seed_chosen=int(np.isin(rows, samples.seed_rows).sum()),
        metric=samples.metric,
        unit=unit_of(samples.metric),
        drawn=samples.drawn,
        pool_necessity=Statistics.of(necessity),
        chosen_necessity=Statistics.of(necessity[rows]),
        rejected_reasons=rejected,
        unscored_reasons=reasons.unscored(samples.scores.reasons, pool),
        histogram=Histogram.of(necessity, samples.chosen, edges),
        sources=_sources(samples.codes, samples.names, necessity, samples.chosen, edges),
        groups_are_whole=groups_are_whole,
        groups=groups,
        scores=[
            Score(name, Statistics.of(values), Statistics.of(values[rows]))
            for name, values in samples.others.items()
        ],
        map=flat,
        map_items=samples.items([point.row for point in flat.points], necessity) if flat else [],
        coverage=coverage,
        duplicates=duplicates,
        duplicate_items=[samples.items([each.row, *each.nearest], necessity) for each in duplicates.sets]
        if duplicates
        else [],
        highest=samples.items(descending[: options.gallery], own),
        across=samples.items(spaced(chosen_descending, options.gallery), own),
        lowest=samples.items(descending[::-1][: options.gallery], own),
        stages=_stages(run, len(pool) + rejected_count, options.hourly_price),
    )
    return numbers, seconds


def unit_of(metric: str) -> str:
    """Return the unit of a metric in words; empty for a pure number."""
    return f"{METRICS[metric].unit} per answer token" if METRICS[metric].unit else ""


def _overview(
    scores: ScoreTable,
    necessity: Floats,
    selection: pa.Table,
    pick: StageRecord,
    options: ReportOptions,
    progress: Progress,
) -> tuple[Map | None, Coverage | None, Duplicates | None]:
    rows = selection["row"].to_numpy().astype(np.int64)
    in_order = rows[np.argsort(selection["order"].to_numpy(), kind="stable")]
    whole = np.concatenate([part.any(axis=1) for part in scores.embeddings])  # a row of zeros has no cosine
    scored = whole & ~np.isnan(necessity)
    embedded = Embedded(list(scores.embeddings), scored, in_order)
    groups = dict(zip(rows.tolist(), selection["group"].to_pylist(), strict=True))
    if len(set(groups.values())) == 1:
        groups = {}  # the pool as a whole says nothing of a sample
    progress.start("report", 3, "figures")
    flat = embedded.map(groups)
    progress.update(1)
    coverage = embedded.coverage()
    progress.update(2)
    cosine = pick.options.get("skip_duplicates") or DUPLICATE_COSINE
    duplicates = embedded.duplicates(cosine, options.gallery // SET_SIZE)
    progress.update(3)
    return flat, coverage, duplicates


def _stages(run: RunDirectory, read: int, hourly_price: float | None) -> list[Stage]:
    records = {name: run.stages[name] for name in STAGES if name in run.stages}
    samples: dict[str, int] = {"ingest": read}
    for name in ("score", "pick"):
        samples[name] = records["ingest"].counts.get("samples", 0) if "ingest" in records else 0
    return [
        Stage(
            name,
            record.seconds,
            record.peak_mb,
            samples.get(name),
            None if hourly_price is None else record.seconds / 3600 * hourly_price,
            record.counts,
        )
        for name, record in records.items()
        if record.state == "done"
    ]


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


def _descending(necessity: Floats) -> NDArray[np.int64]:
    """Return the scored rows from highest to lowest necessity, ties by row."""
    scored = np.flatnonzero(~np.isnan(necessity))
    return scored[np.argsort(-necessity[scored], kind="stable")]


def spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Take up to `count` rows at even distances, both ends among them."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]

"""What is known of every sample of the pool, read once for a report, and the samples that it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import ScoreTable, open_arrow
from mllm_selector.drawn import estimate
from mllm_selector.errors import RunDirectoryError
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory

__all__ = ["Drawn", "GalleryItem", "Samples"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class GalleryItem:
    """A sample that the page shows.

    `measured` is False where the sample was not scored and its necessity is the mean of its cluster.
    """

    row: int
    id: str
    source: str
    necessity: float | None
    answer_tokens: int
    chosen: bool
    seed: bool
    scores: dict[str, float | None]
    measured: bool = True


@dataclass(frozen=True)
class Drawn:
    """What was scored of a pool that was not scored whole.

    Attributes
    ----------
    measured : int
        Samples that have a necessity of their own.
    clusters, of_each : int
        Clusters, and samples drawn from each, where it has so many.
    clusters_without : int
        Clusters that have none, and the mean of the pool instead.
    """

    measured: int
    clusters: int
    of_each: int
    clusters_without: int


@dataclass(frozen=True)
class Samples:
    """What is known of every sample of the pool.

    Attributes
    ----------
    pool, scores : Pool, ScoreTable
        The samples and their scores.
    metric : str
        The metric that is the necessity.
    own : dict of str to ndarray of float64, shape (n,)
        Every metric as it was measured.
    necessity : ndarray of float64, shape (n,)
        Where only some samples were scored, that of a sample's cluster.
    others : dict of str to ndarray of float64, shape (n,)
        The other metrics, likewise.
    drawn : Drawn or None
        Where only some samples were scored.
    rows : ndarray of int64, shape (k,)
        The chosen samples.
    chosen : ndarray of bool, shape (n,)
        Whether a sample is one of them.
    seed_rows : ndarray of int64
        The samples that the seed model was tuned on.
    codes, names : ndarray of int32, shape (n,), and list of str
        The source of each sample, by its place among the names.
    """

    pool: Pool
    scores: ScoreTable
    metric: str
    own: dict[str, Floats]
    necessity: Floats
    others: dict[str, Floats]
    drawn: Drawn | None
    rows: NDArray[np.int64]
    chosen: Flags
    seed_rows: NDArray[np.int64]
    codes: NDArray[np.int32]
    names: list[str]

    @classmethod
    def read(cls, run: RunDirectory, pool: Pool, selection: pa.Table, metric: str) -> Self:
        """Read it; raise if the files are not those of one run."""
        scores = ScoreTable.load(run.scores, metric)
        rows = _chosen_rows(run, scores, pool, selection)
        drawn, known = _known(run, scores)
        chosen = np.zeros(len(pool), dtype=np.bool_)
        chosen[rows] = True
        codes, names = pool.sources()
        return cls(
            pool,
            scores,
            metric,
            own={name: values.astype(np.float64) for name, values in scores.metrics.items()},
            necessity=known.pop(metric),
            others=known,
            drawn=drawn,
            rows=rows,
            chosen=chosen,
            seed_rows=_seed_rows(run),
            codes=codes,
            names=names,
        )

    def items(self, which: NDArray[np.int64] | list[int], necessity: Floats) -> list[GalleryItem]:
        """Describe some samples, their necessity being the one given."""
        return [
            GalleryItem(
                row=int(row),
                id=sample_id,
                source=self.names[self.codes[row]],
                necessity=_number(necessity[row]),
                answer_tokens=int(self.scores.answer_tokens[row]),
                chosen=bool(self.chosen[row]),
                seed=bool(np.isin(row, self.seed_rows)),
                scores={
                    name: _number(values[row]) for name, values in self.own.items() if name != self.metric
                },
                measured=self.drawn is None or not math.isnan(self.own[self.metric][row]),
            )
            for row, sample_id in zip(which, self.pool.ids(which), strict=True)
        ]


def _known(run: RunDirectory, scores: ScoreTable) -> tuple[Drawn | None, dict[str, Floats]]:
    """Return what was drawn, and each metric of all samples, of which some may be known by their cluster."""
    estimated = estimate(run.scores, scores)
    if estimated is None:
        return None, {name: values.astype(np.float64) for name, values in scores.metrics.items()}
    clusters, filled = estimated
    scored = scores.reasons.is_null().to_numpy()
    known = {
        name: clusters.fill(values, scored).values.astype(np.float64)
        for name, values in scores.metrics.items()
    }
    of_each = int(np.bincount(clusters.labels[clusters.drawn]).max(initial=0))
    return Drawn(filled.measured, clusters.count, of_each, filled.without), known


def _chosen_rows(run: RunDirectory, scores: ScoreTable, pool: Pool, selection: pa.Table) -> NDArray[np.int64]:
    """Return the chosen rows; raise if the files are not those of one run."""
    if len(scores) != len(pool):
        msg = f"{run.scores} has {len(scores)} scores for {len(pool)} samples; run 'score' again"
        raise RunDirectoryError(msg)
    rows: NDArray[np.int64] = selection["row"].to_numpy().astype(np.int64)
    if len(rows) and rows.max() >= len(pool):
        msg = f"{run.selection} has row {rows.max()} of a pool of {len(pool)} samples; run 'pick' again"
        raise RunDirectoryError(msg)
    return rows


def _seed_rows(run: RunDirectory) -> NDArray[np.int64]:
    if not run.seed_rows.is_file():
        return np.empty(0, dtype=np.int64)
    rows: NDArray[np.int64] = open_arrow(run.seed_rows)["row"].to_numpy().astype(np.int64)
    return rows


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

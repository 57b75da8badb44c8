"""Clusters of a pool of which only some samples are scored, and what is known of the others by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import ScoreTable, open_arrow, write_arrow
from mllm_selector.errors import RunDirectoryError

__all__ = ["NOT_DRAWN", "SCHEMA", "Clusters", "Filled", "estimate"]

FILE = "clusters.arrow"
"""Name of the file in the folder of the scores."""

NOT_DRAWN = "not-drawn"
"""The reason of samples that were not scored since they were not drawn."""

SCHEMA = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("cluster", pa.int32()),
        pa.field("drawn", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Filled:
    """A metric of all samples, of which only some were scored.

    Attributes
    ----------
    values : ndarray of float32, shape (n,)
        For each sample the mean over the scored ones of its cluster; NaN for samples without a cluster, and
        for drawn ones that have not the metric.
    measured : int
        Samples that the means are made of.
    without : int
        Clusters none of whose drawn samples could be scored: they have the mean of the pool.
    """

    values: NDArray[np.float32]
    measured: int
    without: int


@dataclass(frozen=True)
class Clusters:
    """The cluster of each sample, and which samples were drawn to be scored.

    Attributes
    ----------
    labels : ndarray of int32, shape (n,)
        From 0; -1 for samples that could not be read and so have no embedding.
    drawn : ndarray of bool, shape (n,)
        Whether the sample was drawn.
    """

    labels: NDArray[np.int32]
    drawn: NDArray[np.bool_]

    @classmethod
    def load(cls, path: Path, rows: range | None = None) -> Self:
        """Read what `save` wrote, or some rows of it.

        Raises
        ------
        RunDirectoryError, PoolError
            If the file is missing or not whole.
        """
        table = open_arrow(path)
        if rows is not None:
            table = table.slice(rows.start, len(rows))
        return cls(table["cluster"].fill_null(-1).to_numpy(), table["drawn"].to_numpy())

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write an Arrow file with columns ``row``, ``cluster`` (null where there is none) and ``drawn``."""
        columns = [
            pa.array(np.arange(len(self.labels), dtype=np.uint64)),
            pa.array(self.labels, mask=self.labels < 0),
            pa.array(self.drawn),
        ]
        write_arrow(path, pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata)))

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.labels.max(initial=-1)) + 1

    def fill(self, values: NDArray[np.float32], scored: NDArray[np.bool_]) -> Filled:
        """Give every sample of a cluster the mean over those that were scored.

        A cluster none of whose drawn samples could be scored takes the mean of the pool, as estimated from
        the other clusters: their means, weighted by their sizes. (The plain mean of the drawn samples would
        count small clusters as much as large ones.) A cluster whose scored samples all lack the metric, such
        as ``visnec`` where no sample has an image, has no value.

        Parameters
        ----------
        values : ndarray of float32, shape (n,)
            The metric; NaN where it was not measured.
        scored : ndarray of bool, shape (n,)
            Whether the sample was scored at all.
        """
        has_cluster = self.labels >= 0
        measured = has_cluster & ~np.isnan(values)
        counts = np.bincount(self.labels[measured], minlength=self.count)
        sums = np.bincount(self.labels[measured], values[measured].astype(np.float64), minlength=self.count)
        means = np.divide(sums, counts, out=np.full(self.count, np.nan), where=counts > 0)
        known = counts > 0
        unscored = np.bincount(self.labels[has_cluster & scored], minlength=self.count) == 0
        if known.any():
            sizes = np.bincount(self.labels[has_cluster], minlength=self.count)
            means[unscored] = np.average(means[known], weights=sizes[known])
        filled = np.full(len(values), np.nan, np.float32)
        filled[has_cluster] = means[self.labels[has_cluster]]
        filled[self.drawn & np.isnan(values)] = np.nan
        return Filled(filled, int(measured.sum()), int(unscored.sum()))


def estimate(folder: Path, scores: ScoreTable) -> tuple[Clusters, Filled] | None:
    """Return what is known of the necessity of all samples, where only some were scored.

    Parameters
    ----------
    folder : Path
        The folder of the score parts.
    scores : ScoreTable
        What they hold.

    Returns
    -------
    (Clusters, Filled) or None
        None where every sample was scored: each has its own necessity.

    Raises
    ------
    RunDirectoryError, PoolError
        If the clusters are not those of the scores, or damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    clusters = Clusters.load(path)
    if len(clusters.labels) != len(scores):
        msg = f"{path} has {len(clusters.labels)} samples, the scores {len(scores)}; run 'score' again"
        raise RunDirectoryError(msg)
    return clusters, clusters.fill(scores.necessity, scores.reasons.is_null().to_numpy())

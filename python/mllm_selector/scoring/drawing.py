"""Which samples are scored where not all are: clusters of the input embeddings, and a draw from each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import open_arrow, read_embeddings
from mllm_selector.config import ScoreOptions
from mllm_selector.drawn import SCHEMA, Clusters
from mllm_selector.errors import PoolError
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.sampling import cluster
from mllm_selector.scoring.parts import KEY

__all__ = ["draw", "find_clusters"]

STREAM = 1 << 32
"""Second half of the key of Philox: the seed subset is drawn by others."""


def find_clusters(run: RunDirectory, options: ScoreOptions, progress: Progress) -> Clusters:
    """Cluster the samples by their input embeddings, and draw some of each cluster.

    Parameters
    ----------
    run : RunDirectory
        With the embeddings of the whole pool. The result is written to its ``clusters``; what this run has
        written there before stays.
    options : ScoreOptions
        Clusters, samples of each, seed and threads.
    progress : Progress
        What is told of the clustering.
    """
    metadata = {KEY: run.stages["score"].key}
    if not _is_whole(run, SCHEMA.with_metadata(metadata)):
        reasons, embeddings = read_embeddings(run.scores)
        rows = np.flatnonzero(reasons.is_null().to_numpy())
        labels = np.full(len(reasons), -1, np.int32)
        if len(rows):
            index = None if len(rows) == len(reasons) else rows
            labels[rows] = _clustered(embeddings, index, len(rows), options, progress)
        drawn = draw(labels, options.scored_per_cluster or 0, options.seed)
        Clusters(labels, drawn).save(run.clusters, metadata)
        run.checksums.add(run.clusters)
    return Clusters.load(run.clusters)


def draw(labels: NDArray[np.int32], count: int, seed: int) -> NDArray[np.bool_]:
    """Draw some members of each cluster uniformly, all of smaller ones.

    Parameters
    ----------
    labels : ndarray of int32, shape (n,)
        Cluster of each row; a negative one is none, and never drawn.
    count : int
        Members to draw from each.
    seed : int
        The lowest numbers of Philox win, row `i` having the `i`-th: so a row's luck is the same whatever the
        clusters are.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    key = np.array([seed % 2**64, STREAM], dtype=np.uint64)
    luck = np.random.Philox(key=key).random_raw(len(labels))
    order = np.lexsort((luck, labels))  # stable: ties to the lowest row
    ordered = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    drawn = np.zeros(len(labels), dtype=np.bool_)
    drawn[order] = (rank < count) & (ordered >= 0)
    return drawn


def _clustered(
    embeddings: Sequence[NDArray[np.float16]],
    index: NDArray[np.int64] | None,
    n: int,
    options: ScoreOptions,
    progress: Progress,
) -> NDArray[np.int32]:
    # Samples that cannot be read may have left fewer than the clusters that were asked for.
    count = None if options.cluster_count is None else min(options.cluster_count, n)
    _, labels = cluster(list(embeddings), index, n, count, options.seed, options.threads, progress)
    return labels.astype(np.int32)


def _is_whole(run: RunDirectory, schema: pa.Schema) -> bool:
    if not run.clusters.exists() or run.checksums.damages([run.clusters]):
        return False
    try:
        found: bool = open_arrow(run.clusters).schema.equals(schema, check_metadata=True)
    except PoolError:
        return False
    return found

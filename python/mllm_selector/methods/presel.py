"""PreSel: tasks by how much the instruction matters, then typical samples of each cluster (arXiv 2503.07591).

The importance of a task is by its instruction relevance score, the mean over a reference set of
``loss(answer | image, instruction) / loss(answer | image)``: a task's share of the budget is
``softmax(-score / T)`` over the tasks, ``T = 1 / sqrt(tasks)``. In each task, features are clustered by
k-means into 1 % of its number of samples, each cluster gives in proportion to its size, and those of the
highest typicality are chosen: the mean cosine to the 5 nearest samples of the cluster.

A task is a source here. The ratios are a column, by default ``ifd``; samples without one count for nothing
in the mean, so it may be that of a reference set only. Features are the score stage's embeddings, in the
paper those of the image by DINOv2, so that no instruction has to be written before selection. Budgets are
exact: shares are rounded by the largest remainder, and what a small task cannot give the others do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import option
from mllm_selector.errors import UsageError
from mllm_selector.methods.base import (
    Method,
    Need,
    Parameters,
    Samples,
    Task,
    allocate,
    highest,
    interleave,
)
from mllm_selector.samples import Labels

__all__ = ["METHOD"]

SAMPLES_PER_CLUSTER = 100
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class _PreSel(Parameters):
    ratio: str = option(
        "ifd", help="Column with the ratio of the answer's losses with and without the instruction."
    )
    temperature: float | None = option(
        None, help="Of the softmax over the tasks; default 1 / sqrt(number of tasks)."
    )

    def check(self) -> None:
        """Check the parameters."""
        self.at_least("temperature", 0, above=True)


def _tasks(samples: Samples) -> Labels:
    if samples.sources is None:
        msg = "method: presel needs the sources, which are its tasks; give the source of each sample"
        raise UsageError(msg)
    return samples.sources


def _groups(samples: Samples, parameters: _PreSel) -> NDArray[np.uint32]:
    """Cluster each task; the clusters of all tasks are numbered one after another."""
    codes = _tasks(samples).codes
    groups = np.zeros(len(samples), np.uint32)
    first = 0
    for task in np.unique(codes):
        members = np.flatnonzero(codes == task)
        count = max(1, len(members) // SAMPLES_PER_CLUSTER)
        centroids, labels = samples.clusters_of(samples.rows[members], count)
        groups[members] = labels + np.uint32(first)
        first += len(centroids)
    return groups


def _weights(samples: Samples, parameters: _PreSel) -> NDArray[np.float64]:
    """Return the share of each source, 0 for those without candidates."""
    labels = _tasks(samples)
    ratios = samples.column(parameters.ratio).astype(np.float64)
    known, there = np.flatnonzero(~np.isnan(ratios)), np.unique(labels.codes)
    counts = np.bincount(labels.codes[known], minlength=len(labels.names))
    for task in there:
        if not counts[task]:
            msg = (
                f"column '{parameters.ratio}': no sample of source '{labels.names[task]}' has a "
                "value; presel needs some of each"
            )
            raise UsageError(msg)
    sums = np.bincount(labels.codes[known], ratios[known], minlength=len(labels.names))
    scores = sums[there] / counts[there]
    temperature = parameters.temperature or 1 / math.sqrt(len(there))
    weights = np.zeros(len(labels.names))
    # The greatest exponent becomes 0, which changes no share.
    weights[there] = np.exp((scores.min() - scores) / temperature)
    return weights


def _choose(task: Task, parameters: _PreSel) -> NDArray[np.int64]:
    samples, groups = task.samples, task.groups
    assert groups is not None
    codes = _tasks(samples).codes[task.open]
    weights = _weights(samples, parameters)
    quotas = allocate(task.budget, weights, np.bincount(codes, minlength=len(weights)))
    typicality = np.zeros(len(samples))
    typicality[task.open] = _internal.typicality(
        samples.matrix,
        samples.rows[task.open],
        np.ascontiguousarray(groups[task.open]),
        count=NEIGHBOURS,
        threads=samples.options.threads,
        progress=samples.report("compare", "samples"),
    )
    lists = []
    for code in np.flatnonzero(quotas):
        members = task.open[codes == code]
        clusters, sizes = np.unique(groups[members], return_counts=True)
        shares = allocate(int(quotas[code]), sizes, sizes)
        lists += [
            highest(typicality, members[groups[members] == cluster], share)
            for cluster, share in zip(clusters, shares.tolist(), strict=True)
        ]
    return interleave(lists)


METHOD = Method(
    name="presel",
    about="typical samples, more of tasks whose instruction matters (PreSel); column ifd",
    choose=_choose,
    parameters=_PreSel,
    needs=lambda parameters: [
        Need(
            parameters.ratio, "score it with 'score --metrics ifd', or join it with --scores FILE", gaps=True
        )
    ],
    groups=_groups,
)

"""SemDeDup: removes what is most like another sample of its cluster (Abbas and others, arXiv 2303.09540).

In each cluster the samples are visited from the farthest from its centre to the nearest, and a sample is
removed if its cosine with one visited before, removed or not, is above ``1 - eps``. So what is kept for one
eps is a part of what is kept for a smaller one, and there is an eps for every budget: the samples are
chosen by their greatest cosine with one visited before, lowest first, ties to the lowest row.

The paper clusters by spherical k-means too and gives eps, not a budget; the distance is to the mean
direction of the cluster's candidates, which is the centroid but for the last update.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.methods.base import Method, Parameters, Samples, Task

__all__ = ["METHOD"]


def _groups(samples: Samples, parameters: Parameters) -> NDArray[np.uint32]:
    return samples.clusters()[1]


def _choose(task: Task, parameters: Parameters) -> NDArray[np.int64]:
    samples, groups = task.samples, task.groups
    assert groups is not None

    def compare() -> NDArray[np.float64]:
        return _internal.redundancy(
            samples.matrix,
            samples.index(),
            groups,
            threads=samples.options.threads,
            progress=samples.report("compare", "samples"),
        )

    redundancy = samples.once("redundancy", compare)[task.open]
    return task.open[np.argsort(redundancy, kind="stable")[: task.budget]]


METHOD = Method(
    name="semdedup",
    about="the samples least like another of their cluster (SemDeDup)",
    choose=_choose,
    groups=_groups,
    uses=frozenset({"group_count"}),
)

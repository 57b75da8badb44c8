"""VisNec: the samples that need their image most, from each cluster (arXiv 2603.01195).

``VisNec = L(answer | text) - L(answer | text, image)``: below 0 the image misleads, about 0 it is not
needed. Samples of 0 or less are dropped, the rest is clustered by meaning, and the same share of every
cluster is chosen, highest first. The paper's encoder and number of clusters are not public: ours are the
embeddings of the score stage and `group_count`, and clusters are made before the drop. Shares are rounded
by the largest remainder, so that the budget is met. Samples without an image have no VisNec and are not
chosen; they are counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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

__all__ = ["METHOD"]


def _groups(samples: Samples, parameters: Parameters) -> NDArray[np.uint32]:
    return samples.clusters()[1]


def _choose(task: Task, parameters: Parameters) -> NDArray[np.int64]:
    assert task.groups is not None
    scores = task.samples.column("visnec")
    needed = task.open[scores[task.open] > 0]
    if len(needed) < task.budget:
        msg = (
            f"budget: {task.budget} samples cannot be chosen by visnec: {len(needed)} of "
            f"{len(task.open)} have "
            f"one above 0; lower the budget to at most {len(needed)} or choose another method"
        )
        raise UsageError(msg)
    clusters = task.groups[needed]
    sizes = np.bincount(clusters)
    quotas = allocate(task.budget, sizes, sizes)
    members = np.split(needed[np.argsort(clusters, kind="stable")], np.cumsum(sizes)[:-1])
    return interleave(
        [highest(scores, own, quota) for own, quota in zip(members, quotas.tolist(), strict=True)]
    )


METHOD = Method(
    name="visnec",
    about="the highest VisNec, gain by the image, from each cluster; column visnec",
    choose=_choose,
    needs=lambda parameters: [
        Need("visnec", "score it with 'score --metrics visnec', or join it with --scores FILE")
    ],
    groups=_groups,
    uses=frozenset({"group_count"}),
)

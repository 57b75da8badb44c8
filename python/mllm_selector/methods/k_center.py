"""Greedy k-center on the embeddings: samples that cover the pool (Gonzalez, TCS 38, 1985).

The next sample is the one whose cosine distance to the nearest chosen one is greatest; the first is the one
nearest the mean, if nothing was chosen before. Used for choosing training data by Sener and Savarese, Active
learning for convolutional neural networks: a core-set approach (arXiv 1708.00489).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.methods.base import Method, Parameters, Task

__all__ = ["METHOD", "covering"]


def covering(task: Task, weights: NDArray[np.float32] | None) -> NDArray[np.int64]:
    """Choose by greedy k-center around what is taken; with weights (m,), by weight times distance.

    With weights and nothing taken, the first is the sample of the greatest weight.
    """
    samples, before = task.samples, len(task.taken)
    places = np.concatenate([task.taken, task.open])
    first: NDArray[np.int64] | None = np.arange(before)
    if not before:
        first = None if weights is None else np.array([np.argmax(weights[places])])
    centres, _ = _internal.k_center(
        samples.matrix,
        k=before + task.budget,
        metric="cosine",
        first=first,
        weights=None if weights is None else np.ascontiguousarray(weights[places]),
        threads=samples.options.threads,
        progress=samples.report("cover", "samples"),
        index=samples.index(samples.rows[places]),
    )
    return places[centres[before:]]


def _choose(task: Task, parameters: Parameters) -> NDArray[np.int64]:
    return covering(task, None)


METHOD = Method(name="k-center", about="samples far apart: greedy k-center on the embeddings", choose=_choose)

"""A uniform draw: the baseline that selection methods must beat, and often do not at small budgets.

Every sample has a random rank that depends on its row and the seed alone, and the lowest ranks are chosen: a
smaller budget gives a part of what a larger one gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.methods.base import Method, Parameters, Task

__all__ = ["METHOD"]


def _choose(task: Task, parameters: Parameters) -> NDArray[np.int64]:
    n, seed = task.samples.pool_size, task.samples.options.seed
    # As many random groups as rows: a random order.
    ranks = _internal.random_groups(n, n, seed)[task.samples.rows[task.open]]
    return task.open[np.argsort(ranks)[: task.budget]]


METHOD = Method(name="random", about="a uniform draw", choose=_choose)

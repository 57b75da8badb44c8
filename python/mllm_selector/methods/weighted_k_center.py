"""Greedy k-center weighted by a score: the next sample has the greatest score times distance to the chosen.

Negative scores count as 0. The first sample is that of the highest score, if nothing was chosen before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_selector.methods.base import Method, Need, Task
from mllm_selector.methods.k_center import covering
from mllm_selector.methods.top import By

__all__ = ["METHOD"]


def _choose(task: Task, parameters: By) -> NDArray[np.int64]:
    # Scores of samples that are closed are not looked at.
    return covering(task, np.maximum(task.samples.column(parameters.by), np.float32(0)))


METHOD = Method(
    name="weighted-k-center",
    about="greedy k-center on score times distance",
    choose=_choose,
    parameters=By,
    needs=lambda parameters: [Need(parameters.by)],
)

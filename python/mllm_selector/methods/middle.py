"""The samples of middle score: neither what the model can do nor what it may never learn.

The samples nearest by rank to the median are chosen, the median first; known from pruning by perplexity
(Marion and others, When less is more, arXiv 2309.04564, keep the middle of the distribution).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_selector.methods.base import Method, Need, Task
from mllm_selector.methods.top import By

__all__ = ["METHOD"]


def _choose(task: Task, parameters: By) -> NDArray[np.int64]:
    by_score = task.open[np.argsort(task.samples.column(parameters.by)[task.open], kind="stable")]
    # Twice the distance from the median rank is a whole number.
    distances = np.abs(2 * np.arange(len(by_score)) - (len(by_score) - 1))
    return by_score[np.lexsort((by_score, distances))[: task.budget]]


METHOD = Method(
    name="middle",
    about="the scores nearest to the median",
    choose=_choose,
    parameters=By,
    needs=lambda parameters: [Need(parameters.by)],
)

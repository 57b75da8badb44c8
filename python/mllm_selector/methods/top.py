"""The samples of the highest score: the plainest use of a score, and usually a bad one.

Among samples of the highest loss, wrong answers gather, and easy kinds of samples are missing altogether.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import option
from mllm_selector.methods.base import Method, Need, Parameters, Task, highest

__all__ = ["METHOD", "By"]


@dataclass(frozen=True, kw_only=True)
class By(Parameters):
    """Which score decides."""

    by: str = option("necessity", help="The score: a metric that was scored, or a column of --scores.")


def _choose(task: Task, parameters: By) -> NDArray[np.int64]:
    return highest(task.samples.column(parameters.by), task.open, task.budget)


METHOD = Method(
    name="top",
    about="the highest scores",
    choose=_choose,
    parameters=By,
    needs=lambda parameters: [Need(parameters.by)],
)

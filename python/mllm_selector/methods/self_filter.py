"""Self-Filter: the most difficult samples, with a penalty for what is like them (arXiv 2402.12501).

Again and again the sample of the highest difficulty ``d_i`` is chosen, and its 10 nearest samples that are
not chosen lose ``gamma d_i cos^2`` of theirs (stage 2). In the paper, difficulty comes from a score net
that is trained together with the model on the whole pool, and nearness from CLIP features; here, difficulty
is any column, by default necessity, and nearness that of the score stage's embeddings. The paper's code
fails where fewer than 10 samples are left; ours penalises those that are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import option
from mllm_selector.methods.base import Method, Need, Task
from mllm_selector.methods.top import By

__all__ = ["METHOD"]


@dataclass(frozen=True, kw_only=True)
class _SelfFilter(By):
    gamma: float = option(1.0, help="Strength of the penalty.")
    neighbours: int = option(10, help="How many of the nearest samples get it.")

    def check(self) -> None:
        """Check the parameters."""
        self.at_least("gamma", 0)
        self.at_least("neighbours", 1)


def _choose(task: Task, parameters: _SelfFilter) -> NDArray[np.int64]:
    samples = task.samples
    places = np.sort(np.concatenate([task.taken, task.open]))
    chosen = _internal.penalised(
        samples.matrix,
        samples.index(samples.rows[places]),
        samples.column(parameters.by)[places].astype(np.float64),
        k=task.budget,
        first=np.searchsorted(places, task.taken),
        neighbours=parameters.neighbours,
        gamma=parameters.gamma,
        threads=samples.options.threads,
        progress=samples.report("filter", "steps"),
    )
    return places[chosen]


METHOD = Method(
    name="self-filter",
    about="the highest scores, each pick lowering those of its neighbours (Self-Filter)",
    choose=_choose,
    parameters=_SelfFilter,
    needs=lambda parameters: [Need(parameters.by)],
)

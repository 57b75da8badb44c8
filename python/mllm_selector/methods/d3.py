"""D3: diversity, difficulty and dependability (Zhang and others, arXiv 2503.11441).

Difficulty is UPD, uncertainty-based prediction difficulty: the mean over the answer tokens of
``sigmoid(loss) * max(0, 1 - entropy / log(vocabulary))``, the column ``upd`` of the score stage.
Dependability is a score that a teacher model gives to the answer, any column from 0 up. The paper combines
the three criteria in a weighted coreset objective.

Ours: samples are chosen by greedy k-center on UPD times dependability times the cosine distance to the
nearest chosen sample. That this greedy form is the paper's is our reading, not verified. Without a column
for dependability all samples count as dependable. The paper scores and selects in several rounds, each with
the model tuned on what was chosen before; here a round is a run: tune the seed model on the last choice,
score again, and pick with ``--seed-samples include``, which takes the last choice and goes on from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import option
from mllm_selector.methods.base import Method, Need, Parameters, Task
from mllm_selector.methods.k_center import covering

__all__ = ["METHOD"]


@dataclass(frozen=True, kw_only=True)
class _D3(Parameters):
    dependability: str | None = option(
        None, help="Column of --scores with the dependability of each sample; without it all count the same."
    )


def _needs(parameters: _D3) -> list[Need]:
    judged = parameters.dependability
    upd = Need("upd", "score it with 'score --metrics upd', or join it with --scores FILE")
    return [upd] if judged is None else [upd, Need(judged)]


def _choose(task: Task, parameters: _D3) -> NDArray[np.int64]:
    weights = np.maximum(task.samples.column("upd"), np.float32(0))
    if parameters.dependability is not None:
        weights = weights * np.maximum(task.samples.column(parameters.dependability), np.float32(0))
    return covering(task, weights)


METHOD = Method(
    name="d3",
    about="UPD times dependability times distance (D3); column upd",
    choose=_choose,
    parameters=_D3,
    needs=_needs,
)

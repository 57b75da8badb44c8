"""MIWV: the samples whose answer a similar sample as example does not make easier (arXiv 2511.07074).

With ``k`` the sample nearest to ``i`` by instruction, ``MIWV(i) = L(y_i | x_i, example k) - L(y_i | x_i)``,
``L`` the mean loss of the answer tokens; the samples of the highest value are chosen, with no other
balancing. The column ``miwv`` is made by the score stage; what its nearest neighbours are found by is said
there. The paper was made for text, with embeddings of the instruction by another model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_selector.methods.base import Method, Need, Parameters, Task, highest

__all__ = ["METHOD"]


def _choose(task: Task, parameters: Parameters) -> NDArray[np.int64]:
    return highest(task.samples.column("miwv"), task.open, task.budget)


METHOD = Method(
    name="miwv",
    about="the highest MIWV, what an example does not help with; column miwv",
    choose=_choose,
    needs=lambda parameters: [
        Need("miwv", "score it with 'score --metrics miwv', or join it with --scores FILE")
    ],
)

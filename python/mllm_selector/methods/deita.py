"""DEITA: score first, diversity-aware (Liu and others, arXiv 2312.15685).

The samples are visited by falling score, complexity times quality in the paper, and each is kept unless its
cosine with one kept before reaches a threshold; the first kept ones are the choice. Here the score is the
product of any columns, by default necessity, and the embeddings are those of the score stage. The paper
skips a sample above the threshold, ours at it too; and where fewer are kept than the budget asks for, the
paper returns fewer, ours says so and stops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import option
from mllm_selector.errors import UsageError
from mllm_selector.methods.base import Method, Need, Parameters, Task

__all__ = ["METHOD"]


@dataclass(frozen=True, kw_only=True)
class _Deita(Parameters):
    score: tuple[str, ...] = option(
        ("necessity",), help="Columns whose product is the score, such as complexity,quality."
    )
    threshold: float = option(0.9, help="Cosine from which a sample counts as near one that was chosen.")

    def check(self) -> None:
        """Check the parameters."""
        if not self.score:
            msg = "--param score: it names no column; name one or several with commas between"
            raise UsageError(msg)
        if not 0 < self.threshold <= 1:
            msg = f"--param threshold: {self.threshold} is not a cosine above 0 and up to 1"
            raise UsageError(msg)


def _choose(task: Task, parameters: _Deita) -> NDArray[np.int64]:
    samples = task.samples
    places = np.sort(np.concatenate([task.taken, task.open]))
    score = np.prod([samples.column(name)[places] for name in parameters.score], axis=0, dtype=np.float32)
    if not np.isfinite(score).all():
        msg = f"score: the product of {' and '.join(parameters.score)} is not finite in float32"
        raise UsageError(msg)
    taken = np.searchsorted(places, np.sort(task.taken))
    try:
        chosen = _internal.grouped_sample(
            score,
            np.zeros(len(places), np.uint32),
            taken,
            samples.matrix,
            samples.rows[places],
            sources=None,
            limits=[],
            budget=len(taken) + task.budget,
            share="size",
            within="top",
            trim=0.0,
            skip_duplicates=parameters.threshold,
            seed=samples.options.seed,
            threads=samples.options.threads,
            progress=samples.report("filter", "samples"),
        )
    except UsageError as error:  # it speaks of the option of another method
        raise UsageError(str(error).replace("skip_duplicates", "threshold")) from error
    return places[chosen[len(taken) :]]


METHOD = Method(
    name="deita",
    about="the highest scores that are not near a chosen sample (DEITA)",
    choose=_choose,
    parameters=_Deita,
    needs=lambda parameters: [Need(name) for name in parameters.score],
)

"""mmSSR: rich capability scores from every style and source (Lyu and others, arXiv 2503.13383).

Each sample has a score for each of several capabilities. The budget is shared out equally among the
capabilities, and a capability's part equally among the bins, a bin being a style of answer in a source; in
each bin the samples of the highest score above a threshold come first, and what a small bin lacks goes to
the next larger one. The round is repeated with what is left of the budget until it is met; a capability
that adds nothing is dropped.

The scores, and 0/1 columns for the styles (a sample may have several), are columns that the user joins;
without styles the bins are the sources. The paper gets both from models trained on the answers of a large
one. Ties of scores go to the lowest row and capabilities keep their order, where the paper's code leaves
both to chance; a budget above the number of samples with a score above the threshold is refused, where it
fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import option
from mllm_selector.errors import UsageError
from mllm_selector.methods.base import Method, Need, Parameters, Samples, Task

__all__ = ["METHOD"]


@dataclass(frozen=True, kw_only=True)
class _MmSsr(Parameters):
    capabilities: tuple[str, ...] = option(help="Columns of --scores with a score of each capability.")
    styles: tuple[str, ...] = option(
        (), help="Columns of --scores that are above 0 for samples of a style; default no styles."
    )
    threshold: float = option(0.0, help="Scores up to this do not count.")

    def check(self) -> None:
        """Check the parameters."""
        if not self.capabilities:
            msg = "--param capabilities: it names no column; name one or several with commas between"
            raise UsageError(msg)


def _choose(task: Task, parameters: _MmSsr) -> NDArray[np.int64]:
    samples = task.samples
    is_open = np.zeros(len(samples), np.bool_)
    is_open[task.open] = True
    bins = _bins(samples, parameters.styles, is_open)
    if not bins:
        msg = f"styles: no open sample has one of {', '.join(parameters.styles)} above 0"
        raise UsageError(msg)
    scores = {name: samples.column(name) for name in parameters.capabilities}
    # For each capability, its candidates in each bin by falling score.
    queues = {
        name: [_by_score(values, members, parameters.threshold) for members in bins]
        for name, values in scores.items()
    }
    chosen: list[NDArray[np.int64]] = []
    left, names = task.budget, list(scores)
    while left:
        part = max(left // max(1, len(names)), 1)
        kept = []
        for name in names:
            new = _round(queues[name], min(part, left), is_open)
            if len(new):
                kept.append(name)
                chosen.append(new)
                left -= len(new)
            if not left:
                break
        names = kept
        if left and not names:
            msg = (
                f"budget: {task.budget} samples cannot be chosen by mmssr: {task.budget - left} have "
                f"a score above {parameters.threshold:g}; lower the budget or the threshold"
            )
            raise UsageError(msg)
    return np.concatenate(chosen)


def _bins(samples: Samples, styles: tuple[str, ...], is_open: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the open samples of each style in each source, each bin ascending, empty ones left out."""
    labels = samples.sources
    codes = np.zeros(len(samples), np.uint32) if labels is None else labels.codes
    has_style = [samples.column(name) > 0 for name in styles] or [np.ones(len(samples), np.bool_)]
    bins = [
        np.flatnonzero(is_open & of_style & (codes == code))
        for of_style in has_style
        for code in np.unique(codes)
    ]
    return [members for members in bins if len(members)]


def _by_score(scores: NDArray[np.float32], members: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    able = members[scores[members] > threshold]
    return able[np.argsort(-scores[able], kind="stable")]


def _round(queues: list[NDArray[np.int64]], budget: int, is_open: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Take up to a budget from the bins of a capability, the smallest first, and close what is taken."""
    # Only what is there when the round begins makes a bin's size.
    for place, queue in enumerate(queues):
        queues[place] = queue[is_open[queue]]
    filled = [queue for queue in queues if len(queue)]
    filled.sort(key=len)
    each = max(budget // max(1, len(filled)), 1)
    taken, debt, left = [], 0, budget
    for queue in filled:
        if not left:
            break
        there = queue[is_open[queue]]
        new = there[: min(each + debt, left)]
        debt = max(each + debt - len(there), 0)
        is_open[new] = False
        taken.append(new)
        left -= len(new)
    return np.concatenate(taken) if taken else np.empty(0, np.int64)


METHOD = Method(
    name="mmssr",
    about="high scores of each capability from every style and source (mmSSR); columns of capabilities",
    choose=_choose,
    parameters=_MmSsr,
    needs=lambda parameters: [Need(name) for name in (*parameters.capabilities, *parameters.styles)],
)

"""How any method keeps to floors and ceilings of sources and to the seed samples that are all taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import PickOptions
from mllm_selector.errors import UsageError
from mllm_selector.limits import limits_of
from mllm_selector.methods.base import Method, Samples, Task, interleave
from mllm_selector.progress import Progress
from mllm_selector.samples import Candidates, Choice, Scored

__all__ = ["choose_limited"]


def choose_limited(
    method: Method, scored: Scored, options: PickOptions, parameters: Any, progress: Progress
) -> Choice:
    """Ask a method, and if its choice breaks a limit, ask it for what each source may give.

    Limits that the method keeps by itself change nothing. Else each source gets a quota: the budget is shared
    out in proportion to what the method chose from each, within the limits (`mllm_selector_core::allocate`).
    Sources whose quota lies on a limit are asked for on their own; the others are chosen together, if that
    keeps their limits, else each by its quota as well. What was chosen before is known to the method.

    Raises
    ------
    UsageError
        If the budget cannot be met, limits cannot be kept, or a column is missing.
    """
    needs = method.needs(parameters)
    columns = {need.column: scored.column(need.column, need.how) for need in needs}
    needed = {need.column: columns[need.column] for need in needs if not need.gaps}
    candidates = Candidates.of(scored, options, needed)
    samples = Samples(scored, candidates, options, progress)
    groups = None if method.groups is None else method.groups(samples, parameters)
    limited, limits = limits_of(None, scored.sources, options, candidates.budget)
    asked = _Asked(method, parameters, samples, groups)
    if limited is None:
        chosen = asked.choose(np.arange(len(samples)), candidates.taken, candidates.budget)
        return Choice.of(scored, candidates, np.concatenate([candidates.taken, chosen]), groups)
    codes = limited.codes[candidates.rows]
    available = np.bincount(codes, minlength=len(limits))
    taken = np.bincount(codes[candidates.taken], minlength=len(limits))
    _internal.check_limits(candidates.budget, limits, available.tolist(), taken.tolist())
    # A ceiling may lie far above what there is, or be endless.
    floors = np.maximum([low for _, low, _ in limits], taken)
    ceilings = np.array(
        [min(high, have) for (*_, high), have in zip(limits, available.tolist(), strict=True)]
    )
    names = [name for name, *_ in limits]
    chosen = _within(asked, names, codes, floors - taken, ceilings - taken, candidates)
    return Choice.of(scored, candidates, np.concatenate([candidates.taken, chosen]), groups)


class _Asked:
    """A method with all that does not change while it is asked."""

    def __init__(
        self, method: Method, parameters: Any, samples: Samples, groups: NDArray[np.uint32] | None
    ) -> None:
        self._method, self._parameters = method, parameters
        self._samples, self._groups = samples, groups

    def choose(self, places: NDArray[np.int64], taken: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
        """Choose among places that are not taken, and check that the method did what it was asked for."""
        is_open = np.zeros(len(self._samples), np.bool_)
        is_open[places] = True
        is_open[taken] = False
        if budget <= len(taken):
            return places[:0]
        wanted = budget - len(taken)
        assert self._method.choose is not None, "the registry checks that a method has one"
        task = Task(self._samples, self._groups, np.flatnonzero(is_open), taken, wanted)
        chosen = np.asarray(self._method.choose(task, self._parameters), np.int64)
        if len(chosen) != wanted or len(np.unique(chosen)) != wanted or not is_open[chosen].all():
            msg = (
                f"the method {self._method.name} was asked for {wanted} of {len(task.open)} open samples and "
                f"returned {len(chosen)}, some of them twice or not open; this is a defect of the method"
            )
            raise RuntimeError(msg)
        return chosen


def _within(
    asked: _Asked,
    names: list[str],
    codes: NDArray[np.uint32],
    floors: NDArray[np.int64],
    ceilings: NDArray[np.int64],
    candidates: Candidates,
) -> NDArray[np.int64]:
    """Choose within floors and ceilings of what is chosen beside the taken ones from each source."""
    everywhere = np.arange(len(codes))
    taken, new = candidates.taken, candidates.budget - len(candidates.taken)
    count = len(floors)

    def fits(counts: NDArray[np.int64], which: NDArray[np.bool_]) -> bool:
        return bool(((counts >= floors) & (counts <= ceilings) | ~which).all())

    chosen = asked.choose(everywhere, taken, candidates.budget)
    counts = np.bincount(codes[chosen], minlength=count)
    if fits(counts, np.ones(count, np.bool_)):
        return chosen
    sizes = np.bincount(np.delete(codes, taken), minlength=count)
    claims = zip(counts.tolist(), sizes.tolist(), floors.tolist(), ceilings.tolist(), strict=True)
    quotas = np.array(_internal.allocate(new, [(float(weight), *rest) for weight, *rest in claims]))
    at_limit = (quotas == floors) & (counts < floors) | (quotas == ceilings) & (counts > ceilings)
    free = ~at_limit
    lists = []
    if quotas[free].sum():
        together = asked.choose(everywhere[free[codes]], taken, len(taken) + int(quotas[free].sum()))
        if fits(np.bincount(codes[together], minlength=count), free):
            lists.append(together)
        else:
            at_limit[:] = True
    for source in np.flatnonzero(at_limit & (quotas > 0)):
        before = np.concatenate([taken, *lists])
        own = everywhere[codes == source]
        try:
            lists.append(asked.choose(own, before, len(before) + int(quotas[source])))
        except UsageError as error:
            msg = f"{error} (its limits ask for {quotas[source]} samples of source '{names[source]}')"
            raise UsageError(msg) from error
    return interleave(lists)

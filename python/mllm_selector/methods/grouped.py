"""Necessity-based grouped sampling, the package's reading of MLLM-Selector (arXiv 2503.20502).

Embeddings are clustered (or samples grouped in another way), the budget is shared out among the groups in
proportion to size times mean necessity, and samples are drawn inside each group. `mllm_selector.pick` says
what else the options offer. The paper's formulas for groups and shares are not public; these are ours.
"""

from __future__ import annotations

from mllm_selector.config import PickOptions
from mllm_selector.methods.base import Method, Parameters
from mllm_selector.progress import Progress
from mllm_selector.samples import Choice, Scored
from mllm_selector.sampling import grouped_sample

__all__ = ["METHOD"]


def _choose(scored: Scored, options: PickOptions, parameters: Parameters, progress: Progress) -> Choice:
    return grouped_sample(scored, options, progress=progress)


METHOD = Method(
    name="grouped",
    about="budget shared out among groups by necessity, draws inside them (MLLM-Selector); the default",
    whole=_choose,
    uses=frozenset({"groups", "group_count", "share", "within", "smooth", "trim", "skip_duplicates"}),
)

"""Necessity-based grouped sampling, the package's reading of MLLM-Selector (arXiv 2503.20502).

Embeddings are clustered (or samples grouped in another way), the budget is shared out among the groups in
proportion to size times mean necessity, and samples are drawn inside each group. `mllm_selector.pick` says
what else the options offer.
"""

from __future__ import annotations

from mllm_selector.config import PickOptions
from mllm_selector.progress import Progress
from mllm_selector.sampling import GroupedSample, Scored, grouped_sample

__all__ = ["choose_grouped"]


def choose_grouped(scored: Scored, options: PickOptions, progress: Progress) -> GroupedSample:
    """Choose by grouped sampling.

    Parameters
    ----------
    scored : Scored
        The pool's scores.
    options : PickOptions
        Groups, shares, and how samples are taken inside a group.
    progress : Progress
        What is told of the steps.

    Returns
    -------
    GroupedSample

    Raises
    ------
    UsageError
        If the budget is above what can be chosen, or limits cannot be kept.
    """
    return grouped_sample(
        scored.necessity,
        scored.embeddings,
        options,
        sources=scored.sources,
        seed_rows=scored.seed_rows,
        progress=progress,
    )

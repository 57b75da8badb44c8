"""A uniform draw from each source: the baseline for methods that only change the mix of sources."""

from __future__ import annotations

import dataclasses

from mllm_selector.config import PickOptions, option
from mllm_selector.methods.base import Method, Parameters
from mllm_selector.progress import Progress
from mllm_selector.samples import Choice, Scored
from mllm_selector.sampling import grouped_sample

__all__ = ["METHOD"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stratified(Parameters):
    share: str = option(
        "size",
        help="What a source's share is proportional to: its size, or nothing (the same from each).",
        choices=("size", "equal"),
    )


def _choose(scored: Scored, options: PickOptions, parameters: _Stratified, progress: Progress) -> Choice:
    by_source = dataclasses.replace(options, groups="source", share=parameters.share, within="uniform")
    return grouped_sample(scored, by_source, progress=progress)


METHOD = Method(
    name="stratified", about="a uniform draw from each source", whole=_choose, parameters=_Stratified
)

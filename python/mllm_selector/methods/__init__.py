"""Selection methods: one file each, in a registry.

A method decides which samples to choose, given what the score stage left. The stages ask this module.
"""

from __future__ import annotations

from typing import Protocol

from mllm_selector.config import PickOptions
from mllm_selector.methods.grouped import choose_grouped
from mllm_selector.progress import Progress
from mllm_selector.sampling import GroupedSample, Scored

__all__ = ["METHODS", "Method"]


class Method(Protocol):
    """Chooses samples."""

    def __call__(self, scored: Scored, options: PickOptions, progress: Progress) -> GroupedSample:
        """Choose exactly the budget, or raise `UsageError` and say why that cannot be."""


METHODS: dict[str, Method] = {"grouped": choose_grouped}

"""Samples that begin alike: what they share is read once.

Samples about one image mostly begin with the same tokens, up to the image's last one. Such samples are laid
one after the other in one sequence, what they share first; a token then sees the shared ones and those before
it of its own sample, as in tree attention (Cai et al., "Medusa", arXiv 2401.10774). Each sample keeps its own
positions, so its scores are those that it has alone, but for rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector.families.base import BRANCHES, Encoded

__all__ = ["PrefixGroup", "alone", "shared_prefixes"]

OWN_SHARE = 2
"""Tokens that the samples of a group have for themselves, at most, as a multiple of those that they share.

Each of them also passes over the others' tokens in the attention, which in the end costs more than sharing
saves.
"""


@dataclass(frozen=True)
class PrefixGroup:
    """Samples that are read as one sequence.

    Attributes
    ----------
    samples : tuple of Encoded
        One, or several with the same images that are equal up to the last token of the last image.
    """

    samples: tuple[Encoded, ...]

    @cached_property
    def prefix(self) -> int:
        """How many tokens are shared; 0 for a sample alone."""
        return prefix_length(self.samples[0]) if len(self.samples) > 1 else 0

    def __len__(self) -> int:
        return self.prefix + sum(len(sample) - self.prefix for sample in self.samples)

    @cached_property
    def joined(self) -> Encoded:
        """The sequence; `Encoded.per_token` says as `BRANCHES` which tokens are whose."""
        first, *others = self.samples
        if not others:
            return first
        per_token = {
            name: self._join([sample.per_token[name] for sample in self.samples]) for name in first.per_token
        }
        branches = [np.full(len(sample), place, np.int64) for place, sample in enumerate(self.samples, 1)]
        branches[0][: self.prefix] = 0
        return replace(
            first,
            ids=self._join([sample.ids for sample in self.samples]),
            is_answer=self._join([sample.is_answer for sample in self.samples]),
            is_image=self._join([sample.is_image for sample in self.samples]),
            per_token=per_token | {BRANCHES: self._join(branches)},
        )

    def places(self, sample: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where some positions of a sample are in the sequence."""
        before = sum(len(other) - self.prefix for other in self.samples[:sample])
        return np.where(positions < self.prefix, positions, positions + before)

    def _join(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([arrays[0], *(array[..., self.prefix :] for array in arrays[1:])], axis=-1)


def prefix_length(sample: Encoded) -> int:
    """Return the number of tokens up to the last one of the last image; 0 without images."""
    return 1 + int(np.flatnonzero(sample.is_image)[-1]) if sample.image_tokens else 0


def alone(samples: Sequence[Encoded]) -> list[PrefixGroup]:
    """Make a group of each sample."""
    return [PrefixGroup((sample,)) for sample in samples]


def shared_prefixes(
    samples: Sequence[Encoded],
    images: Sequence[tuple[Hashable, ...]],
    token_budget: float,
    own_share: float = OWN_SHARE,
) -> list[list[int]]:
    """Find samples that can be read as one sequence.

    Parameters
    ----------
    samples : sequence of Encoded
        The samples.
    images : sequence of tuple
        What identifies each sample's images.
    token_budget : float
        Most tokens of a sequence of several samples.
    own_share : float
        Tokens that samples of a group have for themselves, at most, as a multiple of those that they share.

    Returns
    -------
    list of list of int
        Places of the samples of each group, in order; groups in the order of their first samples.
    """
    groups: list[list[int]] = []
    open_groups: dict[Hashable, int] = {}
    own_tokens: list[int] = []
    for place, (sample, shown) in enumerate(zip(samples, images, strict=True)):
        prefix = prefix_length(sample)
        own = len(sample) - prefix
        key = (shown, sample.ids[:prefix].tobytes())
        group = open_groups.get(key) if prefix else None
        if group is not None and own_tokens[group] + own <= min(own_share * prefix, token_budget - prefix):
            groups[group].append(place)
            own_tokens[group] += own
            continue
        if prefix:
            open_groups[key] = len(groups)
        groups.append([place])
        own_tokens.append(own)
    return groups

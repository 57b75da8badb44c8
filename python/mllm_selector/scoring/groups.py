"""Which readings of a shard are read as one sequence, and which sequences are computed together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mllm_selector.families.base import Arrays, Family
from mllm_selector.metrics import Variant
from mllm_selector.scoring.batching import ImageUse, length_batches, rounded_up, scorer_batch
from mllm_selector.scoring.prefixes import PrefixGroup, shared_prefixes
from mllm_selector.scoring.shards import EncodedShard, ImageRef, Item

__all__ = ["Group", "group_batches", "group_inputs", "image_uses"]


@dataclass(frozen=True)
class Group:
    """Readings of one form that are read as one sequence.

    Attributes
    ----------
    items : tuple of Item
        The readings.
    sequence : PrefixGroup
        Their samples.
    images : tuple of ImageRef
        The images that each of them shows.
    """

    items: tuple[Item, ...]
    sequence: PrefixGroup
    images: tuple[ImageRef, ...]

    @classmethod
    def of(cls, shard: EncodedShard, items: tuple[Item, ...]) -> Group:
        """Make a group of readings that `shared_prefixes` puts together, or of one."""
        return cls(items, PrefixGroup(tuple(shard.samples[item] for item in items)), shard.images[items[0]])

    @property
    def tokens(self) -> int:
        """Tokens of the readings; those that they share count for each."""
        return sum(map(len, self.sequence.samples))


def group_batches(
    shard: EncodedShard,
    token_budget: int,
    items: Iterable[Item] | None = None,
    *,
    shares: bool,
    multiple: int,
) -> list[list[Group]]:
    """Form batches of one variant each, so that a sample's scores do not depend on the other variants.

    Batches of all variants are run together, longest first: a sample's readings are about as long as each
    other, so the features of its images wait for a short time only.

    Parameters
    ----------
    shard : EncodedShard
        The readings.
    token_budget : int
        See `BatchBudget`.
    items : iterable of Item, optional
        Which of them; by default all.
    shares : bool
        Whether readings that begin alike share it.
    multiple : int
        See `Engine.length_multiple`.
    """
    by_variant: dict[Variant, list[Item]] = {}
    for item in sorted(shard.samples if items is None else items):
        by_variant.setdefault(item[0], []).append(item)
    batches = []
    for same in by_variant.values():
        groups = [Group.of(shard, each) for each in _together(shard, same, token_budget, shares=shares)]
        lengths = [rounded_up(len(group.sequence), multiple) for group in groups]
        for batch in length_batches(lengths, token_budget):
            batches.append([groups[place] for place in batch])
    return sorted(batches, key=lambda batch: -len(batch[0].sequence))


def _together(
    shard: EncodedShard, items: Sequence[Item], token_budget: int, *, shares: bool
) -> list[tuple[Item, ...]]:
    if not shares:
        return [(item,) for item in items]
    samples = [shard.samples[item] for item in items]
    images = [tuple(ref.key for ref in shard.images[item]) for item in items]
    places = shared_prefixes(samples, images, token_budget)
    return [tuple(items[place] for place in group) for group in places]


def group_inputs(
    family: Family, groups: Sequence[Group], starts: Mapping[Hashable, int], pooled: str, multiple: int
) -> Arrays:
    """Return the scorer's inputs for a batch, see `scorer_batch`; `starts` is by the images' keys."""
    first_rows = [[starts[ref.key] for ref in group.images] for group in groups]
    return scorer_batch(family, [group.sequence for group in groups], first_rows, pooled, multiple)


def image_uses(
    batches: Sequence[Sequence[Group]],
) -> tuple[dict[Hashable, ImageRef], list[list[ImageUse]]]:
    """Find the distinct images, and those that each batch needs in order of first use."""
    images: dict[Hashable, ImageRef] = {}
    uses = []
    for batch in batches:
        needed: dict[Hashable, ImageUse] = {}
        for ref in (ref for group in batch for ref in group.images):
            images.setdefault(ref.key, ref)
            needed.setdefault(ref.key, ImageUse(ref.key, ref.tokens))
        uses.append(list(needed.values()))
    return images, uses

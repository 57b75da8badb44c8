"""What is computed together: batches of samples, and where the features of their images lie.

The plan of a shard depends on its samples and the options only, so a run that was interrupted computes the
same batches as one that was not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector.families.base import Arrays, Encoded, Family
from mllm_selector.scoring.prefixes import PrefixGroup

__all__ = [
    "BatchBudget",
    "FeaturePlan",
    "ImageUse",
    "Placement",
    "embedding_places",
    "length_batches",
    "plan_features",
    "rounded_up",
    "scorer_batch",
    "split_answers",
]


@dataclass(frozen=True)
class BatchBudget:
    """How much is computed together.

    Attributes
    ----------
    tokens : int
        Most tokens in a batch, padding included; a longer sample forms its own batch.
    image_rows : int
        Most feature rows in one run of the vision graph; an image of more has its own. A row stands for a
        fixed number of patches, so this bounds the work of the vision tower, whatever the images' sizes.
    """

    tokens: int
    image_rows: int


def length_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Put samples of similar length together.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sample.
    token_budget : int
        Most tokens in a batch, padding included; a longer sample forms its own batch.

    Returns
    -------
    list of list of int
        Positions in `lengths`, longest first (so that a lack of memory shows at once), ties in order.
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        if not batches or (len(batches[-1]) + 1) * longest > token_budget:
            batches.append([])
            longest = lengths[position]
        batches[-1].append(position)
    return batches


def rounded_up(length: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a length."""
    return -(-length // multiple) * multiple


def scorer_batch(
    family: Family,
    batch: Sequence[PrefixGroup],
    starts: Sequence[Sequence[int]],
    pooled: str = "all",
    multiple: int = 1,
) -> Arrays:
    """Return the scorer's inputs for a batch, all but the features.

    Parameters
    ----------
    family : Family
        The model's family.
    batch : sequence of PrefixGroup
        The samples, each with an answer token after its first position.
    starts : sequence of sequence of int
        First feature row of each image of each group.
    pooled : {"all", "image", "text"}
        The positions that the embeddings are the mean of. Samples without images take all in place of image.
    multiple : int
        What the length of the batch is to be a multiple of, see `Engine.length_multiple`.
    """
    length = rounded_up(max(map(len, batch)), multiple)
    inputs = family.scorer_inputs([group.joined for group in batch], length)
    pooled_positions = np.zeros((len(batch), _most_samples(batch), length), dtype=np.int64)
    image_rows = np.full((len(batch), length), -1, dtype=np.int64)
    places, tokens = [], []
    for row, (group, first_rows) in enumerate(zip(batch, starts, strict=True)):
        blocks = zip(first_rows, group.joined.image_tokens, strict=True)
        rows = [np.arange(first, first + count) for first, count in blocks]
        if rows:
            image_rows[row, np.flatnonzero(group.joined.is_image)] = np.concatenate(rows)
        for index, sample in enumerate(group.samples):
            is_pooled = np.ones(len(sample), dtype=np.bool_)
            if pooled == "text" or (pooled == "image" and rows):
                is_pooled = sample.is_image == (pooled == "image")
            pooled_positions[row, index, group.places(index, np.flatnonzero(is_pooled))] = 1
            # A token is predicted from the position before it; nothing predicts the first.
            answers = np.flatnonzero(sample.is_answer[1:])
            places.append(row * length + group.places(index, answers))
            tokens.append(sample.ids[answers + 1])
    return {
        **inputs,
        "image_rows": image_rows,
        "pooled_positions": pooled_positions,
        "answer_positions": np.concatenate(places),
        "answer_tokens": np.concatenate(tokens),
    }


def embedding_places(batch: Sequence[PrefixGroup]) -> NDArray[np.int64]:
    """Return the row of each sample, in the order of the groups, in an embedding output of the scorer."""
    most = _most_samples(batch)
    return np.concatenate([row * most + np.arange(len(each.samples)) for row, each in enumerate(batch)])


def _most_samples(batch: Sequence[PrefixGroup]) -> int:
    return max(len(group.samples) for group in batch)


def split_answers(batch: Sequence[Encoded], tokens: NDArray[Any]) -> list[NDArray[Any]]:
    """Cut an output of the scorer that has a row for each answer token into the samples' own."""
    counts = [np.count_nonzero(sample.is_answer[1:]) for sample in batch]
    return np.split(tokens, np.cumsum(counts)[:-1])


@dataclass(frozen=True)
class ImageUse:
    """An image that a batch needs: what identifies it, and how many feature rows it has."""

    key: Any
    rows: int


@dataclass(frozen=True)
class Placement:
    """Images to be run through the vision graph together, and the first feature row of each."""

    images: tuple[ImageUse, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class FeaturePlan:
    """Where features lie while the batches of a shard are scored.

    Attributes
    ----------
    encode : list of list of Placement
        For each batch, what is run through the vision graph before it.
    starts : list of dict
        For each batch, the first feature row of each image that it needs, by key.
    rows : int
        Feature rows that have to be reserved.
    """

    encode: list[list[Placement]] = field(default_factory=list)
    starts: list[dict[Hashable, int]] = field(default_factory=list)
    rows: int = 0


def plan_features(batches: Sequence[Sequence[ImageUse]], capacity: int, rows_at_once: int) -> FeaturePlan:
    """Decide when each image is encoded and where its features lie.

    An image is encoded before the first batch that needs it and kept until the last one. Where memory does
    not suffice, the image needed again latest makes room and is encoded once more later (Belady's rule).

    Parameters
    ----------
    batches : sequence of sequence of ImageUse
        The distinct images that each batch needs, in order.
    capacity : int
        Feature rows to keep at most; raised to what the largest batch needs.
    rows_at_once : int
        Feature rows of the images that are encoded together, at most; an image of more is encoded alone.
    """
    capacity = max([capacity, *(sum(image.rows for image in batch) for batch in batches)])
    uses: dict[Hashable, list[int]] = {}
    for index, batch in enumerate(batches):
        for image in batch:
            uses.setdefault(image.key, []).append(index)
    memory = _Rows(capacity)
    plan = FeaturePlan()
    for index, batch in enumerate(batches):
        placements = _place(batch, memory, uses, index, rows_at_once)
        plan.encode.append(placements)
        plan.starts.append({image.key: memory.held[image.key][0] for image in batch})
        for image in batch:
            if uses[image.key][-1] == index:
                memory.release(image.key)
    return FeaturePlan(plan.encode, plan.starts, memory.highest)


def _place(
    batch: Sequence[ImageUse],
    memory: _Rows,
    uses: dict[Hashable, list[int]],
    index: int,
    rows_at_once: int,
) -> list[Placement]:
    needed = {image.key for image in batch}
    missing = [image for image in batch if image.key not in memory.held]
    placements = []
    for chunk in _chunks(missing, rows_at_once):
        while (starts := memory.take(chunk)) is None:
            others = [key for key in memory.held if key not in needed]
            if not others:
                # Free rows are scattered between those that this batch needs: start it over from empty.
                memory.clear()
                return _place(batch, memory, uses, index, rows_at_once)
            memory.release(max(others, key=lambda key: next(use for use in uses[key] if use > index)))
        placements.append(Placement(tuple(chunk), starts))
    return placements


def _chunks(images: Sequence[ImageUse], rows_at_once: int) -> Iterator[list[ImageUse]]:
    chunk: list[ImageUse] = []
    for image in images:
        if chunk and sum(each.rows for each in chunk) + image.rows > rows_at_once:
            yield chunk
            chunk = []
        chunk.append(image)
    if chunk:
        yield chunk


class _Rows:
    """Rows of memory handed out in contiguous blocks, the lowest that fits."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: dict[Hashable, tuple[int, int]] = {}
        self.highest = 0

    def take(self, images: Sequence[ImageUse]) -> tuple[int, ...] | None:
        """Find adjacent rows for some images; None if no free block is large enough."""
        total = sum(image.rows for image in images)
        start = 0
        for first, rows in sorted(self.held.values()):
            if first - start >= total:
                break
            start = first + rows
        if start + total > self.capacity:
            return None
        self.highest = max(self.highest, start + total)
        starts = []
        for image in images:
            self.held[image.key] = (start, image.rows)
            starts.append(start)
            start += image.rows
        return tuple(starts)

    def release(self, key: Hashable) -> None:
        """Give an image's rows back."""
        del self.held[key]

    def clear(self) -> None:
        """Give all rows back."""
        self.held.clear()

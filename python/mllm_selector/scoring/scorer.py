"""Scoring one shard of the pool: plan, load images ahead of the device, compute.

A shard is scored from start to end by itself, so its result does not depend on what was done before. That
holds for a lack of memory too: what does not fit is halved, and the next shard starts with whole batches.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mllm_selector.engine import Engine, memory_errors
from mllm_selector.errors import DeviceMemoryError, SampleError, ScoreError
from mllm_selector.families.base import INPUT_EMBEDDING, Arrays, Family
from mllm_selector.metrics import Answer, Metrics, Variant
from mllm_selector.pool import Pool
from mllm_selector.scoring.batching import (
    BatchBudget,
    FeaturePlan,
    ImageUse,
    embedding_places,
    length_batches,
    plan_features,
    scorer_batch,
    split_answers,
)
from mllm_selector.scoring.loading import ImageLoader, ahead
from mllm_selector.scoring.prefixes import PrefixGroup, shared_prefixes
from mllm_selector.scoring.shards import EncodedShard, ImageRef, Item, ShardScores

__all__ = ["PlannedShard", "ShardScorer", "Wanted", "Work"]

Items = tuple[Item, ...]
"""Readings of one form that are read as one sequence, see `PrefixGroup`."""

FEATURE_BYTES = 1 << 30
"""Most memory for image features that wait for samples to use them."""

WORK_AHEAD = 3
"""Batches put together before the device asks for them."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard, what of it is computed together, and its images, which are already being loaded."""

    shard: EncodedShard
    batches: list[list[Items]]
    features: FeaturePlan
    pictures: Iterator[Arrays | SampleError]


@dataclass(frozen=True)
class _See:
    """Images to be encoded together, where their features go, how many rows each has, and the tower's inputs.

    Inputs that are None are made when it is their turn.
    """

    keys: tuple[Hashable, ...]
    prepared: tuple[Arrays, ...]
    starts: tuple[int, ...]
    rows: tuple[int, ...]
    inputs: Arrays | None

    def part(self, places: slice) -> _See:
        """Return some of the images."""
        return _See(self.keys[places], self.prepared[places], self.starts[places], self.rows[places], None)


@dataclass(frozen=True)
class _Read:
    """Readings to be scored together, where the features of their images lie, and the scorer's inputs.

    Inputs that are None are made when it is their turn.
    """

    groups: tuple[Items, ...]
    starts: Mapping[Hashable, int]
    inputs: Arrays | None


@dataclass(frozen=True)
class Wanted:
    """What is computed of each sample.

    Attributes
    ----------
    metrics : Metrics
        Which metrics.
    embedding : str
        What embeddings are made of, as `ScoreOptions.embedding` says.
    project : callable
        Projects embeddings, float32 of shape (batch, width).
    only_inputs : bool
        Whether nothing but the embedding of the inputs is wanted: the samples are those of `encode_inputs`,
        and the language model is not run.
    """

    metrics: Metrics = field(default_factory=Metrics)
    embedding: str = "all"
    project: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda embeddings: embeddings
    only_inputs: bool = False

    @property
    def pooled(self) -> str:
        """The positions that a batch's embeddings are the mean of, as for `scorer_batch`."""
        if self.only_inputs:
            return "text"
        # Hidden states come with the losses, wanted or not.
        return "all" if self.embedding == "inputs" else self.embedding


@dataclass
class Work:
    """What the device has done.

    Attributes
    ----------
    busy_seconds : float
        Time during which it computed.
    splits : int
        Batches that did not fit in its memory and were halved.
    """

    busy_seconds: float = 0.0
    splits: int = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.busy_seconds += time.monotonic() - started


class ShardScorer:
    """Scores shards with one engine; a context manager that owns the threads which prepare its work.

    Parameters
    ----------
    family : Family
        The model's family.
    pool : Pool
        The pool.
    engine : Engine
        What computes.
    budget : BatchBudget
        How much is computed together.
    workers : int
        Threads that load and prepare images.
    exact : callable, optional
        Opens the engine in float32 that scores again what is not finite; None if `engine` is of float32.
    wanted : Wanted
        What is computed of each sample.

    Attributes
    ----------
    work : Work
        What has been done so far.
    """

    def __init__(
        self,
        family: Family,
        pool: Pool,
        engine: Engine,
        budget: BatchBudget,
        workers: int,
        exact: Callable[[], Engine] | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self._family = family
        self._wanted = wanted or Wanted()
        self._engine = engine
        self._budget = budget
        self._exact = None if exact is None else functools.cache(exact)
        self._loader = ImageLoader(family, pool, workers)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.work = Work()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._loader.close()

    def plan(self, shard: EncodedShard) -> PlannedShard:
        """Decide what is computed together, and start to load the first images; may run in a thread."""
        shares = self._family.shares_prefixes and not self._wanted.only_inputs
        return self._plan(shard, _batches(shard, self._budget.tokens, shares=shares), FEATURE_BYTES)

    def score(self, planned: PlannedShard, on_batch: Callable[[int, int], None]) -> ShardScores:
        """Score a shard.

        Parameters
        ----------
        planned : PlannedShard
            From `plan`.
        on_batch : callable
            Is told the numbers of readings and tokens of each batch when it is done.
        """
        shard = planned.shard
        scores = ShardScores(reasons=dict(shard.reasons))
        self._compute(planned, self._engine, scores, on_batch)
        again = scores.not_finite
        if self._exact is None:
            # What is not finite in one sample makes those not finite that are read in one sequence with it.
            groups = {item: group for batch in planned.batches for group in batch for item in group}
            again = [item for item in again if len(groups[item]) > 1]
        if again:
            scores.take_again(again)
            batches = _batches(shard, self._budget.tokens, again, shares=False)
            engine = self._engine if self._exact is None else self._exact()
            self._compute(self._plan(shard, batches, FEATURE_BYTES), engine, scores, lambda *_: None)
        return scores

    def _plan(self, shard: EncodedShard, batches: list[list[Items]], feature_bytes: int) -> PlannedShard:
        images, uses = _image_uses(shard, batches)
        capacity = feature_bytes // self._engine.feature_row_bytes
        features = plan_features(uses, capacity, self._budget.image_rows)
        order = [image.key for placements in features.encode for each in placements for image in each.images]
        return PlannedShard(shard, batches, features, self._loader.load([images[key] for key in order]))

    def _compute(
        self,
        planned: PlannedShard,
        engine: Engine,
        scores: ShardScores,
        on_batch: Callable[[int, int], None],
    ) -> None:
        planned = self._reserve(planned, engine)
        computing = _Computing(self._family, planned.shard, engine, scores, self.work, self._wanted)
        works = _work(self._family, planned, scores, self._wanted.pooled)
        for work in ahead(works, self._thread, WORK_AHEAD):
            if isinstance(work, _See):
                computing.see(work)
            elif isinstance(work, _Read):
                computing.read(work)
            else:
                on_batch(*work)

    def _reserve(self, planned: PlannedShard, engine: Engine) -> PlannedShard:
        """Make room for features; where there is little, for no more than a batch needs."""
        try:
            engine.reserve(planned.features.rows)
        except DeviceMemoryError:
            planned = self._plan(planned.shard, planned.batches, 0)
        try:
            engine.reserve(planned.features.rows)
        except DeviceMemoryError as error:
            msg = (
                f"the image features of one batch do not fit in the device's memory ({error}); give a lower "
                "--token-budget"
            )
            raise ScoreError(msg) from None
        return planned


def _batches(
    shard: EncodedShard, token_budget: int, items: Iterable[Item] | None = None, *, shares: bool
) -> list[list[Items]]:
    """Form batches of one variant each, so that a sample's scores do not depend on the other variants.

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

    Notes
    -----
    Batches of all variants are run together, longest first: a sample's readings are about as long as each
    other, so the features of its images wait for a short time only.
    """
    by_variant: dict[Variant, list[Item]] = {}
    for item in sorted(shard.samples if items is None else items):
        by_variant.setdefault(item[0], []).append(item)
    batches = []
    for same in by_variant.values():
        groups = _groups(shard, same, token_budget) if shares else [(item,) for item in same]
        lengths = [len(_sequence(shard, group)) for group in groups]
        for batch in length_batches(lengths, token_budget):
            batches.append((lengths[batch[0]], [groups[place] for place in batch]))
    return [batch for _, batch in sorted(batches, key=lambda each: -each[0])]


def _groups(shard: EncodedShard, items: Sequence[Item], token_budget: int) -> list[Items]:
    samples = [shard.samples[item] for item in items]
    images = [tuple(ref.key for ref in shard.images[item]) for item in items]
    return [
        tuple(items[place] for place in group) for group in shared_prefixes(samples, images, token_budget)
    ]


def _sequence(shard: EncodedShard, group: Items) -> PrefixGroup:
    return PrefixGroup(tuple(shard.samples[item] for item in group))


def _work(
    family: Family, planned: PlannedShard, scores: ShardScores, pooled: str
) -> Iterator[_See | _Read | tuple[int, int]]:
    """Put the engine's work together, in order; after each batch come its numbers of readings and tokens.

    Images after an unreadable one keep their planned rows; readings that need it are set aside.
    """
    shard = planned.shard
    broken: dict[Hashable, str] = {}
    places = zip(planned.batches, planned.features.encode, planned.features.starts, strict=True)
    for batch, placements, starts in places:
        for placement in placements:
            ready: list[tuple[ImageUse, int, Arrays]] = []
            for image, start in zip(placement.images, placement.starts, strict=True):
                picture = next(planned.pictures)
                if isinstance(picture, SampleError):
                    broken[image.key] = str(picture)
                    yield from _seeing(family, ready)
                    ready = []
                else:
                    ready.append((image, start, picture))
            yield from _seeing(family, ready)
        readable = []
        for group in batch:
            failed = next((ref.key for ref in shard.images[group[0]] if ref.key in broken), None)
            if failed is None:
                readable.append(group)
            else:
                scores.reasons |= dict.fromkeys(group, broken[failed])
        if readable:
            inputs = _if_it_fits(_scorer_inputs, family, shard, readable, starts, pooled)
            yield _Read(tuple(readable), starts, inputs)
        items = list(itertools.chain(*batch))
        yield len(items), sum(len(shard.samples[item]) for item in items)


def _seeing(family: Family, ready: Sequence[tuple[ImageUse, int, Arrays]]) -> Iterator[_See]:
    if ready:
        images, starts, prepared = zip(*ready, strict=True)
        keys, rows = zip(*((image.key, image.rows) for image in images), strict=True)
        yield _See(keys, prepared, starts, rows, _if_it_fits(family.vision_inputs, prepared))


def _if_it_fits(make: Callable[..., Arrays], *arguments: Any) -> Arrays | None:
    """Return inputs; None if memory lacks for them now."""
    try:
        return make(*arguments)
    except MemoryError:
        return None


def _scorer_inputs(
    family: Family, shard: EncodedShard, groups: Sequence[Items], starts: Mapping[Hashable, int], pooled: str
) -> Arrays:
    first_rows = _first_rows(shard, [group[0] for group in groups], starts)
    return scorer_batch(family, [_sequence(shard, group) for group in groups], first_rows, pooled)


def _first_rows(
    shard: EncodedShard, items: Sequence[Item], starts: Mapping[Hashable, int]
) -> list[list[int]]:
    """Return the first feature row of each image of some readings."""
    return [[starts[ref.key] for ref in shard.images[item]] for item in items]


class _Computing:
    """Has an engine do the work of one shard, halving what does not fit in the device's memory."""

    def __init__(
        self,
        family: Family,
        shard: EncodedShard,
        engine: Engine,
        scores: ShardScores,
        done: Work,
        wanted: Wanted,
    ) -> None:
        self._family = family
        self._shard = shard
        self._engine = engine
        self._scores = scores
        self._done = done
        self._wanted = wanted
        self._blind: dict[Hashable, str] = {}  # images that do not fit alone, and what is said of them
        self._most_tokens: int | None = None

    def see(self, work: _See) -> None:
        """Encode images; one that does not fit alone takes its samples along."""
        try:
            with memory_errors():
                inputs = work.inputs or self._family.vision_inputs(work.prepared)
                with self._done.timed():
                    self._engine.see(inputs, work.starts[0], sum(work.rows))
        except DeviceMemoryError:
            self._done.splits += 1
        else:
            self._scores.images_encoded += len(work.keys)
            return
        if len(work.keys) == 1:
            self._blind[work.keys[0]] = f"out-of-memory: an image of {work.rows[0]} tokens, encoded alone"
            return
        half = len(work.keys) // 2
        self.see(work.part(slice(half)))
        self.see(work.part(slice(half, None)))

    def read(self, work: _Read) -> None:
        """Score readings; one that does not fit alone is set aside."""
        blind = {group: why for group in work.groups if (why := self._why_blind(group[0])) is not None}
        for group, why in blind.items():
            self._scores.reasons |= dict.fromkeys(group, why)
        groups = tuple(group for group in work.groups if group not in blind)
        if groups:
            self._read(groups, work.starts, None if blind else work.inputs)

    def _why_blind(self, item: Item) -> str | None:
        return next(
            (self._blind[ref.key] for ref in self._shard.images[item] if ref.key in self._blind), None
        )

    def _read(self, groups: tuple[Items, ...], starts: Mapping[Hashable, int], inputs: Arrays | None) -> None:
        tokens = len(groups) * max(len(_sequence(self._shard, group)) for group in groups)
        is_one = len(groups) == 1 and len(groups[0]) == 1
        fits = self._most_tokens is None or tokens <= self._most_tokens or is_one
        try:
            if fits:
                pooled = self._wanted.pooled
                with memory_errors():
                    self._read_whole(
                        groups,
                        starts,
                        inputs or _scorer_inputs(self._family, self._shard, groups, starts, pooled),
                    )
                return
        except DeviceMemoryError:
            self._done.splits += 1
            # Batches are of about one size: the following ones are not even tried.
            self._most_tokens = tokens // 2
            if is_one:
                self._scores.reasons[groups[0][0]] = f"out-of-memory: {tokens} tokens, scored alone"
                return
        for half in _halves(groups):
            self._read(half, starts, None)

    def _read_whole(self, groups: Sequence[Items], starts: Mapping[Hashable, int], inputs: Arrays) -> None:
        items = list(itertools.chain(*groups))
        if self._wanted.only_inputs:
            self._read_inputs(items, inputs)
            return
        is_full = items[0][0] is Variant.FULL
        tokens = self._wanted.metrics.outputs if is_full else ("token_nll",)
        is_pooled = is_full and self._wanted.embedding != "inputs"
        with self._done.timed():
            result = self._engine.read(inputs, (*tokens, "sample_embedding") if is_pooled else tokens)
            if is_full and not is_pooled:
                result |= self._engine.read(self._cut_down(items, starts), (INPUT_EMBEDDING,))
        samples = [self._shard.samples[item] for item in items]
        of_tokens = {name.removeprefix("token_"): split_answers(samples, result[name]) for name in tokens}
        embeddings: Iterable[NDArray[np.float32] | None] = [None] * len(items)
        if is_pooled:
            places = embedding_places([_sequence(self._shard, group) for group in groups])
            embeddings = self._wanted.project(result["sample_embedding"][places])
        elif is_full:
            embeddings = self._wanted.project(result[INPUT_EMBEDDING])
        for place, (item, embedding) in enumerate(zip(items, embeddings, strict=True)):
            of_sample = {name: values[place] for name, values in of_tokens.items()}
            self._scores.put(item, Answer(**of_sample, vocabulary=self._family.vocabulary), embedding)

    def _cut_down(self, items: Sequence[Item], starts: Mapping[Hashable, int]) -> Arrays:
        """Return what the embeddings of the inputs of some readings are made of."""
        samples = [PrefixGroup((self._shard.inputs[item],)) for item in items]
        return scorer_batch(self._family, samples, _first_rows(self._shard, items, starts), "text")

    def _read_inputs(self, items: Sequence[Item], inputs: Arrays) -> None:
        with self._done.timed():
            result = self._engine.read(inputs, (INPUT_EMBEDDING,))
        for item, embedding in zip(items, self._wanted.project(result[INPUT_EMBEDDING]), strict=True):
            self._scores.put_inputs(item, embedding)


def _halves(groups: tuple[Items, ...]) -> tuple[tuple[Items, ...], tuple[Items, ...]]:
    """Halve a batch, or the only group of one."""
    if len(groups) > 1:
        half = len(groups) // 2
        return groups[:half], groups[half:]
    (group,) = groups
    half = len(group) // 2
    return (group[:half],), (group[half:],)


def _image_uses(
    shard: EncodedShard, batches: Sequence[Sequence[Items]]
) -> tuple[dict[Hashable, ImageRef], list[list[ImageUse]]]:
    """Find the distinct images, and those that each batch needs in order of first use."""
    images: dict[Hashable, ImageRef] = {}
    uses = []
    for batch in batches:
        needed: dict[Hashable, ImageUse] = {}
        for item, *_ in batch:  # the others of a group show the same images
            for ref, count in zip(shard.images[item], shard.samples[item].image_tokens, strict=True):
                images.setdefault(ref.key, ref)
                needed.setdefault(ref.key, ImageUse(ref.key, count))
        uses.append(list(needed.values()))
    return images, uses

"""Scoring one shard of the pool: plan, load images ahead of the device, compute.

A shard is scored from start to end by itself, so its result does not depend on what was done before. That
holds for a lack of memory too: what does not fit is halved, and the next shard starts with whole batches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mllm_selector.engine import INPUT_EMBEDDING, Engine, memory_errors
from mllm_selector.errors import DeviceMemoryError, SampleError, ScoreError
from mllm_selector.families.base import Arrays, Family
from mllm_selector.metrics import Answer, Metrics, Variant
from mllm_selector.pool import Pool
from mllm_selector.scoring.batching import (
    BatchBudget,
    FeaturePlan,
    ImageUse,
    embedding_places,
    plan_features,
    scorer_batch,
    split_answers,
)
from mllm_selector.scoring.groups import Group, group_batches, group_inputs, image_uses
from mllm_selector.scoring.loading import ImageLoader, ahead
from mllm_selector.scoring.prefixes import alone
from mllm_selector.scoring.shards import EncodedShard, Item, ShardScores

__all__ = ["PlannedShard", "ShardScorer", "Wanted", "Work"]

FEATURE_BYTES = 1 << 30
"""Most memory for image features that wait for samples to use them."""

WORK_AHEAD = 3
"""Batches put together before the device asks for them."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard, what of it is computed together, and its images, which are already being loaded."""

    shard: EncodedShard
    batches: list[list[Group]]
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

    groups: tuple[Group, ...]
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
        multiple = self._engine.length_multiple
        batches = group_batches(shard, self._budget.tokens, shares=shares, multiple=multiple)
        return self._plan(shard, batches, FEATURE_BYTES)

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
            shared = {
                item
                for batch in planned.batches
                for group in batch
                if len(group.items) > 1
                for item in group.items
            }
            again = [item for item in again if item in shared]
        if again:
            scores.take_again(again)
            engine = self._engine if self._exact is None else self._exact()
            multiple = engine.length_multiple
            batches = group_batches(shard, self._budget.tokens, again, shares=False, multiple=multiple)
            self._compute(self._plan(shard, batches, FEATURE_BYTES), engine, scores, lambda *_: None)
        return scores

    def _plan(self, shard: EncodedShard, batches: list[list[Group]], feature_bytes: int) -> PlannedShard:
        images, uses = image_uses(batches)
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
        works = _work(self._family, planned, scores, self._wanted.pooled, engine.length_multiple)
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


def _work(
    family: Family, planned: PlannedShard, scores: ShardScores, pooled: str, multiple: int
) -> Iterator[_See | _Read | tuple[int, int]]:
    """Put the engine's work together, in order; after each batch come its numbers of readings and tokens.

    Images after an unreadable one keep their planned rows; readings that need it are set aside.
    """
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
            failed = next((ref.key for ref in group.images if ref.key in broken), None)
            if failed is None:
                readable.append(group)
            else:
                scores.reasons |= dict.fromkeys(group.items, broken[failed])
        if readable:
            inputs = _if_it_fits(group_inputs, family, readable, starts, pooled, multiple)
            yield _Read(tuple(readable), starts, inputs)
        yield sum(len(group.items) for group in batch), sum(group.tokens for group in batch)


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
        seen: list[Group] = []
        for group in work.groups:
            blind = next((self._blind[ref.key] for ref in group.images if ref.key in self._blind), None)
            if blind is None:
                seen.append(group)
            else:
                self._scores.reasons |= dict.fromkeys(group.items, blind)
        if seen:
            self._read(tuple(seen), work.starts, work.inputs if len(seen) == len(work.groups) else None)

    def _read(self, groups: tuple[Group, ...], starts: Mapping[Hashable, int], inputs: Arrays | None) -> None:
        tokens = len(groups) * max(len(group.sequence) for group in groups)
        is_one = len(groups) == 1 and len(groups[0].items) == 1
        fits = self._most_tokens is None or tokens <= self._most_tokens or is_one
        try:
            if fits:
                with memory_errors():
                    inputs = inputs or self._inputs(groups, starts)
                    self._read_whole(groups, starts, inputs)
                return
        except DeviceMemoryError:
            self._done.splits += 1
            # Batches are of about one size: the following ones are not even tried.
            self._most_tokens = tokens // 2
            if is_one:
                self._scores.reasons[groups[0].items[0]] = f"out-of-memory: {tokens} tokens, scored alone"
                return
        for half in self._halves(groups):
            self._read(half, starts, None)

    def _read_whole(self, groups: Sequence[Group], starts: Mapping[Hashable, int], inputs: Arrays) -> None:
        items = [item for group in groups for item in group.items]
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
            places = embedding_places([group.sequence for group in groups])
            embeddings = self._wanted.project(result["sample_embedding"][places])
        elif is_full:
            embeddings = self._wanted.project(result[INPUT_EMBEDDING])
        for place, (item, embedding) in enumerate(zip(items, embeddings, strict=True)):
            of_sample = {name: values[place] for name, values in of_tokens.items()}
            self._scores.put(item, Answer(**of_sample, vocabulary=self._family.vocabulary), embedding)

    def _inputs(self, groups: Sequence[Group], starts: Mapping[Hashable, int]) -> Arrays:
        multiple = self._engine.length_multiple
        return group_inputs(self._family, groups, starts, self._wanted.pooled, multiple)

    def _cut_down(self, items: Sequence[Item], starts: Mapping[Hashable, int]) -> Arrays:
        """Return what the embeddings of the inputs of some readings are made of."""
        first_rows = [[starts[ref.key] for ref in self._shard.images[item]] for item in items]
        sequences = alone([self._shard.inputs[item] for item in items])
        return scorer_batch(self._family, sequences, first_rows, "text", self._engine.length_multiple)

    def _read_inputs(self, items: Sequence[Item], inputs: Arrays) -> None:
        with self._done.timed():
            result = self._engine.read(inputs, (INPUT_EMBEDDING,))
        for item, embedding in zip(items, self._wanted.project(result[INPUT_EMBEDDING]), strict=True):
            self._scores.put_inputs(item, embedding)

    def _halves(self, groups: tuple[Group, ...]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """Halve a batch, or the only group of one."""
        if len(groups) > 1:
            half = len(groups) // 2
            return groups[:half], groups[half:]
        (items,) = (group.items for group in groups)
        half = len(items) // 2
        return (Group.of(self._shard, items[:half]),), (Group.of(self._shard, items[half:]),)

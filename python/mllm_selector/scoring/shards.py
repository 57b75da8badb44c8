"""Scoring one shard of the pool: encode, plan, load images ahead of the device, compute.

A shard is scored from start to end by itself, so its result does not depend on what was done before.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import SampleError
from mllm_selector.families.base import Arrays, Encoded, Family
from mllm_selector.families.images import load_image
from mllm_selector.metrics import Answer, Variant
from mllm_selector.pool import ImageRange, Pool, PoolImage
from mllm_selector.scoring.batching import (
    IMAGES_AT_ONCE,
    ImageUse,
    Placement,
    length_batches,
    plan_features,
    scorer_batch,
    split_answers,
)
from mllm_selector.scoring.readings import read_as

__all__ = ["EncodedShard", "ShardScorer", "ShardScores", "encode_shard"]

FEATURE_BYTES = 1 << 30
"""Most memory for image features that wait for samples to use them."""


@dataclass(frozen=True)
class ImageRef:
    """An image of the pool: what identifies its content, and where a sample has it."""

    key: str | bytes
    row: int
    place: int


Item = tuple[Variant, int]
"""A reading of a row of the pool."""


@dataclass(frozen=True)
class EncodedShard:
    """The samples of a shard in tokens.

    Attributes
    ----------
    samples : dict of Item to Encoded
        The readings that can be scored.
    images : dict of Item to tuple of ImageRef
        Their images.
    reasons : dict of Item to str
        Why others cannot be scored. A row that cannot be scored as it is has no other readings.
    """

    samples: dict[Item, Encoded] = field(default_factory=dict)
    images: dict[Item, tuple[ImageRef, ...]] = field(default_factory=dict)
    reasons: dict[Item, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardScores:
    """What is known of a shard, entered as it comes.

    Attributes
    ----------
    answers : dict of Item to Answer
        The readings that were scored.
    embeddings : dict of int to ndarray of float16, shape (width,)
        Of each row that was scored as it is, L2-normalised.
    reasons : dict of Item to str
        Why other readings were not scored.
    """

    answers: dict[Item, Answer] = field(default_factory=dict)
    embeddings: dict[int, NDArray[np.float16]] = field(default_factory=dict)
    reasons: dict[Item, str] = field(default_factory=dict)

    def put(self, item: Item, answer: Answer, embedding: NDArray[np.float32] | None = None) -> None:
        """Enter a reading's scores, unless loss or embedding are not finite."""
        finite = embedding is None or np.isfinite(embedding).all()
        if not (finite and np.isfinite(answer.nll).all()):
            summed = answer.nll.sum(dtype=np.float64)
            self.reasons[item] = f"not-finite: summed loss {summed:g} over {len(answer.nll)} answer tokens"
            return
        self.answers[item] = answer
        if embedding is not None:
            self.embeddings[item[1]] = embedding.astype(np.float16)


def encode_shard(
    pool: Pool,
    rows: Sequence[int],
    family: Family,
    options: ScoreOptions,
    variants: Sequence[Variant] = (Variant.FULL,),
    examples: Mapping[int, int] | None = None,
) -> EncodedShard:
    """Encode the samples of a shard, setting aside those that are too long or have no answer.

    Parameters
    ----------
    pool : Pool
        The pool.
    rows : sequence of int
        The shard's rows.
    family : Family
        The model's family.
    options : ScoreOptions
        The largest length.
    variants : sequence of Variant
        The readings of each row.
    examples : mapping of int to int, optional
        The row that is each row's example, for `Variant.ONE_SHOT`.
    """
    limit = min(options.max_tokens, family.max_positions or options.max_tokens)
    shard = EncodedShard()
    for row in rows:
        sample = pool.sample(row)
        example = pool.sample(examples[row]) if examples and row in examples else None
        for variant in variants:
            item = (variant, row)
            try:
                reading = read_as(variant, sample, example)
                encoded = family.encode(reading)
                _check(encoded, limit)
            except SampleError as error:
                shard.reasons[item] = str(error)
                if variant is Variant.FULL:
                    break
                continue
            shard.samples[item] = encoded
            shard.images[item] = tuple(
                ImageRef(_image_key(image), *place)
                for image, place in zip(reading.images, reading.places, strict=True)
            )
    return shard


class ShardScorer:
    """Scores shards with one engine; a context manager that owns the threads which load images.

    Parameters
    ----------
    family : Family
        The model's family.
    pool : Pool
        The pool.
    engine : Engine
        The graphs.
    options : ScoreOptions
        Metrics, positions of the embedding, token budget and number of worker threads.
    project : callable, optional
        Projects embeddings, float32 of shape (batch, width); by default they stay as they are.
    """

    def __init__(
        self,
        family: Family,
        pool: Pool,
        engine: Engine,
        options: ScoreOptions,
        project: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        self._family = family
        self._pool = pool
        self._engine = engine
        self._options = options
        self._project = project or (lambda embeddings: embeddings)
        self._threads = ThreadPoolExecutor(options.workers, thread_name_prefix="images")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def score(self, shard: EncodedShard, on_batch: Callable[[int, int], None]) -> ShardScores:
        """Score a shard.

        Parameters
        ----------
        shard : EncodedShard
            From `encode_shard`.
        on_batch : callable
            Is told the numbers of readings and tokens of each batch when it is done.
        """
        scores = ShardScores(reasons=dict(shard.reasons))
        batches = _batches(shard, self._options.token_budget)
        images, uses = _image_uses(shard, batches)
        plan = plan_features(uses, FEATURE_BYTES // self._engine.feature_row_bytes)
        self._engine.reserve(plan.rows)
        order = [image.key for placements in plan.encode for each in placements for image in each.images]
        pictures = self._prepared([images[key] for key in order])
        broken: dict[str | bytes, str] = {}
        for batch, placements, starts in zip(batches, plan.encode, plan.starts, strict=True):
            for placement in placements:
                self._see(placement, pictures, broken)
            readable = []
            for item in batch:
                failed = next((ref.key for ref in shard.images[item] if ref.key in broken), None)
                if failed is None:
                    readable.append(item)
                else:
                    scores.reasons[item] = broken[failed]
            if readable:
                self._read(readable, shard, starts, scores)
            on_batch(len(batch), sum(len(shard.samples[item]) for item in batch))
        return scores

    def _see(
        self, placement: Placement, pictures: Iterator[Arrays | SampleError], broken: dict[str | bytes, str]
    ) -> None:
        """Run images through the vision graph; those after an unreadable one keep their planned rows."""
        start, rows = 0, 0
        ready: list[Arrays] = []

        def flush() -> None:
            if ready:
                self._engine.see(self._family.vision_inputs(ready), start, rows)
                ready.clear()

        for image, first in zip(placement.images, placement.starts, strict=True):
            picture = next(pictures)
            if isinstance(picture, SampleError):
                broken[image.key] = str(picture)
                flush()
                continue
            if not ready:
                start, rows = first, 0
            ready.append(picture)
            rows += image.rows
        flush()

    def _read(
        self, batch: Sequence[Item], shard: EncodedShard, starts: Mapping[Hashable, int], scores: ShardScores
    ) -> None:
        first_rows = [[starts[ref.key] for ref in shard.images[item]] for item in batch]
        samples = [shard.samples[item] for item in batch]
        inputs = scorer_batch(self._family, samples, first_rows, self._options.embedding)
        if batch[0][0] is not Variant.FULL:
            losses = split_answers(samples, self._engine.read(inputs, ("token_nll",))["token_nll"])
            for item, nll in zip(batch, losses, strict=True):
                scores.put(item, Answer(nll))
            return
        wanted = self._options.metrics.outputs
        result = self._engine.read(inputs, (*wanted, "sample_embedding"))
        tokens = {name: split_answers(samples, result[name]) for name in wanted}
        embeddings = self._project(result["sample_embedding"])
        for place, (item, embedding) in enumerate(zip(batch, embeddings, strict=True)):
            of_sample = {name.removeprefix("token_"): values[place] for name, values in tokens.items()}
            answer = Answer(**of_sample, vocabulary=self._family.vocabulary)
            scores.put(item, answer, embedding)

    def _prepared(self, refs: Sequence[ImageRef]) -> Iterator[Arrays | SampleError]:
        """Load and prepare images in worker threads, ahead of their use but not more than memory bears."""
        waiting: deque[Future[Arrays | SampleError]] = deque()
        ahead = 2 * self._options.workers + IMAGES_AT_ONCE
        for ref in refs:
            waiting.append(self._threads.submit(self._prepare, ref))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _prepare(self, ref: ImageRef) -> Arrays | SampleError:
        image = self._pool.sample(ref.row).images[ref.place]
        try:
            return self._family.prepare(load_image(image, self._name(image)))
        except SampleError as error:
            return error

    def _name(self, image: PoolImage) -> str | None:
        """Name an image as the pool does, so that parts do not depend on where images and inputs are."""
        if isinstance(image, ImageRange):
            return image.name
        folder = self._pool.images
        if isinstance(image, bytes) or folder is None or not image.is_relative_to(folder):
            return None
        return str(image.relative_to(folder))


def _check(encoded: Encoded, limit: int) -> None:
    if len(encoded) > limit:
        msg = f"too-long: {len(encoded)} tokens, at most {limit}"
        raise SampleError(msg)
    if not encoded.is_answer[1:].any():
        msg = "no-answer-tokens: the chat text holds no token of an answer"
        raise SampleError(msg)


def _batches(shard: EncodedShard, token_budget: int) -> list[list[Item]]:
    """Form batches of one variant each, so that a sample's scores do not depend on the other variants.

    Batches of all variants are run together, longest first: a sample's readings are about as long as each
    other, so the features of its images wait for a short time only.
    """
    batches = []
    for variant in Variant:
        items = sorted(item for item in shard.samples if item[0] is variant)
        lengths = [len(shard.samples[item]) for item in items]
        batches += [
            [items[position] for position in batch] for batch in length_batches(lengths, token_budget)
        ]
    return sorted(batches, key=lambda batch: -len(shard.samples[batch[0]]))


def _image_uses(
    shard: EncodedShard, batches: Sequence[Sequence[Item]]
) -> tuple[dict[str | bytes, ImageRef], list[list[ImageUse]]]:
    """Find the distinct images, and those that each batch needs in order of first use."""
    images: dict[str | bytes, ImageRef] = {}
    uses = []
    for batch in batches:
        needed: dict[str | bytes, ImageUse] = {}
        for item in batch:
            for ref, count in zip(shard.images[item], shard.samples[item].image_tokens, strict=True):
                images.setdefault(ref.key, ref)
                needed.setdefault(ref.key, ImageUse(ref.key, count))
        uses.append(list(needed.values()))
    return images, uses


def _image_key(image: PoolImage) -> str | bytes:
    if isinstance(image, ImageRange):
        return f"{image.file}:{image.offset}"
    return hashlib.blake2b(image, digest_size=16).digest() if isinstance(image, bytes) else str(image)

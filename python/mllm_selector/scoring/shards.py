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

__all__ = ["EncodedShard", "ShardScorer", "ShardScores", "encode_shard"]

FEATURE_BYTES = 1 << 30
"""Most memory for image features that wait for samples to use them."""


@dataclass(frozen=True)
class ImageRef:
    """An image of the pool: what identifies its content, and where a sample has it."""

    key: str | bytes
    row: int
    place: int


@dataclass(frozen=True)
class EncodedShard:
    """The samples of a shard in tokens.

    Attributes
    ----------
    rows : range
        The shard's rows of the pool.
    samples : dict of int to Encoded
        The samples that can be scored, by row.
    images : dict of int to tuple of ImageRef
        Their images.
    reasons : dict of int to str
        Why the other samples cannot be scored.
    """

    rows: range
    samples: dict[int, Encoded] = field(default_factory=dict)
    images: dict[int, tuple[ImageRef, ...]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


class ShardScores:
    """Scores of a shard, filled in as they come; a sample starts out as not scored.

    Attributes
    ----------
    rows : range
        The shard's rows of the pool.
    nll_sum : ndarray of float32, shape (n,)
        Summed negative log-likelihood in nats; NaN where not scored.
    answer_tokens : ndarray of uint32, shape (n,)
        Answer tokens; 0 where not scored.
    embedding : ndarray of float16, shape (n, width)
        L2-normalised; zeros where not scored.
    reasons : list of str or None
        Why a sample was not scored.
    """

    def __init__(self, rows: range, width: int) -> None:
        self.rows = rows
        self.nll_sum = np.full(len(rows), np.nan, dtype=np.float32)
        self.answer_tokens = np.zeros(len(rows), dtype=np.uint32)
        self.embedding = np.zeros((len(rows), width), dtype=np.float16)
        self.reasons: list[str | None] = [None] * len(rows)

    @property
    def necessity(self) -> NDArray[np.float32]:
        """Mean negative log-likelihood of the answer tokens, in nats; NaN where not scored."""
        return np.divide(self.nll_sum, np.maximum(self.answer_tokens, 1), dtype=np.float32)

    def set_aside(self, row: int, reason: str) -> None:
        """Say why a sample is not scored."""
        self.reasons[row - self.rows.start] = reason

    def put(self, row: int, token_nll: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
        """Enter a sample's scores, unless they are not finite."""
        nll_sum, count = token_nll.sum(dtype=np.float64), len(token_nll)
        if not (np.isfinite(nll_sum) and np.isfinite(embedding).all()):
            self.set_aside(row, f"not-finite: summed loss {nll_sum} over {count} answer tokens")
            return
        place = row - self.rows.start
        self.nll_sum[place] = nll_sum
        self.answer_tokens[place] = count
        self.embedding[place] = embedding.astype(np.float16)


def encode_shard(pool: Pool, rows: range, family: Family, options: ScoreOptions) -> EncodedShard:
    """Encode the samples of a shard, setting aside those that are too long or have no answer."""
    limit = min(options.max_tokens, family.max_positions or options.max_tokens)
    shard = EncodedShard(rows)
    for row in rows:
        sample = pool.sample(row)
        try:
            encoded = family.encode(sample)
            _check(encoded, limit)
        except SampleError as error:
            shard.reasons[row] = str(error)
            continue
        shard.samples[row] = encoded
        shard.images[row] = tuple(
            ImageRef(_image_key(image), row, place) for place, image in enumerate(sample.images)
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
        Token budget and number of worker threads.
    """

    def __init__(self, family: Family, pool: Pool, engine: Engine, options: ScoreOptions) -> None:
        self._family = family
        self._pool = pool
        self._engine = engine
        self._options = options
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
            Is told the numbers of samples and tokens of each batch when it is done.
        """
        scores = ShardScores(shard.rows, self._engine.embedding_size)
        for row, reason in shard.reasons.items():
            scores.set_aside(row, reason)
        rows = sorted(shard.samples)
        lengths = [len(shard.samples[row]) for row in rows]
        batches = [
            [rows[position] for position in batch]
            for batch in length_batches(lengths, self._options.token_budget)
        ]
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
            for row in batch:
                failed = next((ref.key for ref in shard.images[row] if ref.key in broken), None)
                if failed is None:
                    readable.append(row)
                else:
                    scores.set_aside(row, broken[failed])
            if readable:
                self._read(readable, shard, starts, scores)
            on_batch(len(batch), sum(len(shard.samples[row]) for row in batch))
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
        self, batch: Sequence[int], shard: EncodedShard, starts: Mapping[Hashable, int], scores: ShardScores
    ) -> None:
        first_rows = [[starts[ref.key] for ref in shard.images[row]] for row in batch]
        samples = [shard.samples[row] for row in batch]
        result = self._engine.read(
            scorer_batch(self._family, samples, first_rows), ("token_nll", "sample_embedding")
        )
        losses = split_answers(samples, result["token_nll"])
        for row, token_nll, embedding in zip(batch, losses, result["sample_embedding"], strict=True):
            scores.put(row, token_nll, embedding)

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


def _image_uses(
    shard: EncodedShard, batches: Sequence[Sequence[int]]
) -> tuple[dict[str | bytes, ImageRef], list[list[ImageUse]]]:
    """Find the distinct images, and those that each batch needs in order of first use."""
    images: dict[str | bytes, ImageRef] = {}
    uses = []
    for batch in batches:
        needed: dict[str | bytes, ImageUse] = {}
        for row in batch:
            for ref, count in zip(shard.images[row], shard.samples[row].image_tokens, strict=True):
                images.setdefault(ref.key, ref)
                needed.setdefault(ref.key, ImageUse(ref.key, count))
        uses.append(list(needed.values()))
    return images, uses


def _image_key(image: PoolImage) -> str | bytes:
    if isinstance(image, ImageRange):
        return f"{image.file}:{image.offset}"
    return hashlib.blake2b(image, digest_size=16).digest() if isinstance(image, bytes) else str(image)

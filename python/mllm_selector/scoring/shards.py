"""A shard of the pool: its samples in tokens, and their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import ScoreOptions
from mllm_selector.errors import SampleError
from mllm_selector.families.base import Encoded, Family
from mllm_selector.families.images import Size, image_size
from mllm_selector.metrics import Answer, Variant
from mllm_selector.pool import ImageRange, Pool, PoolImage, StoredImage
from mllm_selector.scoring.readings import read_as
from mllm_selector.stores import REQUESTS, ImageStore

__all__ = [
    "EncodedShard",
    "ImageRef",
    "Item",
    "ShardScores",
    "encode_inputs",
    "encode_shard",
    "image_name",
]

NOT_FINITE = "not-finite"


@dataclass(frozen=True)
class ImageRef:
    """An image of the pool: what identifies its content, its feature rows, and where a sample has it.

    Some models see one image in several ways, each with another number of feature rows.
    """

    content: str | bytes
    tokens: int
    row: int
    place: int

    @property
    def key(self) -> tuple[str | bytes, int]:
        """What identifies the image's features."""
        return self.content, self.tokens


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
    inputs : dict of Item to Encoded
        What the embeddings of the inputs are made of, see `Family.inputs_of`; only where they are wanted, and
        only of samples as they are.
    """

    samples: dict[Item, Encoded] = field(default_factory=dict)
    images: dict[Item, tuple[ImageRef, ...]] = field(default_factory=dict)
    reasons: dict[Item, str] = field(default_factory=dict)
    inputs: dict[Item, Encoded] = field(default_factory=dict)


@dataclass
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
    images_encoded : int
        Images that were turned into features; one that had to be encoded again counts again.
    rescored : int
        Readings scored again, each alone and in float32, since they had no finite score.
    """

    answers: dict[Item, Answer] = field(default_factory=dict)
    embeddings: dict[int, NDArray[np.float16]] = field(default_factory=dict)
    reasons: dict[Item, str] = field(default_factory=dict)
    images_encoded: int = 0
    rescored: int = 0

    @property
    def not_finite(self) -> list[Item]:
        """The readings whose scores are not finite."""
        return sorted(item for item, reason in self.reasons.items() if reason.startswith(NOT_FINITE))

    def take_again(self, items: Sequence[Item]) -> None:
        """Forget why some readings were not scored, as if they had not been tried yet."""
        self.rescored = len(items)
        for item in items:
            del self.reasons[item]

    def put(self, item: Item, answer: Answer, embedding: NDArray[np.float32] | None = None) -> None:
        """Enter a reading's scores, unless they are not finite."""
        if not (answer.is_finite and (embedding is None or np.isfinite(embedding).all())):
            summed = answer.nll.sum(dtype=np.float64)
            self.reasons[item] = f"{NOT_FINITE}: summed loss {summed:g} over {len(answer.nll)} answer tokens"
            return
        self.answers[item] = answer
        if embedding is not None:
            self.embeddings[item[1]] = embedding.astype(np.float16)

    def put_inputs(self, item: Item, embedding: NDArray[np.float32]) -> None:
        """Enter the embedding of a sample's inputs, unless it is not finite."""
        if np.isfinite(embedding).all():
            self.embeddings[item[1]] = embedding.astype(np.float16)
        else:
            self.reasons[item] = f"{NOT_FINITE}: embedding of the inputs"


def encode_shard(
    pool: Pool,
    rows: Sequence[int],
    family: Family,
    options: ScoreOptions,
    variants: Sequence[Variant] = (Variant.FULL,),
    examples: Mapping[int, int] | None = None,
    *,
    with_inputs: bool = False,
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
    with_inputs : bool
        Whether the embeddings of the inputs are wanted besides.
    """
    limit = min(options.max_tokens, family.max_positions or options.max_tokens)
    shard = EncodedShard()
    sizes: dict[str | bytes, Size | SampleError] = {}
    if isinstance(pool.images, ImageStore) and not family.one_size:
        shown = [*rows, *(examples[row] for row in rows if row in examples)] if examples else rows
        sizes = _sizes_in_store(pool, shown)

    def size_of(image: PoolImage) -> Size:
        content = _content(image)
        if content not in sizes:
            sizes[content] = _size(pool, image)
        size = sizes[content]
        if isinstance(size, SampleError):
            raise size
        return size

    for row in rows:
        sample = pool.sample(row)
        example = pool.sample(examples[row]) if examples and row in examples else None
        for variant in variants:
            item = (variant, row)
            try:
                reading = read_as(variant, sample, example)
                encoded = family.encode(reading, size_of)
                _check(encoded, limit)
            except SampleError as error:
                shard.reasons[item] = str(error)
                if variant is Variant.FULL:
                    break
                continue
            shard.samples[item] = encoded
            if with_inputs and variant is Variant.FULL:
                shard.inputs[item] = family.inputs_of(sample, encoded)
            uses = zip(reading.images, encoded.image_tokens, reading.places, strict=True)
            shard.images[item] = tuple(
                ImageRef(_content(image), tokens, *place) for image, tokens, place in uses
            )
    return shard


def encode_inputs(pool: Pool, rows: Sequence[int], family: Family, options: ScoreOptions) -> EncodedShard:
    """Encode the inputs of a shard's samples, see `Family.inputs_of`; parameters as of `encode_shard`.

    What cannot be scored is set aside here already.
    """
    shard = encode_shard(pool, rows, family, options, with_inputs=True)
    return EncodedShard(shard.inputs, shard.images, shard.reasons)


def _sizes_in_store(pool: Pool, rows: Iterable[int]) -> dict[str | bytes, Size | SampleError]:
    """Return the sizes of all images of some rows; the store is asked for many at a time."""
    images = {_content(image): image for row in rows for image in pool.sample(row).images}
    threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="sizes")
    try:
        return dict(zip(images, threads.map(partial(_size, pool), images.values()), strict=True))
    finally:
        threads.shutdown(cancel_futures=True)


def _size(pool: Pool, image: PoolImage) -> Size | SampleError:
    try:
        return image_size(image, image_name(pool, image))
    except SampleError as error:
        return error


def _check(encoded: Encoded, limit: int) -> None:
    if len(encoded) > limit:
        msg = f"too-long: {len(encoded)} tokens, at most {limit}"
        raise SampleError(msg)
    if not encoded.is_answer[1:].any():
        msg = "no-answer-tokens: the chat text holds no token of an answer"
        raise SampleError(msg)


def image_name(pool: Pool, image: PoolImage) -> str | None:
    """Name an image as the pool does, so that parts do not depend on where images and inputs are."""
    if isinstance(image, ImageRange):
        return image.name
    if isinstance(image, StoredImage):
        return image.path
    if isinstance(image, bytes) or not isinstance(pool.images, Path) or not image.is_relative_to(pool.images):
        return None
    return str(image.relative_to(pool.images))


def _content(image: PoolImage) -> str | bytes:
    if isinstance(image, ImageRange):
        return f"{image.file}:{image.offset}"
    return hashlib.blake2b(image, digest_size=16).digest() if isinstance(image, bytes) else str(image)

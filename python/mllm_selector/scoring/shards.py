"""A shard of the pool: its samples in tokens, and their scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import ScoreOptions
from mllm_selector.errors import SampleError
from mllm_selector.families.base import Encoded, Family
from mllm_selector.pool import ImageRange, Pool, PoolImage

__all__ = ["EncodedShard", "ImageRef", "ShardScores", "encode_shard"]

NOT_FINITE = "not-finite"


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
    images_encoded : int
        Images that were turned into features; one that had to be encoded again counts again.
    rescored : int
        Samples scored again in float32, since half precision gave no finite score.
    """

    def __init__(self, rows: range, width: int) -> None:
        self.rows = rows
        self.nll_sum = np.full(len(rows), np.nan, dtype=np.float32)
        self.answer_tokens = np.zeros(len(rows), dtype=np.uint32)
        self.embedding = np.zeros((len(rows), width), dtype=np.float16)
        self.reasons: list[str | None] = [None] * len(rows)
        self.images_encoded = 0
        self.rescored = 0

    @property
    def necessity(self) -> NDArray[np.float32]:
        """Mean negative log-likelihood of the answer tokens, in nats; NaN where not scored."""
        return np.divide(self.nll_sum, np.maximum(self.answer_tokens, 1), dtype=np.float32)

    def set_aside(self, row: int, reason: str) -> None:
        """Say why a sample is not scored."""
        self.reasons[row - self.rows.start] = reason

    def take_not_finite(self) -> list[int]:
        """Return the rows whose scores were not finite, as if they had not been scored yet."""
        places = [place for place, reason in enumerate(self.reasons) if (reason or "").startswith(NOT_FINITE)]
        for place in places:
            self.reasons[place] = None
        return [self.rows[place] for place in places]

    def put(self, row: int, token_nll: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
        """Enter a sample's scores, unless they are not finite."""
        nll_sum, count = token_nll.sum(dtype=np.float64), len(token_nll)
        if not (np.isfinite(nll_sum) and np.isfinite(embedding).all()):
            self.set_aside(row, f"{NOT_FINITE}: summed loss {nll_sum} over {count} answer tokens")
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


def _check(encoded: Encoded, limit: int) -> None:
    if len(encoded) > limit:
        msg = f"too-long: {len(encoded)} tokens, at most {limit}"
        raise SampleError(msg)
    if not encoded.is_answer[1:].any():
        msg = "no-answer-tokens: the chat text holds no token of an answer"
        raise SampleError(msg)


def _image_key(image: PoolImage) -> str | bytes:
    if isinstance(image, ImageRange):
        return f"{image.file}:{image.offset}"
    return hashlib.blake2b(image, digest_size=16).digest() if isinstance(image, bytes) else str(image)

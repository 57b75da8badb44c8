"""Samples of a pool whose images lie in a store: fetched side by side, before they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mllm_selector.pool import Pool, PoolImage, Sample, StoredImage
from mllm_selector.stores import REQUESTS, ImageStore

__all__ = ["Fetching"]

AHEAD = 2 * REQUESTS
"""Samples whose images are fetched before they are asked for."""


class Fetching:
    """Samples of a pool in the order in which they will be asked for; they are closed by a ``with`` block.

    Images that do not lie in a store stay where they are. A request that fails is told by the image that it
    was made for, in the words of `StoredImage.read`.

    Parameters
    ----------
    pool : Pool
        Has the samples.
    rows : sequence of int
        Their rows, in order; one may come several times.
    most_images : int, optional
        So many images of a sample are wanted, from the first one; by default all.
    """

    def __init__(self, pool: Pool, rows: Sequence[int], most_images: int | None = None) -> None:
        self._pool, self._rows, self._most = pool, rows, most_images
        is_stored = isinstance(pool.images, ImageStore)
        self._threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fetch") if is_stored else None
        self._begun: dict[int, Sample] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Sample:
        """Return the sample at a place of the order, and begin to fetch those behind it."""
        if self._threads is None:
            return self._pool.sample(self._rows[place])
        for each in range(place, min(place + AHEAD, len(self._rows))):
            if each not in self._begun:
                self._begun[each] = self._begin(self._pool.sample(self._rows[each]), self._threads)
        return self._begun.pop(place)

    def _begin(self, sample: Sample, threads: ThreadPoolExecutor) -> Sample:
        def begun(image: PoolImage) -> PoolImage:
            if not isinstance(image, StoredImage):
                return image
            return _Fetched(image.store, image.path, threads.submit(image.read))

        wanted = tuple(map(begun, sample.images[: self._most]))
        return dataclasses.replace(sample, images=wanted + sample.images[len(wanted) :])


@dataclass(frozen=True)
class _Fetched(StoredImage):
    """An image that is on its way."""

    content: Future[bytes]

    def read(self, most: int | None = None) -> bytes:
        """See `StoredImage.read`."""
        return self.content.result()[:most]

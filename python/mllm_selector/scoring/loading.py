"""Work done ahead of the device: images loaded and prepared by threads, batches put together by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import TypeAlias, TypeVar

from mllm_selector.errors import SampleError
from mllm_selector.families.base import Arrays, Family
from mllm_selector.families.images import load_image
from mllm_selector.pool import Pool
from mllm_selector.scoring.shards import ImageRef, image_name
from mllm_selector.stores import REQUESTS, ImageStore

__all__ = ["ImageLoader", "ahead"]

IMAGES_AHEAD = 16
"""Images that wait for the device, besides two for each worker."""

T = TypeVar("T")
_Loading: TypeAlias = tuple[ImageRef, Future[Arrays | SampleError]]


class ImageLoader:
    """Loads and prepares images of a pool in threads.

    Threads, not processes: Pillow decodes and resizes without Python's lock, and what is prepared need not be
    copied from one process to another (`benches/prefetch.py` compares them).

    Parameters
    ----------
    family : Family
        Prepares pictures.
    pool : Pool
        Has the images.
    workers : int
        Number of threads; with images in a store at least `REQUESTS`, since most wait for its answers.
    """

    def __init__(self, family: Family, pool: Pool, workers: int) -> None:
        self._family = family
        self._pool = pool
        if isinstance(pool.images, ImageStore):
            workers = max(workers, REQUESTS)
        self._ahead = 2 * workers + IMAGES_AHEAD
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="images")

    def load(self, refs: Sequence[ImageRef]) -> Iterator[Arrays | SampleError]:
        """Start to load images at once, and return them in order; an unreadable one is an error in its place.

        Not more than memory bears are loaded before they are asked for.
        """
        waiting = deque(self._begin(ref) for ref in refs[: self._ahead])
        return self._following(waiting, refs[self._ahead :])

    def close(self) -> None:
        """Stop; what has not been begun is dropped."""
        self._threads.shutdown(cancel_futures=True)

    def _following(
        self, waiting: deque[_Loading], rest: Sequence[ImageRef]
    ) -> Iterator[Arrays | SampleError]:
        for ref in rest:
            yield self._end(waiting.popleft(), waiting)
            waiting.append(self._begin(ref))
        while waiting:
            yield self._end(waiting.popleft(), waiting)

    def _begin(self, ref: ImageRef) -> _Loading:
        return ref, self._threads.submit(self._prepare, ref)

    def _end(self, loading: _Loading, others: Iterable[_Loading]) -> Arrays | SampleError:
        """Return a picture; where memory lacks, when the others are loaded, which may have taken it."""
        ref, picture = loading
        try:
            return picture.result()
        except MemoryError:
            wait([other for _, other in others])
        try:
            return self._prepare(ref)
        except MemoryError:
            return SampleError("out-of-memory: an image, loaded alone")

    def _prepare(self, ref: ImageRef) -> Arrays | SampleError:
        image = self._pool.sample(ref.row).images[ref.place]
        try:
            return self._family.prepare(load_image(image, image_name(self._pool, image)), ref.tokens)
        except SampleError as error:
            return error


def ahead(items: Iterator[T], thread: Executor, count: int) -> Iterator[T]:
    """Take items from an iterator in another thread, some before they are asked for.

    Parameters
    ----------
    items : Iterator
        Is only used in `thread`.
    thread : Executor
        With one worker, so that items keep their order.
    count : int
        Items to have ready.
    """
    end = object()
    waiting = deque(thread.submit(next, items, end) for _ in range(count))
    while (item := waiting.popleft().result()) is not end:
        waiting.append(thread.submit(next, items, end))
        yield item  # type: ignore[misc]  # not the end

"""Reading the inputs of a pool on a Ray cluster, each in a task of its own.

Workers read the inputs and the images and write nothing but a temporary file: what an input says comes back
in pieces, and this process keeps it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mllm_selector import formats
from mllm_selector.cluster import TRIES, Failure, connected, own_errors, room
from mllm_selector.config import IngestOptions, Inputs
from mllm_selector.errors import ClusterError, PoolError
from mllm_selector.formats.reading import InParts, read_part

__all__ = ["read_on_ray"]

PIECE = 16 << 20
"""Bytes of a part that come back at once."""


def read_on_ray(
    options: IngestOptions,
    name: str,
    numbers: Sequence[int],
    keep: Callable[[int, Iterator[bytes]], None],
) -> None:
    """Read some inputs of a pool on a cluster.

    Parameters
    ----------
    options : IngestOptions
        Which pool, and how it is read; ``ray`` is the address. All nodes see the inputs under the same paths.
    name : str
        The format's name.
    numbers : sequence of int
        The inputs by their place, ascending.
    keep : callable
        Is given an input's number and the pieces of its part. Where these end with an exception, the input is
        read again, and nothing of it may be kept.

    Raises
    ------
    PoolError
        As without Ray, of the first input of which something is wrong.
    UsageError, StoreError
        Likewise, with the name of the machine; UsageError also if there is no cluster, or no room in it.
    ClusterError
        If Ray gives up, an input ends the process of each worker that reads it, or a worker fails otherwise.
    MissingPackageError
        If Ray is not installed.
    """
    with connected(str(options.ray)) as ray, own_errors(ray):
        _Reading(ray, options, name).run(numbers, keep)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to read one input.

    Attributes
    ----------
    folder : Path
        The one that relative paths start from.
    options : IngestOptions
        With the input alone.
    name : str
        The format's name.
    """

    folder: Path
    options: IngestOptions
    name: str

    def read(self, out: BinaryIO) -> Failure | None:
        """Write the part."""
        (path,) = self.options.pool.paths
        try:
            pool_format = formats.known()[self.name]
            assert isinstance(pool_format, InParts)
            # A worker starts elsewhere, and messages name an input as the user does.
            is_there = self.folder.is_dir()
            with contextlib.chdir(self.folder) if is_there else contextlib.nullcontext():
                read_part(self.options, pool_format, out)
        except PoolError as error:
            return Failure(PoolError.__name__, str(error))  # on every machine the same
        except Exception as error:  # whatever it is, it is told in our words
            return Failure.of(error, f"reading {path}", ClusterError)
        return None


def _read(job: _Job) -> Iterator[Failure | bytes | None]:
    """Read an input; yield what has failed, if anything, then the part in pieces."""
    with tempfile.TemporaryFile() as file:
        failure = job.read(file)
        yield failure
        if failure is not None:
            return
        file.seek(0)
        while piece := file.read(PIECE):
            yield piece


class _Reading:
    """The tasks of one call."""

    def __init__(self, ray: Any, options: IngestOptions, name: str) -> None:
        self._ray, self._options, self._name = ray, options, name
        threads = options.threads or 1
        address = str(options.ray)
        fits = room(ray, address, "CPU", threads, "reading an input", "lower --threads")
        # As many again wait on the nodes, which so never wait for this process.
        self._most = 2 * fits
        # What a task has yielded before its end would be taken for the beginning of what it yields next.
        self._task = ray.remote(_read).options(num_cpus=threads, max_retries=0)
        self._one = dataclasses.replace(options, ray=None, threads=threads)
        self._tries: Counter[int] = Counter()

    def run(self, numbers: Iterable[int], keep: Callable[[int, Iterator[bytes]], None]) -> None:
        """See `read_on_ray`."""
        waiting = sorted(numbers, reverse=True)
        running: dict[Any, int] = {}
        failed: tuple[int, Failure] | None = None
        try:
            while waiting or running:
                while waiting and len(running) < self._most:
                    number = waiting.pop()
                    running[self._begun(number)] = number
                (ready,), _ = self._ray.wait(list(running), num_returns=1)
                number = running.pop(ready)
                try:
                    failure = self._ray.get(next(ready))
                    if failure is None:
                        keep(number, map(self._ray.get, ready))
                except self._losses:
                    waiting.append(number)
                    continue
                if failure is not None and (failed is None or number < failed[0]):
                    failed = number, failure
                    # What is wrong with an earlier input would be told first without Ray, too.
                    waiting = [each for each in waiting if each < number]
                    running = self._without_later(running, number)
        finally:
            for each in running:
                self._ray.cancel(each)
        if failed is not None:
            raise failed[1].raised()

    @property
    def _losses(self) -> tuple[type[Exception], ...]:
        """What Ray raises when a worker or its node is gone, and with it what was read."""
        all_of_them = self._ray.exceptions
        return (
            all_of_them.WorkerCrashedError,
            all_of_them.NodeDiedError,
            all_of_them.LocalRayletDiedError,
            all_of_them.OutOfMemoryError,
            all_of_them.ObjectLostError,
        )

    def _begun(self, number: int) -> Any:
        entry = self._options.pool.inputs[number]
        self._tries[number] += 1
        if self._tries[number] > TRIES:
            msg = (
                f"{entry.path} was begun {TRIES} times, and the process that read it died each time, maybe "
                "for want of memory (with more --threads, fewer inputs are read at a time); Ray's logs on "
                "the nodes say more. What is finished is kept"
            )
            raise ClusterError(msg)
        job = _Job(Path.cwd(), dataclasses.replace(self._one, pool=Inputs((entry,))), self._name)
        return self._task.remote(job)

    def _without_later(self, running: dict[Any, int], number: int) -> dict[Any, int]:
        """Stop the tasks of later inputs."""
        for each in running:
            if running[each] > number:
                self._ray.cancel(each)
        return {each: of for each, of in running.items() if of < number}

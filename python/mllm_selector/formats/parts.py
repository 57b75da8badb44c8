"""A pool that is read part by part: which parts are there, and the pool that becomes of them.

What is read of an input is kept in a file of its own, so that a command which was stopped goes on from there.
The name of the file says what it was made of: the input as it was, and how it was read. When all are there,
the pool is made of them in the order of the inputs, by the same code and to the same bytes as without parts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mllm_selector import formats
from mllm_selector.artifacts import atomic_write
from mllm_selector.checksums import Checksums
from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError
from mllm_selector.formats.on_ray import read_on_ray
from mllm_selector.formats.reading import InParts, join_parts
from mllm_selector.progress import Progress, SilentProgress
from mllm_selector.rundir import RunDirectory, state_of_inputs

__all__ = ["ingest_by_parts", "read_before"]


def ingest_by_parts(
    run: RunDirectory, options: IngestOptions, pool_format: InParts, progress: Progress
) -> dict[str, Any]:
    """Read the inputs on a Ray cluster, then make the pool of what they say.

    Parameters
    ----------
    run : RunDirectory
        Gets ``pool.arrow`` and ``rejected.jsonl``; has the parts in ``ingest`` until the stage is done.
    options : IngestOptions
        Which pool, and how it is read.
    pool_format : InParts
        The format of the pool.
    progress : Progress
        Told the bytes read, then once more those that the pool has been made of.

    Returns
    -------
    dict
        The counts of `mllm_selector.formats.reading.read_pool`.

    Raises
    ------
    UsageError, PoolError, StoreError, ClusterError, MissingPackageError
        See `read_on_ray`; PoolError also for what concerns the pool as a whole.
    """
    pool_format.row_opener(options)  # inputs that do not belong together are found before any is read
    parts = _Parts(run, options, pool_format.name, progress)
    missing = parts.missing()
    if missing:
        read_on_ray(options, pool_format.name, missing, parts.keep)
    progress.start("ingest", parts.bytes, "bytes")
    try:
        return join_parts(
            options,
            pool_format.name,
            parts.paths,
            run.pool,
            run.rejected,
            lambda done, _: progress.update(done),
        )
    except PoolError:
        # Whatever is mended now, images among it, is to be looked at anew.
        shutil.rmtree(run.ingest_parts)
        raise


def read_before(run: RunDirectory, options: IngestOptions) -> list[Path]:
    """Return the inputs that a run which was stopped has read; nothing is written.

    Parameters
    ----------
    run : RunDirectory
        Where ingest has begun and is not done.
    options : IngestOptions
        Those that it was begun with.

    Raises
    ------
    OSError
        If an input is not there any more.
    UsageError
        If the inputs are not of one format any more.
    """
    parts = _Parts(run, options, formats.find(options).name, SilentProgress())
    return [options.pool.paths[number] for number in parts.whole()]


class _Parts:
    """The parts of a pool's inputs.

    Attributes
    ----------
    paths : list of Path
        In the order of the inputs.
    bytes : int
        Size of all inputs.
    """

    def __init__(self, run: RunDirectory, options: IngestOptions, name: str, progress: Progress) -> None:
        self._folder, self._progress = run.ingest_parts, progress
        self._checksums = Checksums(self._folder / "checksums.b3")
        self._sizes = [path.stat().st_size for path in options.pool.paths]
        self.bytes = sum(self._sizes)
        self.paths = [self._folder / f"part-{key}.arrow" for key in _keys(options, name)]
        self._done = 0

    def whole(self) -> list[int]:
        """Return the inputs whose part is whole."""
        return [number for number, path in enumerate(self.paths) if self._is_whole(path)]

    def missing(self) -> list[int]:
        """Return the inputs without a whole part, and begin to report."""
        for stray in set(self._folder.glob("part-*.arrow")) - set(self.paths):
            stray.unlink()
        whole = self.whole()
        self._done = sum(self._sizes[number] for number in whole)
        self._progress.start("ingest", self.bytes, "bytes", done=self._done)
        if whole:
            self._progress.note(
                f"ingest: {len(whole)} of {len(self.paths)} inputs are not read again: a run that was "
                f"stopped had read them; delete {self._folder} first if their images have changed since"
            )
        return [number for number in range(len(self.paths)) if number not in whole]

    def keep(self, number: int, pieces: Iterator[bytes]) -> None:
        """Write a part."""
        with atomic_write(self.paths[number]) as file:
            file.writelines(pieces)
        self._checksums.add(self.paths[number])
        self._done += self._sizes[number]
        self._progress.update(self._done)

    def _is_whole(self, path: Path) -> bool:
        if not path.exists():
            return False
        damages = self._checksums.damages([path])
        for damage in damages:
            self._progress.note(f"ingest: {damage}; reading its input again")
        return not damages


def _keys(options: IngestOptions, name: str) -> list[str]:
    """Hash what decides the content of each part; images are known by where they are alone."""
    everything = options.as_json()
    how = {
        "version": version("mllm-selector"),
        "format": name,
        "images": everything["images"],
        "options": options.as_json(only_that_matter=True),
    }
    inputs = zip(everything["pool"], state_of_inputs(options.pool), strict=True)
    contents = (json.dumps([how, *of_input], sort_keys=True) for of_input in inputs)
    return [hashlib.sha256(content.encode()).hexdigest()[:32] for content in contents]

"""Pool formats: one class each, in a registry.

A format knows how a pool is recognised, read into ``pool.arrow`` and written back. The stages ask this
module and never name a format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import IngestOptions, Inputs
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.formats.llava import LLAVA_JSON, LLAVA_JSON_LINES
from mllm_selector.formats.messages import MESSAGES_JSON, MESSAGES_JSON_LINES
from mllm_selector.formats.sharegpt import SHAREGPT_JSON, SHAREGPT_JSON_LINES
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory, fingerprint

__all__ = ["ENTRY_POINTS", "FORMATS", "PoolFormat", "find", "registry", "subset_suffix", "write_subset"]


class PoolFormat(Protocol):
    """How one kind of pool is recognised, read and written back."""

    @property
    def name(self) -> str:
        """Name in options and in the metadata of ``pool.arrow``."""

    def suffix(self, inputs: Sequence[Path]) -> str:
        """Return the file suffix of a subset of these inputs, with the dot."""

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Say by their content whether all of these are of this format."""

    def ingest(
        self, options: IngestOptions, out: Path, rejected: Path, on_bytes: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Read a pool into `out`, set bad records aside in `rejected`, and return the counts."""

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy the records of `rows`, in that order, from the pool's `inputs` to `out`."""


_OWN: tuple[PoolFormat, ...] = (
    LLAVA_JSON,
    LLAVA_JSON_LINES,
    SHAREGPT_JSON,
    SHAREGPT_JSON_LINES,
    MESSAGES_JSON,
    MESSAGES_JSON_LINES,
)

ENTRY_POINTS = "mllm_selector.formats"
"""Group of entry points that name more formats: objects with what `PoolFormat` asks for."""


def registry() -> dict[str, PoolFormat]:
    """Return the formats by name, this package's own first."""
    formats: dict[str, PoolFormat] = {known.name: known for known in _OWN}
    for entry in entry_points(group=ENTRY_POINTS):
        known = entry.load()
        formats[known.name] = known
    return formats


FORMATS = registry()


def find(options: IngestOptions) -> PoolFormat:
    """Return the format asked for, or for ``auto`` the one that recognises the inputs.

    Inputs that none recognises go to the first format, whose reader says what is wrong with them.

    Raises
    ------
    UsageError
        If there is no such format, or the inputs are of several.
    """
    if options.format != "auto":
        if options.format not in FORMATS:
            msg = f"--format: {options.format!r} is not one of auto, {', '.join(FORMATS)}"
            raise UsageError(msg)
        return FORMATS[options.format]
    paths = options.pool.paths
    found = _recognised(paths)
    if found is not None:
        return found
    each = {path: _recognised([path]) for path in paths}
    kinds = {known.name: (known, path) for path, known in each.items() if known is not None}
    if len(kinds) > 1:
        examples = ", ".join(f"{path} is {name}" for name, (_, path) in kinds.items())
        msg = f"pool: {examples}; one pool has one format, so select from each on its own or convert some"
        raise UsageError(msg)
    first, *_ = [known for known, _ in kinds.values()] or FORMATS.values()
    return first


def _recognised(paths: Sequence[Path]) -> PoolFormat | None:
    return next((known for known in FORMATS.values() if known.recognises(paths)), None)


def subset_suffix(run: RunDirectory) -> str:
    """Return the file suffix of a subset of the run's pool, such as ``.json``.

    Raises
    ------
    PoolError
        If the pool is gone or has changed since it was ingested.
    """
    return _of(run).suffix(_inputs(run))


def write_subset(run: RunDirectory, rows: NDArray[np.integer[Any]], out: Path) -> None:
    """Write chosen records in the pool's own format, byte for byte as they stand in the pool.

    Parameters
    ----------
    run : RunDirectory
        A run whose pool has been ingested.
    rows : ndarray of int, shape (k,)
        Rows of the pool, in the order in which they are written.
    out : Path
        The file; whole or not there.

    Raises
    ------
    RunDirectoryError
        If ingest has not finished in this run directory.
    PoolError
        If the pool is gone or has changed since it was ingested.
    UsageError
        If a row is not in the pool, or `out` is one of the pool's inputs.
    """
    inputs = _inputs(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    _of(run).write_subset(run.pool, np.ascontiguousarray(rows, dtype=np.uint64), inputs, out)


def _inputs(run: RunDirectory) -> list[Path]:
    """Return the inputs of the run's pool, which are as they were."""
    record = run.need("ingest")
    paths = Inputs.parse(record.options["pool"]).paths
    for path, known in zip(paths, record.inputs["pool"]["files"], strict=True):
        _check_unchanged(path, known)
    return paths


def _of(run: RunDirectory) -> PoolFormat:
    name = Pool.open(run.pool).format
    if name not in FORMATS:
        msg = f"{run.pool}: format '{name}' is not one of {', '.join(FORMATS)}; ingest again"
        raise PoolError(msg)
    return FORMATS[name]


def _check_unchanged(source: Path, known: dict[str, Any]) -> None:
    try:
        now = fingerprint(source, known)
    except OSError as error:
        msg = (
            f"{source}: cannot be read ({error.strerror}); the subset is copied from the pool, so put it back"
        )
        raise PoolError(msg) from error
    if now["hash"] != known["hash"]:
        msg = (
            f"{source} has changed since it was ingested, so its records cannot be copied; "
            "restore it, or select from it in a new --run-dir"
        )
        raise PoolError(msg)

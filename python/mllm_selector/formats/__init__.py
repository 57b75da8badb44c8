"""Pool formats: one class each, in a registry.

A format knows how a pool is recognised, read into ``pool.arrow`` and written back. The stages ask this
module and never name a format. Another package adds one by an entry point of the group
``mllm_selector.formats`` that names a class like `PoolFormat`; for rows of columns, see
`mllm_selector.formats.tables.RowFormat`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mllm_selector.config import IngestOptions, Inputs
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.formats.arrow import Arrow
from mllm_selector.formats.datasets_folder import DatasetsFolder
from mllm_selector.formats.folders import expanded
from mllm_selector.formats.llava import LLAVA_JSON, LLAVA_JSON_LINES
from mllm_selector.formats.messages import MESSAGES_JSON, MESSAGES_JSON_LINES
from mllm_selector.formats.parquet import Parquet
from mllm_selector.formats.sharegpt import SHAREGPT_JSON, SHAREGPT_JSON_LINES
from mllm_selector.formats.webdataset import WebDataset
from mllm_selector.outputs import check_output
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory, fingerprint

__all__ = ["ENTRY_POINTS", "PoolFormat", "expanded", "find", "known", "subset_suffix", "write_subset"]

ENTRY_POINTS = "mllm_selector.formats"
"""Group of the entry points that add formats."""


class PoolFormat(Protocol):
    """How one kind of pool is recognised, read and written back."""

    @property
    def name(self) -> str:
        """Name in options and in the metadata of ``pool.arrow``."""

    def suffix(self, inputs: Sequence[Path]) -> str:
        """Return the file suffix of a subset of these inputs, with the dot; nothing if it is a folder."""

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Say by their content whether all of these are of this format."""

    def ingest(
        self, options: IngestOptions, out: Path, rejected: Path, on_bytes: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Read a pool into `out`, set bad records aside in `rejected`, and return the counts.

        They may hold ``pool_hash``, the BLAKE3 hash of `out` in hexadecimal, and ``input_hashes``, those of
        the inputs in their order; what has a hash is not read for it again.
        """

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy the records of `rows`, in that order, from the pool's `inputs` to `out`."""


# A dataset on disk is Arrow files and more, so it is asked before them.
_OWN: tuple[PoolFormat, ...] = (
    LLAVA_JSON,
    LLAVA_JSON_LINES,
    SHAREGPT_JSON,
    SHAREGPT_JSON_LINES,
    MESSAGES_JSON,
    MESSAGES_JSON_LINES,
    Parquet(),
    DatasetsFolder(),
    Arrow(),
    WebDataset(),
)


@cache
def known() -> dict[str, PoolFormat]:
    """Return the formats by name, those of other packages first, so that they are asked first.

    Raises
    ------
    UsageError
        If a format of another package cannot be loaded, or has the name of another format.
    """
    found: dict[str, PoolFormat] = {}
    for point in entry_points(group=ENTRY_POINTS):
        shown = f"the format '{point.name}' ({point.value})"
        try:
            loaded = point.load()
            added: PoolFormat = loaded() if isinstance(loaded, type) else loaded
            name = added.name
        except Exception as error:  # whatever the other package does wrong
            msg = f"{shown} cannot be loaded: {error!r}; mend or uninstall it"
            raise UsageError(msg) from error
        if name in found or any(name == own.name for own in _OWN):
            msg = f"{shown} has the name '{name}', which another has; uninstall the package that adds it"
            raise UsageError(msg)
        found[name] = added
    return found | {own.name: own for own in _OWN}


def find(options: IngestOptions) -> PoolFormat:
    """Return the format asked for, or for ``auto`` the one that recognises the inputs.

    Inputs that none recognises go to the first format, whose reader says what is wrong with them.

    Raises
    ------
    UsageError
        If there is no such format, or the inputs are of several.
    """
    formats = known()
    if options.format != "auto":
        if options.format not in formats:
            msg = f"--format: {options.format!r} is not one of auto, {', '.join(formats)}"
            raise UsageError(msg)
        return formats[options.format]
    paths = options.pool.paths
    found = _recognised(paths)
    if found is not None:
        return found
    each = {path: _recognised([path]) for path in paths}
    kinds = {found.name: (found, path) for path, found in each.items() if found is not None}
    if len(kinds) > 1:
        examples = ", ".join(f"{path} is {name}" for name, (_, path) in kinds.items())
        msg = f"pool: {examples}; one pool has one format, so select from each on its own or convert some"
        raise UsageError(msg)
    first, *_ = [each for each, _ in kinds.values()] or _OWN
    return first


def _recognised(paths: Sequence[Path]) -> PoolFormat | None:
    return next((each for each in known().values() if each.recognises(paths)), None)


def subset_suffix(run: RunDirectory) -> str:
    """Return the file suffix of a subset of the run's pool, such as ``.json``; nothing if it is a folder.

    Raises
    ------
    PoolError
        If the pool is gone or has changed since it was ingested.
    """
    return _of(run).suffix(_inputs(run))


def write_subset(run: RunDirectory, rows: NDArray[np.integer[Any]], out: Path) -> None:
    """Write chosen records in the pool's own format: bytes as they stand in the pool, or the values of rows.

    Parameters
    ----------
    run : RunDirectory
        A run whose pool has been ingested.
    rows : ndarray of int, shape (k,)
        Rows of the pool, in the order in which they are written.
    out : Path
        The file or folder; whole or not there.

    Raises
    ------
    RunDirectoryError
        If ingest has not finished in this run directory.
    PoolError
        If the pool is gone or has changed since it was ingested.
    UsageError
        If a row is not in the pool, or `out` is one of the pool's inputs or what a run has computed.
    """
    inputs = _inputs(run)
    check_output("out", out, {"the pool itself": inputs})
    out.parent.mkdir(parents=True, exist_ok=True)
    _of(run).write_subset(run.pool, np.ascontiguousarray(rows, dtype=np.uint64), inputs, out)


def _inputs(run: RunDirectory) -> list[Path]:
    """Return the inputs of the run's pool, which are as they were."""
    record = run.need("ingest")
    paths = Inputs.parse(record.options["pool"]).paths
    for path, before in zip(paths, record.inputs["pool"]["files"], strict=True):
        _check_unchanged(path, before)
    return paths


def _of(run: RunDirectory) -> PoolFormat:
    name = Pool.open(run.pool).format
    if name not in known():
        msg = f"{run.pool}: format '{name}' is not one of {', '.join(known())}; ingest again"
        raise PoolError(msg)
    return known()[name]


def _check_unchanged(source: Path, before: dict[str, Any]) -> None:
    try:
        now = fingerprint(source, before)
    except OSError as error:
        msg = (
            f"{source}: cannot be read ({error.strerror}); the subset is copied from the pool, so put it back"
        )
        raise PoolError(msg) from error
    if now["hash"] != before["hash"]:
        msg = (
            f"{source} has changed since it was ingested, so its records cannot be copied; "
            "restore it, or select from it in a new --run-dir"
        )
        raise PoolError(msg)

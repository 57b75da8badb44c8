"""The calls into the Rust reader that all formats make: a whole pool, or part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from mllm_selector import _internal
from mllm_selector.config import ImageFolder, IngestOptions
from mllm_selector.stores import ImageStore

__all__ = ["InParts", "RowOpener", "join_parts", "read_part", "read_pool"]

RowOpener = Callable[[PathLike[str]], tuple[object, int, tuple[int, int]]]
"""Opens an input as rows, see `mllm_selector.formats.tables.RowFormat.stream`."""


@runtime_checkable
class InParts(Protocol):
    """A format whose inputs can be read apart from each other, on several machines."""

    @property
    def name(self) -> str:
        """See `mllm_selector.formats.PoolFormat`."""

    def row_opener(self, options: IngestOptions) -> RowOpener | None:
        """Check that the inputs belong together, and return what opens one as rows; None if Rust does it."""


def read_pool(
    options: IngestOptions,
    name: str,
    out: Path,
    rejected: Path,
    on_bytes: Callable[[int, int], None],
    rows: RowOpener | None = None,
) -> dict[str, Any]:
    """Read a pool into `out`, set bad records aside in `rejected`, and return the counts.

    Among them are BLAKE3 hashes in hexadecimal: ``pool_hash`` of `out`, taken as it was written, and
    ``input_hashes`` of the inputs, which are not read again for it where they are text.

    Parameters
    ----------
    options : IngestOptions
        Which pool, and how it is read.
    name : str
        The format's name.
    out, rejected : Path
        The pool file and the list of rejected records to write.
    on_bytes : callable
        Told the bytes read and their number in all.
    rows : callable, optional
        Opens an input as rows; else Rust opens it.
    """
    hashes = _Hashes()
    counts = _internal.ingest(
        _inputs(options),
        name,
        out,
        rejected,
        renames_duplicates=options.duplicate_ids == "rename",
        progress=on_bytes,
        rows=rows,
        hashed=hashes,
        **_of_records(options),
    )
    return counts | hashes.found


def read_part(options: IngestOptions, pool_format: InParts, out: BinaryIO) -> None:
    """Read and check the only input, as far as nothing need be known of others, and write a part of a pool.

    Raises
    ------
    UsageError, PoolError, StoreError, OSError
        As for the whole pool; with ``strict``, PoolError for the first record that is set aside.
    """
    (entry,) = _inputs(options)
    rows = pool_format.row_opener(options)
    _internal.read_part(entry, pool_format.name, out, rows=rows, **_of_records(options))


def join_parts(
    options: IngestOptions,
    name: str,
    parts: Sequence[Path],
    out: Path,
    rejected: Path,
    on_bytes: Callable[[int, int], None],
) -> dict[str, Any]:
    """Make a pool of the parts of its inputs, in their order: files and counts are those of `read_pool`.

    Raises
    ------
    PoolError
        As for the whole pool where it concerns all of it; also if a part is damaged.
    """
    hashes = _Hashes()
    counts = _internal.join_parts(
        _inputs(options),
        name,
        parts,
        out,
        rejected,
        renames_duplicates=options.duplicate_ids == "rename",
        strict=options.strict,
        threads=options.threads,
        progress=on_bytes,
        hashed=hashes,
    )
    return counts | hashes.found


class _Hashes:
    """Takes the hashes of the pool and of the inputs."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __call__(self, pool: str, inputs: list[str]) -> None:
        self.found = {"pool_hash": pool, "input_hashes": inputs}


def _inputs(options: IngestOptions) -> list[tuple[PathLike[str], str | None]]:
    return [(entry.path, entry.source) for entry in options.pool.inputs]


def _of_records(options: IngestOptions) -> dict[str, Any]:
    """Return the options of how records and images are read and checked, in Rust's names."""
    images = options.images or ImageFolder()
    return {
        "images": images.path,
        "store": None if images.url is None else ImageStore(images.url),
        "check_images": options.check_images,
        "max_image_pixels": options.max_image_pixels,
        "source": options.source,
        "columns": None if options.columns is None else dict(options.columns.names),
        "turns_alternate": options.turn_order == "alternating",
        "inserts_marks": {"auto": None, "insert": True, "reject": False}[options.missing_marks],
        "strict": options.strict,
        "threads": options.threads,
    }

"""The one call into the Rust reader that all formats make."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from mllm_selector import _internal
from mllm_selector.config import IngestOptions

__all__ = ["read_pool"]


def read_pool(
    options: IngestOptions,
    name: str,
    out: Path,
    rejected: Path,
    on_bytes: Callable[[int, int], None],
    rows: Callable[[PathLike[str]], tuple[object, int, tuple[int, int]]] | None = None,
) -> dict[str, Any]:
    """Read a pool into `out`, set bad records aside in `rejected`, and return the counts.

    Among them is ``pool_hash``, the BLAKE3 hash of `out` in hexadecimal, taken as it was written.

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
        Opens an input as rows, see `mllm_selector.formats.tables.RowFormat.stream`; else Rust opens it.
    """
    hashes: list[str] = []
    counts = _internal.ingest(
        [(entry.path, entry.source) for entry in options.pool.inputs],
        name,
        out,
        rejected,
        images=options.images,
        check_images=options.check_images,
        max_image_pixels=options.max_image_pixels,
        source=options.source,
        columns=None if options.columns is None else dict(options.columns.names),
        turns_alternate=options.turn_order == "alternating",
        inserts_marks={"auto": None, "insert": True, "reject": False}[options.missing_marks],
        renames_duplicates=options.duplicate_ids == "rename",
        strict=options.strict,
        threads=options.threads,
        progress=on_bytes,
        rows=rows,
        hashed=hashes.append,
    )
    return counts | {"pool_hash": hashes[0]}

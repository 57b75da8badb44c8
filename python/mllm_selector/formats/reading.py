"""The one call into the Rust reader that all formats make."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from mllm_selector import _internal
from mllm_selector.config import ImageFolder, IngestOptions
from mllm_selector.stores import ImageStore

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
        Opens an input as rows, see `mllm_selector.formats.tables.RowFormat.stream`; else Rust opens it.
    """
    hashes: dict[str, Any] = {}
    images = options.images or ImageFolder()

    def hashed(pool: str, inputs: list[str]) -> None:
        hashes.update(pool_hash=pool, input_hashes=inputs)

    counts = _internal.ingest(
        [(entry.path, entry.source) for entry in options.pool.inputs],
        name,
        out,
        rejected,
        images=images.path,
        store=None if images.url is None else ImageStore(images.url),
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
        hashed=hashed,
    )
    return counts | hashes

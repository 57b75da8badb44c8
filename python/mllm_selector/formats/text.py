"""What the formats of JSON text share: Rust recognises, reads and writes them, plain or compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import IngestOptions

__all__ = ["TextFormat"]


class TextFormat:
    """Records of JSON in one dialect, as an array or a record a line, plain or as gzip or zstd.

    Parameters
    ----------
    name : str
        The format's name; it ends in ``-json`` for an array and in ``-jsonl`` for lines.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def suffix(self, inputs: Sequence[Path]) -> str:
        """Return the file suffix of a subset of these inputs."""
        return "." + self.name.rpartition("-")[2] + _internal.compression_suffix(inputs)

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Look at the first records of every file."""
        return all(path.is_file() for path in paths) and _internal.recognise(paths) == self.name

    def ingest(
        self, options: IngestOptions, out: Path, rejected: Path, on_bytes: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Read a pool into `out`, set bad records aside in `rejected`, and return the counts."""
        return _internal.ingest(
            [(entry.path, entry.source) for entry in options.pool.inputs],
            self.name,
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
        )

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy the records of `rows`, in that order, from the pool's `inputs` to `out`."""
        _internal.write_subset(pool, rows, inputs, out)

"""What the formats of JSON text share: Rust recognises, reads and writes them, plain or compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import IngestOptions
from mllm_selector.formats.reading import RowOpener, read_pool

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
        return read_pool(options, self.name, out, rejected, on_bytes)

    def row_opener(self, options: IngestOptions) -> RowOpener | None:
        """Return None: Rust opens text."""
        return None

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy the records of `rows`, in that order, from the pool's `inputs` to `out`."""
        _internal.write_subset(pool, rows, inputs, out)

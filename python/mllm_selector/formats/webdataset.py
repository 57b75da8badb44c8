"""WebDataset shards: tars whose members share their name up to the first dot where they belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.artifacts import atomic_folder
from mllm_selector.config import IngestOptions
from mllm_selector.formats.reading import RowOpener, read_pool
from mllm_selector.pool import Pool

__all__ = ["WebDataset"]

HEADER_BYTES = 512
END_BYTES = 1024
# Where a header has its checksum, and how: octal digits, spaces and a zero byte.
CHECKSUM = slice(148, 156)


class WebDataset:
    """One or many tars of `.json` records with their images."""

    name = "webdataset"

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Check the checksum of the header that begins every tar."""
        return all(path.is_file() and _begins_as_tar(path) for path in paths)

    def ingest(
        self, options: IngestOptions, out: Path, rejected: Path, on_bytes: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Read a pool into `out`, set bad records aside in `rejected`, and return the counts."""
        return read_pool(options, self.name, out, rejected, on_bytes)

    def row_opener(self, options: IngestOptions) -> RowOpener | None:
        """Return None: Rust opens tars."""
        return None

    def suffix(self, inputs: Sequence[Path]) -> str:
        """Return ``.tar``, or nothing where the subset of several shards is a folder of shards."""
        return ".tar" if len(inputs) == 1 else ""

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy the members of the samples, headers included, to one tar.

        The subset of several shards is a folder of shards, none larger than the largest of the inputs.
        """
        if len(inputs) == 1:
            _internal.write_subset(pool, rows, inputs, out)
            return
        limit = max(path.stat().st_size for path in inputs) - END_BYTES
        with atomic_folder(out) as folder:
            for number, part in enumerate(_parts(pool, rows, limit)):
                _internal.write_subset(pool, part, inputs, folder / f"{number:06d}.tar")


def _parts(pool: Path, rows: NDArray[np.uint64], limit: int) -> list[NDArray[np.uint64]]:
    """Cut rows into runs whose samples take at most `limit` bytes, one sample at least."""
    lengths = Pool.open(pool).table["length"].take(pa.array(rows)).to_numpy()
    cuts, filled = [], 0
    for index, length in enumerate(lengths.tolist()):
        if filled and filled + length > limit:
            cuts.append(index)
            filled = 0
        filled += length
    return np.split(rows, cuts)


def _begins_as_tar(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    digits = header[CHECKSUM].strip(b" \0")
    if len(header) < HEADER_BYTES or not digits or not set(digits) <= set(b"01234567"):
        return False
    counted = sum(header) - sum(header[CHECKSUM]) + 8 * ord(" ")
    return counted == int(digits, 8)

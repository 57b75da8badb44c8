"""Parquet files: row groups are decoded in bounded batches, only the columns that a pool needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mllm_selector.artifacts import atomic_write
from mllm_selector.formats.tables import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    Batches,
    Regrouped,
    RowFile,
    RowFormat,
    Rows,
    RowWriter,
    head,
)

__all__ = ["Parquet"]

GROUP_BYTES = 256 << 20
"""A row group is ended when it takes so much in memory, however few its rows."""


class Parquet(RowFormat):
    """One or many Parquet files."""

    name = "parquet"
    ending = ".parquet"

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Look for the magic bytes that begin a file."""
        return all(head(path, 4) == b"PAR1" for path in paths)

    def open(self, path: Path) -> RowFile:
        """Read the footer."""
        file = _parquet(path)

        def batches(columns: list[str] | None, wanted: Rows | None) -> Batches:
            return _batches(file, columns, wanted)

        return RowFile(path, file.schema_arrow, file.metadata.num_rows, batches)

    @contextmanager
    def writer(self, out: Path, schema: pa.Schema, like: Sequence[Path]) -> Iterator[RowWriter]:
        """Write with the compression of the first file and row groups of its size."""
        compression, rows = _layout(_parquet(like[0]).metadata)
        with atomic_write(out) as sink, pq.ParquetWriter(sink, schema, compression=compression) as writer:

            def write_group(table: pa.Table) -> None:
                writer.write_table(table, row_group_size=len(table))

            groups = Regrouped(write_group, rows, GROUP_BYTES)
            yield groups
            groups.flush()


def _parquet(path: Path) -> pq.ParquetFile:
    # Buffered reading: a row group may be larger than the memory.
    return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


def _batches(file: pq.ParquetFile, columns: list[str] | None, wanted: Rows | None) -> Batches:
    metadata = file.metadata
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    start = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if wanted is None or np.searchsorted(wanted, start) < np.searchsorted(wanted, ends[group]):
            first = start
            for batch in file.iter_batches(_batch_rows(metadata.row_group(group)), [group], columns):
                yield first, batch
                first += len(batch)
        start += rows


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Return how many rows take about a block's bytes."""
    return int(np.clip(BLOCK_BYTES * group.num_rows // max(group.total_byte_size, 1), 1, BLOCK_ROWS))


def _layout(metadata: pq.FileMetaData) -> tuple[dict[str, str], int]:
    """Return the compression of each column and the rows of a row group."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if not groups:
        return {}, BLOCK_ROWS
    chunks = [groups[0].column(index) for index in range(groups[0].num_columns)]
    codecs = {chunk.path_in_schema: chunk.compression for chunk in chunks}
    known = {path: "NONE" if codec == "UNCOMPRESSED" else codec for path, codec in codecs.items()}
    return known, max(group.num_rows for group in groups)

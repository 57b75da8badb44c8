"""Parquet files: row groups are decoded in bounded batches, only the columns that a pool needs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
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
"""While writing, a row group is ended when it takes so much in memory, however few its rows."""

AT_ONCE = 2
"""Row groups that are decoded at once: reading is as slow as decoding on one core, and the rest needs one."""

AHEAD_BYTES = 32 << 20
"""A row group that takes more when decoded is not decoded ahead but batch by batch."""


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
            return _batches(path, file.metadata, columns, wanted)

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


def _parquet(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    # Buffered reading: a row group may be larger than the memory.
    return pq.ParquetFile(path, metadata=metadata, buffer_size=1 << 20, pre_buffer=False)


def _batches(
    path: Path, metadata: pq.FileMetaData, columns: list[str] | None, wanted: Rows | None
) -> Batches:
    """Yield batches in order; small row groups are decoded ahead, `AT_ONCE` of them."""
    own = threading.local()

    def decoded(group: int) -> Iterator[pa.RecordBatch]:
        if not hasattr(own, "file"):  # one for each thread: readers are not made to be shared
            own.file = _parquet(path, metadata)
        rows = _batch_rows(metadata.row_group(group))
        batches: Iterator[pa.RecordBatch] = own.file.iter_batches(rows, [group], columns, use_threads=False)
        return batches

    def whole(group: int) -> list[pa.RecordBatch]:
        return list(decoded(group))

    threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="decode")
    waiting = _groups(metadata, wanted)
    window: deque[tuple[int, int, Future[list[pa.RecordBatch]] | None]] = deque()

    def look_ahead(count: int) -> None:
        for first, group in islice(waiting, count):
            is_small = metadata.row_group(group).total_byte_size <= AHEAD_BYTES
            ahead = threads.submit(whole, group) if is_small else None
            window.append((first, group, ahead))

    try:
        look_ahead(AT_ONCE)
        while window:
            first, group, ahead = window.popleft()
            look_ahead(1)
            for batch in decoded(group) if ahead is None else ahead.result():
                yield first, batch
                first += len(batch)
    finally:
        threads.shutdown(cancel_futures=True)


def _groups(metadata: pq.FileMetaData, wanted: Rows | None) -> Iterator[tuple[int, int]]:
    """Yield the row groups that hold a wanted row, each with the number of its first row."""
    first = 0
    for group in range(metadata.num_row_groups):
        last = first + metadata.row_group(group).num_rows
        if wanted is None or np.searchsorted(wanted, first) < np.searchsorted(wanted, last):
            yield first, group
        first = last


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

"""Arrow IPC files, in file form (Feather too) or stream form: memory-mapped, images are not copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from mllm_selector.artifacts import atomic_write
from mllm_selector.formats.tables import Batches, Regrouped, RowFile, RowFormat, Rows, RowWriter, head

__all__ = ["Arrow", "open_ipc", "write_batches"]

FILE_MAGIC = b"ARROW1"
# Each message of a stream begins so; its length follows.
STREAM_MARK = b"\xff\xff\xff\xff"

BATCH_ROWS = 1000
"""Rows of a written batch: what Hugging Face datasets write."""


class Arrow(RowFormat):
    """One or many Arrow IPC files."""

    name = "arrow"
    ending = ".arrow"

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Look for the magic bytes of the file form, or for the mark that begins a stream."""
        return all(_is_file_form(path) or head(path, len(STREAM_MARK)) == STREAM_MARK for path in paths)

    def open(self, path: Path) -> RowFile:
        """Map the file."""
        return open_ipc(path)

    @contextmanager
    def writer(self, out: Path, schema: pa.Schema, like: Sequence[Path]) -> Iterator[RowWriter]:
        """Write in the form of the first input: file or stream."""
        # A file has one dictionary a column; those of several inputs may differ.
        has_one_each = len(like) == 1 or not any(_has_dictionary(field.type) for field in schema)
        new = pa.ipc.new_file if has_one_each and _is_file_form(like[0]) else pa.ipc.new_stream
        with atomic_write(out) as sink, new(sink, schema) as writer, write_batches(writer) as batches:
            yield batches


@contextmanager
def write_batches(writer: pa.RecordBatchStreamWriter) -> Iterator[RowWriter]:
    """Join what is written to batches of the usual size."""
    batches = Regrouped(lambda table: writer.write_table(table.combine_chunks()), BATCH_ROWS)
    yield batches
    batches.flush()


def open_ipc(path: Path) -> RowFile:
    """Map an Arrow IPC file of either form."""
    source = pa.memory_map(str(path))
    is_stream = not _is_file_form(path)
    if is_stream:
        _check_end(source)

    def batches(columns: list[str] | None, wanted: Rows | None) -> Batches:
        start = 0
        # With columns left out, pyarrow would copy those of a file, and their place in it would be lost.
        for batch in _batches(source, is_stream):
            yield start, batch if columns is None else batch.select(columns)
            start += len(batch)

    schema = _reader(source, is_stream).schema
    # One column is enough to count the rows.
    rows = sum(map(len, _batches(source, is_stream, [0])))
    source.seek(0)
    return RowFile(path, schema, rows, batches, (source.read_buffer(1).address, source.size()))


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(index).type) for index in range(kind.num_fields))


def _check_end(source: pa.MemoryMappedFile) -> None:
    """Check that a stream ends with its end mark: cut off between two batches, it would pass as whole."""
    size = source.size()
    if size < 8 or source.read_at(8, size - 8) != STREAM_MARK + bytes(4):
        msg = "it does not end as a stream does, so it has been cut off"
        raise pa.ArrowInvalid(msg)


def _is_file_form(path: Path) -> bool:
    return head(path, len(FILE_MAGIC)) == FILE_MAGIC


def _reader(
    source: pa.MemoryMappedFile, is_stream: bool, fields: list[int] | None = None
) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    source.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=fields or [])
    return (pa.ipc.open_stream if is_stream else pa.ipc.open_file)(source, options=options)


def _batches(
    source: pa.MemoryMappedFile, is_stream: bool, fields: list[int] | None = None
) -> Iterator[pa.RecordBatch]:
    reader = _reader(source, is_stream, fields)
    if is_stream:
        yield from reader
        return
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)

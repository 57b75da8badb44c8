"""What all formats of rows share: batches for the Rust reader, and taking rows back out."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.formats.reading import RowOpener, read_pool
from mllm_selector.pool import Pool

__all__ = ["Regrouped", "RowFile", "RowFormat", "RowWriter", "head"]

USUAL_COLUMNS = {
    "id": ("id",),
    "source": ("source",),
    "system": ("system",),
    "messages": ("messages", "conversations"),
    "images": ("images", "image"),
}
"""Columns that the reader looks at, by what they hold; the others are never decoded."""

BLOCK_BYTES = 8 << 20
"""What is decoded at once takes about so much."""

BLOCK_ROWS = 8192

Rows = NDArray[np.int64]
Batches = Iterator[tuple[int, pa.RecordBatch]]


@dataclass(frozen=True)
class RowFile:
    """A file of rows, open for reading.

    Attributes
    ----------
    path : Path
        The file.
    schema : pyarrow.Schema
        All of its columns, with their metadata.
    rows : int
        How many there are.
    batches : callable
        Given the names of columns (None for all) and the rows wanted (ascending; None for all), yields
        batches in order, each with the number of its first row; those without a wanted row may be left out.
    mapped : tuple of int, optional
        Address and size in bytes of the file where it is memory-mapped.
    """

    path: Path
    schema: pa.Schema
    rows: int
    batches: Callable[[list[str] | None, Rows | None], Batches]
    mapped: tuple[int, int] | None = None


def head(path: Path, length: int) -> bytes:
    """Return the first bytes of a file; nothing if it is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(length)


class RowWriter(Protocol):
    """What takes the batches of a subset."""

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add rows."""


class Regrouped:
    """Joins batches to tables of `rows` rows, or fewer that take `size` bytes, and hands these to `write`."""

    def __init__(self, write: Callable[[pa.Table], None], rows: int, size: int = 64 << 20) -> None:
        self._write = write
        self._rows = rows
        self._size = size
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_bytes = 0

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        while len(batch):
            part = batch.slice(0, self._rows - self._held_rows)
            batch = batch.slice(len(part))
            self._held.append(part)
            self._held_rows += len(part)
            self._held_bytes += part.nbytes
            if self._held_rows == self._rows or self._held_bytes >= self._size:
                self.flush()

    def flush(self) -> None:
        """Hand over what is held."""
        if self._held:
            self._write(pa.Table.from_batches(self._held))
        self._held, self._held_rows, self._held_bytes = [], 0, 0


class RowFormat(ABC):
    """A format whose files hold rows in columns; a subclass says how they are opened and written."""

    name: ClassVar[str]
    ending: ClassVar[str]
    """File suffix of a subset, with the dot; nothing if it is a folder."""

    @abstractmethod
    def recognises(self, paths: Sequence[Path]) -> bool:
        """Say by their content whether all of these are of this format."""

    @abstractmethod
    def open(self, path: Path) -> RowFile:
        """Open one file; raises whatever pyarrow raises for a damaged one."""

    @abstractmethod
    def writer(self, out: Path, schema: pa.Schema, like: Sequence[Path]) -> AbstractContextManager[RowWriter]:
        """Open a subset for writing; it is whole under its name when the block ends, or not there."""

    def suffix(self, inputs: Sequence[Path]) -> str:
        """Return the file suffix of a subset."""
        return self.ending

    def ingest(
        self, options: IngestOptions, out: Path, rejected: Path, on_bytes: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Read a pool into `out`, set bad records aside in `rejected`, and return the counts."""
        return read_pool(options, self.name, out, rejected, on_bytes, self.row_opener(options))

    def row_opener(self, options: IngestOptions) -> RowOpener | None:
        """Check that one subset can hold rows of all inputs, and return what opens an input.

        Raises
        ------
        PoolError
            If a file cannot be read, or columns of one name are of different types.
        """
        # Such files are found here, not after hours of scoring.
        self.common_schema(options.pool.paths)
        given = {} if options.columns is None else dict(options.columns.names)

        def open_rows(path: PathLike[str]) -> tuple[object, int, tuple[int, int]]:
            return self.stream(Path(path), given)

        return open_rows

    def stream(self, path: Path, names: dict[str, str]) -> tuple[pa.RecordBatchReader, int, tuple[int, int]]:
        """Return the rows of a file for the Rust reader, with their number and where the file is mapped.

        Parameters
        ----------
        path : Path
            The file.
        names : dict
            Columns that are not the usual ones, by what they hold (see `IngestOptions.columns`).

        Raises
        ------
        PoolError
            If it is not a whole file of this format, or lacks a column of `names`.
        """
        file = self._opened(path)
        columns = _columns(file, names)
        schema = pa.schema([_plain_field(file.schema.field(name)) for name in columns])

        def batches() -> Iterator[pa.RecordBatch]:
            for _, batch in file.batches(columns, None):
                # Lengths and buffers only; the Rust reader looks at each offset and text.
                batch.validate()
                arrays = [batch.column(name) for name in columns]
                plain = [_cast(array, field.type) for array, field in zip(arrays, schema, strict=True)]
                yield pa.RecordBatch.from_arrays(plain, schema=schema)

        return pa.RecordBatchReader.from_batches(schema, batches()), file.rows, file.mapped or (0, 0)

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy rows of the pool, in that order, from its input files to `out`; memory is bounded.

        Raises
        ------
        PoolError
            If a file cannot be read, or their columns are of different types.
        UsageError
            If a row is not in the pool.
        """
        table = Pool.open(pool).table.select(["file", "offset"])
        if len(rows) and int(rows.max()) >= len(table):
            msg = f"rows: {rows.max()} is not in the pool of {len(table)} samples"
            raise UsageError(msg)
        schema = self.common_schema(inputs)
        order = np.argsort(rows, kind="stable")
        is_sorted = bool(np.all(order == np.arange(len(rows))))
        ascending = rows[order].astype(np.int64)
        taken = self._take(inputs, table.take(pa.array(ascending)), schema)
        if is_sorted:
            with self.writer(out, schema, inputs) as writer:
                for batch in taken:
                    writer.write_batch(batch)
            return
        # Rows in another order than the files': put down once in the files' order, then picked from the map.
        place = np.empty(len(rows), dtype=np.int64)
        place[order] = np.arange(len(rows))
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=".rows.") as spill:
            with pa.ipc.new_stream(spill, schema) as writer:
                for batch in taken:
                    writer.write_batch(batch)
            spill.flush()
            batches = list(pa.ipc.open_stream(pa.memory_map(spill.name)))
            with self.writer(out, schema, inputs) as writer:
                for batch in _reordered(batches, place):
                    writer.write_batch(batch)

    def common_schema(self, inputs: Sequence[Path]) -> pa.Schema:
        """Return the columns of all files; a column that some lack is null in their rows.

        Raises
        ------
        PoolError
            If a file cannot be read, or a column is of different types.
        """
        schema = self._opened(inputs[0]).schema
        for path in inputs[1:]:
            other = self._opened(path).schema
            if other.equals(schema):
                continue
            try:
                schema = pa.unify_schemas([schema, other.remove_metadata()])
            except pa.ArrowException as error:
                msg = (
                    f"{inputs[0]} and {path} have columns of one name and different types ({error}), so one "
                    "subset cannot hold rows of both; select from them in separate runs"
                )
                raise PoolError(msg) from error
        return schema

    def _take(self, inputs: Sequence[Path], places: pa.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows at some places, in order; places are ascending."""
        number, row = places["file"].to_numpy(), places["offset"].to_numpy().astype(np.int64)
        for index in np.unique(number):
            wanted = row[slice(*np.searchsorted(number, [index, index + 1]))]
            found = 0
            for start, batch in self._opened(inputs[index]).batches(None, wanted):
                first, last = np.searchsorted(wanted, [start, start + len(batch)])
                if first == last:
                    continue
                _check(batch)
                taken = batch.take(pa.array(wanted[first:last] - start))
                found += len(taken)
                yield _with_columns(taken, schema)
            if found != len(wanted):
                msg = f"{inputs[index]} has changed since it was ingested: rows are missing; ingest again"
                raise PoolError(msg)

    def _opened(self, path: Path) -> RowFile:
        try:
            file = self.open(path)
            _plain(pa.struct(list(file.schema)))  # reads the names, which in a damaged file may be no text
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            msg = f"{path} is not a whole {self.name} file ({error})"
            raise PoolError(msg) from error
        return file


def _columns(file: RowFile, names: dict[str, str]) -> list[str]:
    """Return the columns to read: those of `names`, and the usual ones for all else."""
    there = file.schema.names
    twice = [name for name in there if there.count(name) > 1]
    if twice:
        msg = f"{file.path}: there are two columns of the name '{twice[0]}'; rename one"
        raise PoolError(msg)
    of_file = {what: name for what, name in names.items() if what in USUAL_COLUMNS}
    for what, name in of_file.items():
        if name not in there:
            msg = f"{file.path}: --columns {what}={name}: there is no such column among {', '.join(there)}"
            raise PoolError(msg)
    if "messages" not in names and not {"messages", "conversations"} & set(there):
        msg = (
            f"{file.path}: there is no column 'messages' or 'conversations' among {', '.join(there)}; "
            "name the one that holds the turns with --columns messages=COLUMN"
        )
        raise PoolError(msg)
    usual = [name for what, all_names in USUAL_COLUMNS.items() if what not in names for name in all_names]
    return [name for name in there if name in {*usual, *of_file.values()}]


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type without dictionaries, views and extensions, which the Rust reader does not know."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    is_list = (pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    if any(check(kind) for check in is_list) or pa.types.is_large_list_view(kind):
        return pa.large_list(_plain_field(kind.value_field))
    return kind


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, _plain(field.type), field.nullable)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    array.validate(full=True)
    return array.cast(kind)


def _check(batch: pa.RecordBatch) -> None:
    """Raise if an offset leads out of its column; a text that is not UTF-8 may stand in a rejected row."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return the type with bytes where it has texts."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in fields])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


def _with_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    names = batch.schema.names
    columns = [
        batch.column(field.name) if field.name in names else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _reordered(batches: Sequence[pa.RecordBatch], place: Rows) -> Iterator[pa.RecordBatch]:
    """Yield the rows at `place`, in that order."""
    starts = np.cumsum([0, *map(len, batches)])
    mean = sum(batch.nbytes for batch in batches) // max(len(place), 1)
    step = int(np.clip(BLOCK_BYTES // max(mean, 1), 1, BLOCK_ROWS))
    for start in range(0, len(place), step):
        part = place[start : start + step]
        of_batch = np.searchsorted(starts, part, side="right") - 1
        by_batch = np.argsort(of_batch, kind="stable")
        taken = [
            batches[index].take(pa.array(part[of_batch == index] - starts[index]))
            for index in np.unique(of_batch)
        ]
        joined = pa.Table.from_batches(taken).combine_chunks()
        back = np.empty(len(part), dtype=np.int64)
        back[by_batch] = np.arange(len(part))
        yield from joined.take(pa.array(back)).to_batches()

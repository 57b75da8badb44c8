"""Scores of the samples by name: those of the score stage, and those that the user joins by id.

A joined file is Parquet, CSV or JSON lines with a column `id` and columns of numbers. Samples of the pool
that a file does not name have no value (NaN); ids that are not in the pool are counted; an id that comes
twice, or a value that is no finite number in a column that is asked for, is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mllm_selector.artifacts import EXAMPLE_PARTS, PARTS, open_arrow
from mllm_selector.errors import UsageError

__all__ = ["Joined", "join", "stored"]

# What a score part holds beside scores.
NO_SCORES = {"row", "reason", "missing", "embedding"}
NAMES_SHOWN = 20


def stored(folder: Path, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Read columns of the score stage.

    Parameters
    ----------
    folder : Path
        The score parts.
    names : collection of str
        The columns; those that the parts do not hold are left out.

    Returns
    -------
    dict of str to ndarray of float32, shape (n,)
    """
    columns = {}
    for pattern in (PARTS, EXAMPLE_PARTS):
        tables = [open_arrow(part) for part in sorted(folder.glob(pattern))]
        there = tables[0].column_names if tables else []
        for name in there:
            if name in names and name not in NO_SCORES:
                values = [_numbers(table[name]) for table in tables]
                columns[name] = np.concatenate(values).astype(np.float32)
    return columns


@dataclass(frozen=True)
class Joined:
    """Columns joined from files.

    Attributes
    ----------
    columns : dict of str to ndarray of float32, shape (n,)
        By name; NaN for samples without a value.
    counts : list of dict
        For each file: its name, the columns taken from it, rows with an id of the pool (``matched``) and
        without (``unknown``), and samples of the pool that it does not name (``missing``).
    """

    columns: dict[str, NDArray[np.float32]]
    counts: list[dict[str, Any]]


def join(files: Sequence[Path], ids: pa.ChunkedArray, names: Collection[str]) -> Joined:
    """Read columns of files and put their values where the ids of the pool are.

    Parameters
    ----------
    files : sequence of Path
        The files.
    ids : pyarrow.ChunkedArray of large_utf8, length n
        Ids of the pool.
    names : collection of str
        The columns to read. Others are left alone.

    Raises
    ------
    UsageError
        If a file cannot be read, has no ids, an id twice, or none of the pool; if a column comes from two
        files, or holds what is no finite number.
    """
    columns: dict[str, NDArray[np.float32]] = {}
    counts = []
    for path in files:
        table = _read(path)
        if "id" not in table.column_names:
            msg = f"--scores: {path} has no column id; it has {', '.join(table.column_names[:NAMES_SHOWN])}"
            raise UsageError(msg)
        own = _ids(path, table["id"])
        rows = pc.index_in(own, value_set=ids.combine_chunks())
        known = np.flatnonzero(rows.is_valid().to_numpy(zero_copy_only=False))
        if not len(known):
            msg = (
                f"--scores: {path} has no id of the pool: it has '{own[0]}', the pool '{ids[0]}'; the "
                "ids are those "
                "of the pool's records"
                if len(own)
                else f"--scores: {path} has no rows"
            )
            raise UsageError(msg)
        places = rows.drop_null().to_numpy().astype(np.int64)
        taken = [name for name in table.column_names if name in names and name != "id"]
        for name in taken:
            if name in columns:
                msg = (
                    f"--scores: {path} has the column '{name}', which an earlier file has; rename one of them"
                )
                raise UsageError(msg)
            values = np.full(len(ids), np.nan, np.float32)
            values[places] = _finite(path, name, table[name], own)[known]
            columns[name] = values
        counts.append(
            {
                "file": path.name,
                "columns": taken,
                "matched": len(known),
                "unknown": len(own) - len(known),
                "missing": len(ids) - len(known),
            }
        )
    return Joined(columns, counts)


def _read(path: Path) -> pa.Table:
    """Read a table, of the kind that its first bytes show."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 12)
        if start.startswith(b"PAR1"):
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path)
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            import pyarrow.json

            return pyarrow.json.read_json(path)
        import pyarrow.csv

        as_text = pyarrow.csv.ConvertOptions(column_types={"id": pa.string()})  # ids such as 007
        return pyarrow.csv.read_csv(path, convert_options=as_text)
    except FileNotFoundError:
        msg = f"--scores: {path} does not exist; name a Parquet, CSV or JSON lines file"
        raise UsageError(msg) from None
    except (pa.ArrowInvalid, OSError) as error:
        msg = f"--scores: {path} is not a Parquet, CSV or JSON lines file of one table ({error})"
        raise UsageError(msg) from error


def _ids(path: Path, column: pa.ChunkedArray) -> pa.Array:
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        msg = f"--scores: {path}: the column id is of type {kind}; ids are texts or whole numbers"
        raise UsageError(msg)
    ids = column.cast(pa.large_utf8()).combine_chunks()
    if ids.null_count:
        row = int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False)))
        msg = f"--scores: {path}: row {row} has no id; give it one or leave it out"
        raise UsageError(msg)
    counts = pc.value_counts(ids)
    twice = pc.greater(counts.field("counts"), 1)
    number = pc.sum(twice).as_py() or 0
    if number:
        first = counts.field("values").filter(twice)[0]
        msg = (
            f"--scores: {path}: {number} ids come several times, first '{first}'; keep one row for "
            "each sample"
        )
        raise UsageError(msg)
    return ids


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    return numbers


def _finite(path: Path, name: str, column: pa.ChunkedArray, ids: pa.Array) -> NDArray[np.float32]:
    """Return the values as float32, NaN for nulls and NaN."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        msg = (
            f"--scores: {path}: the column '{name}' is of type {kind}, not of numbers, as in row 0, "
            f"id '{ids[0]}'"
        )
        if pa.types.is_string(kind):
            row = _first_text(column)
            msg = f"--scores: {path}: the column '{name}' holds '{column[row]}' in row {row}, id '{ids[row]}'"
        msg += "; give numbers, and nothing where there is none"
        raise UsageError(msg)
    with np.errstate(over="ignore"):
        # Adding zero turns -0.0 into 0.0, so that equal numbers have equal bits.
        values = _numbers(column).astype(np.float32) + np.float32(0)
    if np.isinf(values).any():
        row = int(np.argmax(np.isinf(values)))
        msg = (
            f"--scores: {path}: the column '{name}' holds {column[row]} in row {row}, id "
            f"'{ids[row]}', which is not "
            "finite in float32; give a number, or nothing where there is none"
        )
        raise UsageError(msg)
    return values


def _first_text(column: pa.ChunkedArray) -> int:
    """Return the first row whose text is no number."""
    for row, value in enumerate(column.to_pylist()):
        try:
            float("nan" if value is None else value)
        except ValueError:
            return row
    return 0

"""Checks of array arguments: what is wrong, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mllm_selector.errors import UsageError

__all__ = [
    "Embeddings",
    "Report",
    "checked_count",
    "checked_rows",
    "checked_seed",
    "checked_weights",
    "matrix_parts",
]


@runtime_checkable
class ArrowArray(Protocol):
    """An array of any library that speaks the Arrow PyCapsule interface."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...


@runtime_checkable
class ArrowStream(Protocol):
    """A column in chunks of any library that speaks the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Matrix: TypeAlias = NDArray[Any] | ArrowArray | ArrowStream
"""Rows in NumPy, or a column of fixed-size lists in Arrow."""

Embeddings: TypeAlias = Matrix | Sequence[Matrix]
"""One matrix, or its parts in order."""

Report: TypeAlias = Callable[[int, int], object]
"""Called with (done, total) now and then; what it raises stops the call and is passed on."""


def matrix_parts(X: Embeddings, rows: int | None = None) -> list[NDArray[Any]]:
    """Check the shape and type of a matrix and return its parts, views of the very same values."""
    given = [X] if isinstance(X, np.ndarray | ArrowArray | ArrowStream) else list(X)
    if not given:
        msg = "embeddings: the list holds no arrays; give at least one"
        raise UsageError(msg)
    parts = []
    for number, part in enumerate(given):
        name = "embeddings" if len(given) == 1 else f"embeddings: part {number}"
        is_arrow = isinstance(part, ArrowArray | ArrowStream)
        for view in _arrow_views(part, name) if is_arrow else [_checked_array(part, name)]:
            parts.append(view)
            if view.shape[1] != parts[0].shape[1]:
                msg = (
                    f"{name}: {view.shape[1]} columns, but part 0 has {parts[0].shape[1]}; all need the same"
                )
                raise UsageError(msg)
    total = sum(len(part) for part in parts)
    if rows is not None and total != rows:
        msg = f"embeddings: {total} rows for {rows} samples; give one row for each"
        raise UsageError(msg)
    return parts


def _checked_array(part: object, name: str) -> NDArray[Any]:
    if not isinstance(part, np.ndarray) or part.ndim != 2:
        shape = getattr(part, "shape", None)
        what = type(part).__name__ if shape is None else f"an array of shape {shape}"
        msg = (
            f"{name}: {what} is not a matrix; give a two-dimensional NumPy array, an Arrow column of "
            "fixed-size lists, or a list of them"
        )
        raise UsageError(msg)
    if part.dtype not in (np.float16, np.float32):
        msg = f"{name}: {part.dtype} values; convert them with .astype(numpy.float32)"
        raise UsageError(msg)
    if not part.flags.c_contiguous:
        msg = f"{name}: the rows are not contiguous in memory; pass numpy.ascontiguousarray(...)"
        raise UsageError(msg)
    if not part.flags.aligned:
        size = part.itemsize
        msg = (
            f"{name}: the values of {size} bytes do not begin at a multiple of {size} in memory or in the "
            "mapped file; pass a copy"
        )
        raise UsageError(msg)
    return part


def _arrow_views(part: Any, name: str) -> list[NDArray[Any]]:
    """Return the values of an Arrow column as they lie in memory, one view for each chunk."""
    if isinstance(part, pa.Array):
        part = [part]
    elif not isinstance(part, ArrowStream):
        part = [pa.array(part)]
    column = part if isinstance(part, pa.ChunkedArray) else pa.chunked_array(part)
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float16(), pa.float32()):
        msg = (
            f"{name}: Arrow data of type {kind}; give one column of fixed-size lists of float16 or float32, "
            "such as column.cast(pyarrow.list_(pyarrow.float32(), 384)) for rows of 384 values"
        )
        raise UsageError(msg)
    views = []
    first = 0
    for chunk in column.chunks:
        values = _arrow_values(chunk, first, name).reshape(len(chunk), kind.list_size)
        views.append(_checked_array(values, name))
        first += len(chunk)
    return views or [np.empty((0, kind.list_size), kind.value_type.to_pandas_dtype())]


def _arrow_values(chunk: Any, first: int, name: str) -> NDArray[Any]:
    """Return the values of a chunk whose first row is row `first` of its column."""
    try:
        chunk.validate()
    except pa.ArrowInvalid as error:
        msg = f"{name}: the Arrow data is damaged ({error}); write it again"
        raise UsageError(msg) from error
    if chunk.null_count:
        problem = f"row {first + _first_null(chunk)} is null"
    else:
        values = chunk.flatten()
        if not values.null_count:
            view: NDArray[Any] = values.to_numpy(zero_copy_only=True)
            return view
        row, column = divmod(_first_null(values), chunk.type.list_size)
        problem = f"row {first + row} holds a null in column {column}"
    msg = f"{name}: {problem}; leave such rows out, or fill them"
    raise UsageError(msg)


def _first_null(array: Any) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))


def checked_rows(name: str, rows: ArrayLike) -> NDArray[np.int64]:
    """Return row numbers as an array; whether they fit is checked where the number of rows is known."""
    array = np.atleast_1d(np.asarray(rows))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        msg = (
            f"{name}: give whole numbers in a one-dimensional array, not {array.dtype} of shape {array.shape}"
        )
        raise UsageError(msg)
    return np.ascontiguousarray(array, np.int64)


def checked_weights(weights: ArrayLike) -> NDArray[np.float32]:
    """Return weights as an array; whether they fit is checked where the number of rows is known."""
    array = np.asarray(weights)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        msg = f"weights: give numbers in a one-dimensional array, not {array.dtype} of shape {array.shape}"
        raise UsageError(msg)
    return np.ascontiguousarray(array, np.float32)


def checked_count(name: str, value: int) -> int:
    """Return a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        msg = f"{name}: {value!r} is not a whole number of at least 1"
        raise UsageError(msg)
    return int(value)


def checked_seed(seed: int) -> int:
    """Return a seed that fits 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        msg = f"seed: {seed!r} is not a whole number from 0 to 2^64 - 1"
        raise UsageError(msg)
    return int(seed)

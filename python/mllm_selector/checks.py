"""Checks of array arguments: what is wrong, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_selector.errors import UsageError

__all__ = ["Embeddings", "checked_count", "checked_rows", "checked_seed", "matrix_parts"]

Embeddings: TypeAlias = NDArray[Any] | Sequence[NDArray[Any]]
"""One matrix, or its parts in order."""


def matrix_parts(X: Embeddings, rows: int | None = None) -> list[NDArray[Any]]:
    """Check the shape and type of a matrix and return its parts."""
    parts = [X] if isinstance(X, np.ndarray) else list(X)
    if not parts:
        msg = "embeddings: the list holds no arrays; give at least one"
        raise UsageError(msg)
    for number, part in enumerate(parts):
        name = "embeddings" if len(parts) == 1 else f"embeddings: part {number}"
        if not isinstance(part, np.ndarray) or part.ndim != 2:
            shape = getattr(part, "shape", None)
            what = type(part).__name__ if shape is None else f"an array of shape {shape}"
            msg = f"{name}: {what} is not a matrix; give a two-dimensional NumPy array, or a list of them"
            raise UsageError(msg)
        if part.dtype not in (np.float16, np.float32):
            msg = f"{name}: {part.dtype} values; convert them with .astype(numpy.float32)"
            raise UsageError(msg)
        if not part.flags.c_contiguous:
            msg = f"{name}: the rows are not contiguous in memory; pass numpy.ascontiguousarray(...)"
            raise UsageError(msg)
        if part.shape[1] != parts[0].shape[1]:
            msg = f"{name}: {part.shape[1]} columns, but part 0 has {parts[0].shape[1]}; all need the same"
            raise UsageError(msg)
    total = sum(len(part) for part in parts)
    if rows is not None and total != rows:
        msg = f"embeddings: {total} rows for {rows} samples; give one row for each"
        raise UsageError(msg)
    return parts


def checked_rows(name: str, rows: ArrayLike) -> NDArray[np.int64]:
    """Return row numbers as an array; whether they fit is checked where the number of rows is known."""
    array = np.atleast_1d(np.asarray(rows))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        msg = (
            f"{name}: give whole numbers in a one-dimensional array, not {array.dtype} of shape {array.shape}"
        )
        raise UsageError(msg)
    return np.ascontiguousarray(array, np.int64)


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

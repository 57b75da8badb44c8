"""The example that is put in front of each sample: the nearest other sample of the pool by embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import ScoreTable, open_arrow, write_arrow
from mllm_selector.neighbours import nearest_neighbours

__all__ = ["find_examples", "read_examples"]

SCHEMA = pa.schema([pa.field("row", pa.uint64(), nullable=False), pa.field("example", pa.uint64())])


def find_examples(
    path: Path,
    key: str,
    scores: ScoreTable,
    threads: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Find each scored sample's nearest other one, by the cosine of their embeddings, ties to the lowest row.

    Parameters
    ----------
    path : Path
        Where the result goes: an Arrow file with columns `row` and `example` (null where there is none). One
        that this run has written before stays.
    key : str
        The key of the run.
    scores : ScoreTable
        The embeddings of the whole pool.
    threads : int or None
        CPU threads; the result does not depend on it.
    progress : callable, optional
        See `mllm_selector.nearest_neighbours`.
    """
    schema = SCHEMA.with_metadata({"mllm_selector.key": key})
    if path.exists() and open_arrow(path).schema.equals(schema, check_metadata=True):
        return
    scored = scores.reasons.is_null().to_numpy()
    rows = np.flatnonzero(scored)
    found: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    if len(rows) > 1:
        parts = _only(scores.embeddings, scored)
        nearest = nearest_neighbours(parts, 1, threads=threads, progress=progress)
        found = rows[nearest.rows[:, 0].astype(np.int64)]
    examples = np.zeros(len(scores), dtype=np.uint64)
    examples[rows[: len(found)]] = found
    absent = np.ones(len(scores), dtype=bool)
    absent[rows[: len(found)]] = False
    columns = [pa.array(np.arange(len(scores), dtype=np.uint64)), pa.array(examples, mask=absent)]
    write_arrow(path, pa.Table.from_arrays(columns, schema=schema))


def read_examples(path: Path, rows: range) -> dict[int, int]:
    """Read the examples of some rows from what `find_examples` wrote; samples without one are left out."""
    found = open_arrow(path)["example"][rows.start : rows.stop].to_pylist()
    return {row: example for row, example in zip(rows, found, strict=True) if example is not None}


def _only(parts: Sequence[NDArray[np.float16]], wanted: NDArray[np.bool_]) -> list[NDArray[np.float16]]:
    """Leave rows out of the parts of an array; a part that is wanted whole is not copied."""
    kept, start = [], 0
    for part in parts:
        mine = wanted[start : start + len(part)]
        start += len(part)
        if mine.any():
            kept.append(part if mine.all() else part[mine])
    return kept

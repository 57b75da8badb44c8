"""Files that the stages hand to each other: how each is written whole, and how it is read.

A file counts as soon as it has its final name: it is written to a temporary sibling, flushed to the
disk and renamed. Arrow files are uncompressed, so that they can be memory-mapped and read without copies.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.errors import MllmSelectorError, PoolError, RunDirectoryError, UsageError, WriteError
from mllm_selector.metrics import METRICS, NLL

__all__ = [
    "ScoreTable",
    "atomic_folder",
    "atomic_write",
    "embedding_schema",
    "example_schema",
    "make_folder",
    "missing_metrics",
    "open_arrow",
    "read_embeddings",
    "score_schema",
    "sync",
    "sync_folder",
    "write_arrow",
    "write_json",
    "writing",
]

PARTS = "part-*.arrow"
"""Files of the first sweep over the pool in a scores folder."""

EMBEDDING_PARTS = "embedding-*.arrow"
"""Files of the sweep for the input embeddings, where only some samples are scored."""

EXAMPLE_PARTS = "example-*.arrow"
"""Files of the sweep in which each sample has an example in front."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file that is either whole under its name or not there.

    Parameters
    ----------
    path : Path
        Final name. A file of that name is replaced only when the block ends without an error.

    Yields
    ------
    BinaryIO
        The temporary sibling, opened for writing.

    Raises
    ------
    WriteError
        If it cannot be written.
    UsageError
        If a folder has that name.
    """
    if path.is_dir():
        msg = f"{path} is a folder, and a file is to be written; name a file"
        raise UsageError(msg)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # the error itself matters more
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, MllmSelectorError):
            raise WriteError(path, error) from error
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder that is either whole under its name or not there.

    Parameters
    ----------
    path : Path
        Final name. A folder of that name is replaced when the block ends without an error.

    Yields
    ------
    Path
        An empty temporary sibling to write into.

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        make_folder(path.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, MllmSelectorError):
            raise WriteError(path, error) from error
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Take any error of a library that writes files for one of writing.

    Raises
    ------
    WriteError
        In place of whatever the library raises; torch, safetensors and onnx have classes of their own.
    """
    try:
        yield
    except MllmSelectorError:
        raise
    except Exception as error:
        raise WriteError(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, flushed to the disk; nothing happens if it is there."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that what was renamed in it survives a power cut."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows flushes no folders; NTFS has a journal of its entries
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush a folder and all files below it to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, keys in the order given."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as an uncompressed Arrow IPC file, whole."""
    with atomic_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def open_arrow(path: Path) -> pa.Table:
    """Memory-map an Arrow IPC file.

    Parameters
    ----------
    path : Path
        A file written by this package.

    Returns
    -------
    pyarrow.Table
        Its columns, backed by the mapped file.

    Raises
    ------
    RunDirectoryError
        If the file is missing.
    PoolError
        If it is not a whole Arrow IPC file.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            table.validate()
    except FileNotFoundError:
        msg = f"{path} is missing; run the stage that writes it again"
        raise RunDirectoryError(msg) from None
    except (pa.ArrowInvalid, OSError) as error:
        msg = f"{path} is not a whole Arrow file ({error}); delete it and run the same command again"
        raise PoolError(msg) from error
    return table


def score_schema(
    embedding_size: int | None, metrics: Sequence[str] = (NLL,), metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Return the schema of a score part.

    Columns: `row` (position in the pool), `nll_sum` (nats), `answer_tokens`, a float32 column for each metric
    by its name, `nll` (`nll_sum / answer_tokens`) always among them (NaN where the sample has none), `reason`
    (why it was not scored at all, else null), `missing` (why it has not some of the metrics, by name) and
    `embedding` (L2-normalised float16; zeros if not scored). Without a size there is no `embedding`: it lies
    in the parts of `embedding_schema`.
    """
    return pa.schema(
        [
            pa.field("row", pa.uint64(), nullable=False),
            pa.field("nll_sum", pa.float32(), nullable=False),
            pa.field("answer_tokens", pa.uint32(), nullable=False),
            *(pa.field(name, pa.float32(), nullable=False) for name in metrics),
            pa.field("reason", pa.utf8()),
            pa.field("missing", pa.map_(pa.utf8(), pa.utf8()), nullable=False),
            *([] if embedding_size is None else [_embedding_field(embedding_size)]),
        ],
        metadata=metadata,
    )


def embedding_schema(embedding_size: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Return the schema of a part of the sweep for the input embeddings.

    Columns: `row`, `reason` (why the sample cannot be read, else null) and `embedding` (L2-normalised
    float16; zeros if it cannot).
    """
    return pa.schema(
        [
            pa.field("row", pa.uint64(), nullable=False),
            pa.field("reason", pa.utf8()),
            _embedding_field(embedding_size),
        ],
        metadata=metadata,
    )


def _embedding_field(size: int) -> pa.Field:
    items = pa.list_(pa.field("item", pa.float16(), nullable=False), size)
    return pa.field("embedding", items, nullable=False)


def example_schema(metric: str, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Return the schema of a part of the sweep in which each sample has an example in front.

    Columns: `row`, the metric (NaN where the sample has none) and `missing` (as in a score part).
    """
    return pa.schema(
        [
            pa.field("row", pa.uint64(), nullable=False),
            pa.field(metric, pa.float32(), nullable=False),
            pa.field("missing", pa.map_(pa.utf8(), pa.utf8()), nullable=False),
        ],
        metadata=metadata,
    )


@dataclass(frozen=True)
class ScoreTable:
    """Scores of the whole pool, row `i` of every column belonging to row `i` of the pool.

    Attributes
    ----------
    metrics : dict of str to ndarray of float32, shape (n,)
        Every metric of the scores by its name; NaN where a sample has none.
    necessity : ndarray of float32, shape (n,)
        The metric that was chosen as necessity.
    answer_tokens : ndarray of uint32, shape (n,)
        Answer tokens of each sample.
    reasons : pyarrow.ChunkedArray of utf8, length n
        Why a sample was not scored at all; null where it was.
    embeddings : sequence of ndarray of float16, each of shape (rows of the part, d)
        Read-only views of the memory-mapped parts, in pool order.
    """

    metrics: Mapping[str, NDArray[np.float32]]
    necessity: NDArray[np.float32]
    answer_tokens: NDArray[np.uint32]
    reasons: pa.ChunkedArray
    embeddings: Sequence[NDArray[np.float16]]

    @classmethod
    def load(cls, folder: Path, necessity: str = NLL, *, with_examples: bool = True) -> ScoreTable:
        """Map every part in a scores folder.

        Parameters
        ----------
        folder : Path
            The folder of the parts.
        necessity : str
            The metric that is the necessity.
        with_examples : bool
            Whether to read the second sweep, where there is one.

        Raises
        ------
        RunDirectoryError
            If there is no part, or the parts do not cover the pool's rows without gaps.
        UsageError
            If the pool was not scored with the metric.
        """
        tables = _parts(folder, PARTS)
        rows = sum(len(table) for table in tables)
        has_examples = with_examples and any(folder.glob(EXAMPLE_PARTS))
        examples = _parts(folder, EXAMPLE_PARTS, rows) if has_examples else []
        has_embeddings = any(folder.glob(EMBEDDING_PARTS))
        embedded = _parts(folder, EMBEDDING_PARTS, rows) if has_embeddings else tables
        metrics = {
            name: np.concatenate([table[name].to_numpy() for table in of])
            for of in (tables, examples)
            if of
            for name in of[0].column_names
            if name in METRICS
        }
        return cls(
            metrics=metrics,
            necessity=_metric(metrics, necessity, folder),
            answer_tokens=np.concatenate([table["answer_tokens"].to_numpy() for table in tables]),
            reasons=pa.chunked_array([chunk for table in tables for chunk in table["reason"].chunks]),
            embeddings=[view for table in embedded for view in _embedding_views(table["embedding"])],
        )

    def __len__(self) -> int:
        return len(self.answer_tokens)

    def column(self, name: str) -> NDArray[np.float32]:
        """Return a metric.

        Parameters
        ----------
        name : str
            A name of `mllm_selector.metrics.METRICS`.

        Returns
        -------
        ndarray of float32, shape (n,)
            NaN where a sample has none.

        Raises
        ------
        UsageError
            If the pool was not scored with it.
        """
        return _metric(self.metrics, name)


def _metric(
    metrics: Mapping[str, NDArray[np.float32]], name: str, folder: Path | None = None
) -> NDArray[np.float32]:
    if name in metrics:
        return metrics[name]
    if name not in METRICS:
        msg = f"{name!r} is no metric; metrics are {', '.join(METRICS)}"
        raise UsageError(msg)
    where = "the scores" if folder is None else str(folder)
    msg = (
        f"{where} hold no {name!r}, only {', '.join(metrics)}; score the pool with --metrics "
        f"{','.join([*(known for known in metrics if known != NLL), name])} in another --run-dir"
    )
    raise UsageError(msg)


def _parts(folder: Path, pattern: str, rows: int | None = None) -> list[pa.Table]:
    """Map the parts of one sweep over the pool, which have to cover its rows in order."""
    parts = sorted(folder.glob(pattern))
    if not parts:
        msg = f"{folder} holds no scores; run 'mllm-selector score' on this run directory first"
        raise RunDirectoryError(msg)
    tables = [open_arrow(part) for part in parts]
    found = np.concatenate([table["row"].to_numpy() for table in tables])
    if not np.array_equal(found, np.arange(len(found) if rows is None else rows, dtype=found.dtype)):
        msg = f"{folder}: the score parts do not cover the pool's rows in order; run 'score' again"
        raise RunDirectoryError(msg)
    return tables


def read_embeddings(folder: Path) -> tuple[pa.ChunkedArray, list[NDArray[np.float16]]]:
    """Map the input embeddings of a pool of which only some samples are scored.

    Returns
    -------
    reasons : pyarrow.ChunkedArray of utf8, length n
        Why a sample has none; null where it has.
    embeddings : list of ndarray of float16, each of shape (rows of the part, d)
        In the order of the pool.

    Raises
    ------
    RunDirectoryError
        If the parts do not cover the pool's rows without gaps.
    """
    tables = _parts(folder, EMBEDDING_PARTS)
    reasons = pa.chunked_array([chunk for table in tables for chunk in table["reason"].chunks])
    return reasons, [view for table in tables for view in _embedding_views(table["embedding"])]


def missing_metrics(part: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield metric and reason wherever a scored sample of a part has not a metric."""
    for chunk in part["missing"].chunks:
        yield from zip(chunk.keys.to_pylist(), chunk.items.to_pylist(), strict=True)


def _embedding_views(column: pa.ChunkedArray) -> list[NDArray[np.float16]]:
    size = column.type.list_size
    return [
        chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), size)
        for chunk in column.chunks
        if len(chunk)
    ]

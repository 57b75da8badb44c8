"""pyarrow's own readers: JSON lines and Parquet into an Arrow file, and rows of a mapped Arrow file.

The columns stay as they are in the input, which is less work than ours do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from checks import of_samples
from data import BLOCK, LLAVA_SCHEMA

COLUMNS = pj.ParseOptions(explicit_schema=LLAVA_SCHEMA, unexpected_field_behavior="ignore")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

pa.set_cpu_count(len(os.sched_getaffinity(0)))


def json_whole(out: Path, pool: str) -> dict[str, Any]:
    """Read all JSON lines into memory with all threads, then write them."""
    with pa.input_stream(pool, compression=COMPRESSIONS.get(Path(pool).suffix)) as lines:
        table = pj.read_json(lines, parse_options=COLUMNS)
    return write(out, table.to_batches())


def json_stream(out: Path, pool: str) -> dict[str, Any]:
    """Read JSON lines a block at a time."""
    with pa.input_stream(pool, compression=COMPRESSIONS.get(Path(pool).suffix)) as lines:
        return write(out, pj.open_json(lines, parse_options=COLUMNS))


def parquet_whole(out: Path, pool: str) -> dict[str, Any]:
    """Read a Parquet file into memory with all threads, then write it."""
    return write(out, pq.read_table(pool).to_batches())


def parquet_stream(out: Path, pool: str) -> dict[str, Any]:
    """Read a Parquet file a batch at a time."""
    with pq.ParquetFile(pool) as file:
        return write(out, file.iter_batches(BLOCK))


def write(out: Path, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
    path = out / "pool.arrow"
    with path.open("wb") as file, pa.ipc.new_file(file, LLAVA_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return {"files": [str(path)]}


def open_and_take(out: Path, pool: str, rows: str) -> dict[str, Any]:
    """Map an Arrow file, take rows in one call, and make Python objects of them."""
    numbers = np.load(rows).tolist()
    table, opened = opened_table(pool)
    started = time.perf_counter()
    samples = table.take(numbers).to_pylist()
    return {"open_ms": opened, "seconds": time.perf_counter() - started, "digest": of_samples(samples)}


def open_and_slice(out: Path, pool: str, rows: str) -> dict[str, Any]:
    """Do the same a row at a time."""
    numbers = np.load(rows).tolist()
    table, opened = opened_table(pool)
    started = time.perf_counter()
    samples = [table.slice(row, 1).to_pylist()[0] for row in numbers]
    return {"open_ms": opened, "seconds": time.perf_counter() - started, "digest": of_samples(samples)}


def opened_table(pool: str) -> tuple[pa.Table, float]:
    started = time.perf_counter()
    table = pa.ipc.open_file(pa.memory_map(pool)).read_all()
    return table, (time.perf_counter() - started) * 1e3

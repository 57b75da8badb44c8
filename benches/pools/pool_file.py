"""A large pool file, written by pyarrow in the schema of `pool.arrow`, a batch at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data import BLOCK, whole
from mllm_selector.pool import POOL_SCHEMA, POOL_VERSION
from records import records


def prepare(rows: int, work: Path) -> tuple[Path, Path]:
    """Return a pool file of so many rows, about 250 bytes each, and the same as the Arrow stream HF reads."""
    file, stream = (work / f"pool-{rows}-v{POOL_VERSION}.{ending}" for ending in ("arrow", "arrows"))
    if not file.exists():
        whole(file, lambda part: write(part, rows))
    if not stream.exists():
        whole(stream, lambda part: write_stream(file, part))
    return file, stream


def write(path: Path, rows: int) -> None:
    metadata = {
        "mllm_selector.pool_version": POOL_VERSION,
        "mllm_selector.format": "llava-json",
        "mllm_selector.inputs": json.dumps([{"path": "/nowhere/pool.json", "source": None}]),
    }
    schema = POOL_SCHEMA.with_metadata(metadata)
    with path.open("wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches(rows, schema):
            writer.write_batch(batch)


def write_stream(file: Path, path: Path) -> None:
    with pa.memory_map(str(file)) as source, path.open("wb") as sink:
        reader = pa.ipc.open_file(source)
        with pa.ipc.new_stream(sink, reader.schema) as writer:
            for number in range(reader.num_record_batches):
                writer.write_batch(reader.get_batch(number))


def batches(rows: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the batches of the pool file: a question and an answer from a bank of texts, and one image."""
    turns = (message["value"] for record in records(4 * BLOCK, seed=1) for message in record["conversations"])
    bank = pa.array([text for text in itertools.islice(turns, 1 << 17) if len(text) < 200], pa.large_string())
    for first in range(0, rows, BLOCK):
        numbers = range(first, min(first + BLOCK, rows))
        length = len(numbers)
        rng = np.random.default_rng([3, first // BLOCK])
        messages = {
            "role": pa.array(["user", "assistant"] * length, pa.utf8()),
            "content": bank.take(pa.array(rng.integers(len(bank), size=2 * length))),
        }
        paths = [f"coco/train2017/{image:012d}.jpg" for image in rng.integers(10**6, size=length).tolist()]
        columns = {
            "id": pa.array([f"{number:012d}" for number in numbers], pa.large_string()),
            "source": pa.array(["coco", "vqa", "gqa"], pa.large_string()).take(
                pa.array(rng.integers(3, size=length))
            ),
            "messages": of_structs(schema.field("messages").type, messages, 2),
            "images": of_structs(
                schema.field("images").type, {"path": pa.array(paths, pa.large_string())}, 1
            ),
            "file": pa.array(np.zeros(length, np.uint32)),
            "offset": pa.array(np.arange(first, first + length, dtype=np.uint64) * 300),
            "length": pa.array(np.full(length, 298, np.uint64)),
        }
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def of_structs(kind: pa.DataType, fields: dict[str, pa.Array], per_row: int) -> pa.Array:
    """Make a list column with as many items in each row; fields that are not given are null."""
    item = kind.value_type
    length = len(next(iter(fields.values())))
    children = [fields.get(field.name, pa.nulls(length, field.type)) for field in item]
    values = pa.StructArray.from_arrays(children, fields=list(item))
    return pa.LargeListArray.from_arrays(
        pa.array(np.arange(0, length + 1, per_row), pa.int64()), values, type=kind
    )

"""Whether results are right: each check says in a few words what was found."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPEAKERS = {"human": b"u", "user": b"u", "gpt": b"a", "assistant": b"a", "system": b"s"}


class Digest:
    """A hash of records (ids, turns, roles, texts, image paths) that is the same for every schema here.

    Columns may be `conversations` of `from` and `value` or `messages` of `role` and `content`; `image`, a
    text or null, or `images`, a list of texts or of structs with a `path`.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._hashes = [hashlib.blake2b() for _ in range(10)]

    def add(self, records: pa.Table | pa.RecordBatch) -> None:
        """Take in more records."""
        names = records.schema.names
        table = pa.table(records.columns, names=names).combine_chunks()
        self.rows += len(table)
        for batch in table.to_batches():
            turns, roles, contents = messages(batch)
            counts, paths = images(batch)
            parts = [*bytes_of(batch["id"]), turns, roles, *bytes_of(contents), counts, *bytes_of(paths)]
            for part, kept in zip(parts, self._hashes, strict=False):
                kept.update(part)

    def text(self) -> str:
        """Return the digest of all records so far."""
        return hashlib.blake2b(b"".join(kept.digest() for kept in self._hashes), digest_size=16).hexdigest()


def messages(batch: pa.RecordBatch) -> tuple[bytes, bytes, pa.Array]:
    """Return turns of each record, and roles and texts of all turns."""
    name = next(name for name in ("messages", "conversations") if name in batch.schema.names)
    turns = batch[name].flatten()
    fields = dict(zip([field.name for field in turns.type], turns.flatten(), strict=True))
    roles = fields.get("role", fields.get("from"))
    codes = pc.index_in(roles, value_set=pa.array(list(SPEAKERS), roles.type)).to_numpy()
    table = np.frombuffer(b"".join(SPEAKERS.values()), np.uint8)
    counts = pc.list_value_length(batch[name]).to_numpy().astype(np.int64)
    return counts.tobytes(), table[codes].tobytes(), fields.get("content", fields.get("value"))


def images(batch: pa.RecordBatch) -> tuple[bytes, pa.Array]:
    """Return images of each record, and the paths of all."""
    if "image" in batch.schema.names:
        column = batch["image"]
        return column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64).tobytes(), column.drop_null()
    values = batch["images"].flatten()
    if pa.types.is_struct(values.type):
        values = values.flatten()[values.type.get_field_index("path")]
    return pc.list_value_length(batch["images"]).to_numpy().astype(np.int64).tobytes(), values


def bytes_of(texts: pa.Array) -> tuple[bytes, memoryview]:
    """Return the lengths and the bytes of texts without nulls."""
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    stops = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset)
    data = memoryview(data)[stops[0] : stops[-1]] if data else memoryview(b"")
    return np.diff(stops).tobytes(), data


def same_records(files: Sequence[Path], expected: str) -> str:
    """Compare the records in Arrow files with those that the generator made."""
    digest = Digest()
    for file in files:
        for batch in batches(file):
            digest.add(batch)
    if digest.text() != expected:
        return f"WRONG: {digest.rows:,} records, not those that were made"
    return f"the same {digest.rows:,} records"


def batches(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow IPC file or stream."""
    with pa.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            return
        source.seek(0)
        yield from pa.ipc.open_stream(source)


def same_bytes(subset: Path, lines: Path, rows: Sequence[int]) -> str:
    """Look for each chosen record's very bytes in a JSON array, in order, and for nothing else."""
    wanted = set(rows)
    with lines.open("rb") as source, subset.open("rb") as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        place = skip(text, 0, b"[")
        for number, line in enumerate(source):
            if number not in wanted:
                continue
            record = line.rstrip(b"\n")
            if text[place : place + len(record)] != record:
                return f"WRONG: record {number:,} is not byte for byte that of the input"
            place = skip(text, place + len(record), b",")
        if text[place:].strip() != b"]":
            return "WRONG: more than the chosen records"
    return f"{len(wanted):,} records, byte for byte"


def skip(text: mmap.mmap, place: int, mark: bytes) -> int:
    """Go past white space and at most one mark."""
    while text[place : place + 1] in (b" ", b"\n", b"\t", b"\r", mark):
        if text[place : place + 1] == mark:
            mark = b" "
        place += 1
    return place


def same_values(subset: Path, lines: Path, rows: Sequence[int]) -> str:
    """Compare the chosen records with those of the input as parsed values."""
    wanted = set(rows)
    found = json.loads(subset.read_bytes())
    with lines.open("rb") as source:
        made = [json.loads(line) for number, line in enumerate(source) if number in wanted]
    return f"{len(found):,} records, equal when parsed" if found == made else "WRONG: other records"


def of_samples(samples: list[dict[str, Any]]) -> str:
    """Digest rows of the pool file: dicts of `id`, `messages` and `images` as pyarrow makes them."""
    plain = [
        (
            sample["id"],
            [(turn["role"], turn["content"]) for turn in sample["messages"]],
            [image["path"] for image in sample["images"]],
        )
        for sample in samples
    ]
    return hashlib.blake2b(json.dumps(plain).encode(), digest_size=16).hexdigest()

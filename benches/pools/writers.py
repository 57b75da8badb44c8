"""LLaVA records written in every format, as its users have it; images as paths or as bytes."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from datasets import Dataset, Features, Image, List, Value, disable_progress_bars

Record = dict[str, Any]
SHARDS = 3
"""Files of a pool of several files."""

disable_progress_bars()

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
TEXT = pa.string()
MESSAGES = pa.list_(pa.struct([pa.field("role", TEXT), pa.field("content", TEXT)]))
CONVERSATIONS = pa.list_(pa.struct([pa.field("from", TEXT), pa.field("value", TEXT)]))
IMAGES = pa.list_(pa.struct([pa.field("bytes", pa.binary()), pa.field("path", TEXT)]))


def paths(record: Record) -> list[str]:
    """Return the images of a record."""
    image = record.get("image", [])
    return [image] if isinstance(image, str) else image


def messages(record: Record) -> list[dict[str, str]]:
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]


def parts(text: str) -> list[dict[str, str]]:
    """Return a text with image marks as OpenAI's content parts."""
    pieces = [piece for piece in re.split(r"\s*(<image>)\s*", text) if piece]
    return [{"type": "image"} if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces]


def as_lines(records: list[Record]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def llava_json(records: list[Record], images: Path, folder: Path) -> str:
    return written(folder / "pool.json", json.dumps(records, indent=2).encode())


def llava_lines(records: list[Record], images: Path, folder: Path) -> str:
    return written(folder / "pool.jsonl", as_lines(records))


def llava_gzip(records: list[Record], images: Path, folder: Path) -> str:
    return written(folder / "pool.jsonl.gz", gzip.compress(as_lines(records), mtime=0))


def llava_zstd(records: list[Record], images: Path, folder: Path) -> str:
    return written(folder / "pool.jsonl.zst", zstandard.compress(as_lines(records)))


def sharegpt(records: list[Record], images: Path, folder: Path) -> str:
    """Write `conversations` and `images`, as LLaMA-Factory reads them."""
    kept = ("id", "source", "conversations")
    pool = [{name: record[name] for name in kept} | {"images": paths(record)} for record in records]
    return written(folder / "pool.json", json.dumps(pool, ensure_ascii=False).encode())


def messages_parts(records: list[Record], images: Path, folder: Path) -> str:
    """Write messages with content parts, as TRL reads them."""
    pool = [
        row(record)
        | {"messages": [turn | {"content": parts(turn["content"])} for turn in messages(record)]}
        | {"images": paths(record)}
        for record in records
    ]
    return written(folder / "pool.jsonl", as_lines(pool))


def messages_text(records: list[Record], images: Path, folder: Path) -> str:
    """Write messages with marks in their texts, as ms-swift reads them."""
    pool = [row(record) | {"messages": messages(record), "images": paths(record)} for record in records]
    return written(folder / "pool.jsonl", as_lines(pool))


def parquet_paths(records: list[Record], images: Path, folder: Path) -> str:
    """Write `conversations`, with the images' paths, as one file."""
    schema = pa.schema(
        [("id", TEXT), ("source", TEXT), ("image", pa.list_(TEXT)), ("conversations", CONVERSATIONS)]
    )
    pool = [record | {"image": paths(record)} for record in records]
    pq.write_table(pa.Table.from_pylist(pool, schema), folder / "pool.parquet", row_group_size=1000)
    return str(folder / "pool.parquet")


def parquet_bytes(records: list[Record], images: Path, folder: Path) -> str:
    """Write `messages`, with the images themselves, as several files."""
    for number, table in enumerate(tables(records, images)):
        pq.write_table(table, folder / f"pool-{number:05d}.parquet", row_group_size=1000)
    return str(folder / "*.parquet")


def datasets_folder(records: list[Record], images: Path, folder: Path) -> str:
    """Write what `Dataset.save_to_disk` writes: Arrow shards and their description."""
    turn = {"role": Value("string"), "content": Value("string")}
    features = Features(
        {"id": Value("string"), "source": Value("string"), "messages": List(turn), "images": List(Image())}
    )
    table = pa.concat_tables(tables(records, images))
    dataset = Dataset(table.replace_schema_metadata(None)).cast(features)
    dataset.save_to_disk(folder / "pool", num_shards=SHARDS)
    return str(folder / "pool")


def arrow_file(records: list[Record], images: Path, folder: Path) -> str:
    with pa.ipc.new_file(folder / "pool.arrow", schema()) as writer:
        for table in tables(records, images):
            writer.write_table(table, max_chunksize=1000)
    return str(folder / "pool.arrow")


def webdataset(records: list[Record], images: Path, folder: Path) -> str:
    """Write shards of a JSON member and the images of each sample."""
    for number, shard in enumerate(shards(records)):
        with tarfile.open(folder / f"pool-{number:05d}.tar", "w") as file:
            for record in shard:
                pool = {name: value for name, value in record.items() if name != "image"}
                add(file, f"{record['id']}.json", json.dumps(pool).encode())
                for place, path in enumerate(paths(record)):
                    ending = f"{place}.png" if len(paths(record)) > 1 else "png"
                    add(file, f"{record['id']}.{ending}", (images / path).read_bytes())
    return str(folder / "*.tar")


def add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def row(record: Record) -> Record:
    return {"id": record["id"], "source": record["source"]}


def shards(records: list[Record]) -> Iterator[list[Record]]:
    size = -(-len(records) // SHARDS)
    for first in range(0, len(records), size):
        yield records[first : first + size]


def schema() -> pa.Schema:
    return pa.schema([("id", TEXT), ("source", TEXT), ("messages", MESSAGES), ("images", IMAGES)])


def tables(records: list[Record], images: Path) -> Iterator[pa.Table]:
    """Yield the shards as tables with the images themselves."""
    for shard in shards(records):
        pool = [
            row(record)
            | {
                "messages": messages(record),
                "images": [{"bytes": (images / path).read_bytes(), "path": path} for path in paths(record)],
            }
            for record in shard
        ]
        yield pa.Table.from_pylist(pool, schema())


FORMATS: dict[str, Callable[[list[Record], Path, Path], str]] = {
    "LLaVA JSON": llava_json,
    "LLaVA lines": llava_lines,
    "LLaVA lines, gzip": llava_gzip,
    "LLaVA lines, zstd": llava_zstd,
    "ShareGPT": sharegpt,
    "messages, parts": messages_parts,
    "messages, texts": messages_text,
    "Parquet, paths": parquet_paths,
    "Parquet, bytes": parquet_bytes,
    "datasets folder": datasets_folder,
    "Arrow": arrow_file,
    "WebDataset": webdataset,
}
"""Name, and what writes it: records, images folder and a folder; it returns what ingest is given."""

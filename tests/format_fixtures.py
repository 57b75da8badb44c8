"""One small pool in many formats."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("messages", pa.list_(TURN)),
        pa.field("images", pa.list_(IMAGE)),
        pa.field("extra", pa.map_(pa.string(), pa.float64())),
        pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
    ],
    metadata={"owner": "someone"},
)


def picture(number: int) -> bytes:
    """Encode a picture that is unlike those of other numbers."""
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number % 5, 6), (number * 7 % 256, number % 256, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def record(number: int) -> dict[str, Any]:
    """Return a sample with no image, one or two."""
    images = [picture(number * 2 + place) for place in range(number % 3)]
    return {
        "id": number,
        "messages": [
            {"role": "user", "content": "<image>" * len(images) + f"Was ist das? {'é' * (number % 30)}"},
            {"role": "assistant", "content": f"Nummer {number}."},
        ],
        "images": [{"bytes": image, "path": f"a/{number}.png"} for image in images],
        "extra": [("weight", number / 7)],
        "kind": "odd" if number % 2 else "even",
    }


def table(numbers: Sequence[int], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist([record(number) for number in numbers], schema)


def write_stream(path: Path, content: pa.Table, rows: int = 7) -> Path:
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


def write_file(path: Path, content: pa.Table, rows: int = 7, compression: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(path), content.schema, options=options) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


def write_parquet(path: Path, content: pa.Table, rows: int = 7, compression: str = "zstd") -> Path:
    pq.write_table(content, path, compression=compression, row_group_size=rows)
    return path


def write_datasets(folder: Path, content: pa.Table, shards: int = 2) -> Path:
    """Write what `datasets.Dataset.save_to_disk` writes, with its own package."""
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "messages": datasets.List(
                {"role": datasets.Value("string"), "content": datasets.Value("string")}
            ),
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = content.select(["id", "messages", "images"]).to_pylist()
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(str(folder), num_shards=shards)
    return folder


def members(number: int) -> dict[str, bytes]:
    """Return the members of a sample of a WebDataset shard."""
    sample = record(number)
    images = [image["bytes"] for image in sample["images"]]
    text = {"id": f"w{number}", "conversations": _llava(sample["messages"]), "more": [1, {"x": "y"}]}
    named = {f"{place}.png" if place else "png": image for place, image in enumerate(images)}
    return {"json": json.dumps(text).encode(), **named, "cls": str(number).encode()}


def _llava(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    roles = {"user": "human", "assistant": "gpt"}
    return [{"from": roles[message["role"]], "value": message["content"]} for message in messages]


def write_tar(path: Path, numbers: Sequence[int], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for number in numbers:
            for ending, content in members(number).items():
                add(tar, f"train/{number:05d}.{ending}", content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))

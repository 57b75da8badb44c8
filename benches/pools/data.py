"""The inputs: one pool of records in several forms, and its images.

Each is made once into a work folder, a block of records at a time, and taken from there afterwards.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from PIL import Image

from checks import Digest
from records import records

BLOCK = 8_192
PICTURES = 64
LLAVA_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("image", pa.string()),
        pa.field(
            "conversations",
            pa.list_(pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])),
        ),
    ]
)


def prepare(form: str, count: int, seed: int, work: Path) -> Path:
    """Return the pool in one of `FORMS`; make it, and the JSON lines that all come from, if need be."""
    stem = f"llava-{count}-{seed}"
    lines = work / f"{stem}.jsonl"
    if not lines.exists():
        whole(lines, lambda part: write_lines(part, count, seed))
    path = work / f"{stem}.{form}"
    if not path.exists():
        whole(path, lambda part: FORMS[form](lines, part))
    return path


def expected(count: int, seed: int, work: Path) -> str:
    """Return the digest of the records, taken as they were made."""
    return digest_file(work / f"llava-{count}-{seed}.jsonl").read_text()


def digest_file(lines: Path) -> Path:
    return lines.with_suffix(".digest")


def whole(path: Path, make: Callable[[Path], None]) -> None:
    """Write a file under another name first, so that it is there only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    make(part)
    part.replace(path)


def write_lines(path: Path, count: int, seed: int) -> None:
    """Write a record a line: every other one in ASCII with escapes, as by `json.dump`, the rest in UTF-8."""
    digest = Digest()
    with path.open("wb") as file:
        numbered = enumerate(records(count, seed))
        while block := list(itertools.islice(numbered, BLOCK)):
            lines = [json.dumps(record, ensure_ascii=number % 2 == 0) for number, record in block]
            file.write(("\n".join(lines) + "\n").encode())
            digest.add(as_table([record for _, record in block]))
    digest_file(path.with_suffix("")).write_text(digest.text())


def write_array(lines: Path, path: Path) -> None:
    """Write one JSON array, on one line as `json.dump` does, of the very bytes of the lines."""
    with lines.open("rb") as source, path.open("wb") as file:
        separator = b"["
        for line in source:
            file.write(separator + line.rstrip(b"\n"))
            separator = b", "
        file.write(b"]")


def write_gzip(lines: Path, path: Path) -> None:
    with lines.open("rb") as source, gzip.open(path, "wb", compresslevel=6) as file:
        shutil.copyfileobj(source, file, 1 << 20)


def write_zstd(lines: Path, path: Path) -> None:
    with lines.open("rb") as source, path.open("wb") as file:
        zstandard.ZstdCompressor(level=3).copy_stream(source, file)


def write_parquet(lines: Path, path: Path) -> None:
    with lines.open("rb") as source, pq.ParquetWriter(path, LLAVA_SCHEMA) as writer:
        while block := list(itertools.islice(source, BLOCK)):
            writer.write_table(as_table([orjson.loads(line) for line in block]))


def as_table(block: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(block, LLAVA_SCHEMA)


FORMS: dict[str, Callable[[Path, Path], None]] = {
    "json": write_array,
    "jsonl": shutil.copyfile,
    "jsonl.gz": write_gzip,
    "jsonl.zst": write_zstd,
    "parquet": write_parquet,
}


def prepare_images(lines: Path, work: Path) -> Path:
    """Make every image that the records name: hard links to a few pictures, so that they need no room."""
    folder = work / f"{lines.stem}-images"
    done = folder / "done"
    if done.exists():
        return folder
    pictures = [make_picture(work / "pictures" / f"{number}.jpg", number) for number in range(PICTURES)]
    name = re.compile(rb'"image": "([^"]+)"')
    with lines.open("rb") as source:
        for number, line in enumerate(source):
            if not (found := name.search(line)):
                continue
            image = folder / found[1].decode()
            if not image.exists():
                image.parent.mkdir(parents=True, exist_ok=True)
                image.hardlink_to(pictures[number % PICTURES])
    done.touch()
    return folder


def make_picture(path: Path, number: int) -> Path:
    """Write a JPEG of coloured noise, of the sizes that photographs in such pools have."""
    rng = np.random.default_rng([2, number])
    width, height = rng.integers(240, 641, size=2).tolist()
    coarse = Image.fromarray(rng.integers(0, 256, size=(24, 32, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def read_ahead(path: Path) -> None:
    """Bring a file into the page cache, so that no measurement waits for the disk."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass

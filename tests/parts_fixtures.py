"""A pool of several inputs, with images that records name, bad records, and ids that come twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from format_fixtures import picture, table, write_datasets, write_file, write_parquet, write_stream, write_tar

RANGES = [range(12), range(12, 13), range(8, 30)]
"""Numbers of the samples of each input that carries its images; some come twice."""

NAMED = ["0.png", "1.png", "2.png", "a/3.png", "0.png", "1.png", "text.png", "nothing.png"]
"""Images of the records in turn; of the last two the one is no picture, the other is not there."""


def write_named(folder: Path, ending: str, inputs: int = 3, records: int = 12) -> list[Path]:
    """Write JSON (``json``) or JSON lines (``jsonl``) and, into ``images`` beside them, what they name."""
    images = folder / "images"
    (images / "a").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMED[:4]):
        (images / name).write_bytes(picture(5 * number))
    (images / "text.png").write_text("no picture")
    paths = []
    for index in range(inputs):
        paths.append(folder / f"mix-{index}.{ending}")
        content = [record(index * (records - 3) + number) for number in range(records)]
        text = "\n".join(map(json.dumps, content)) if ending == "jsonl" else json.dumps(content, indent=1)
        paths[-1].write_text(text)
    return paths


def record(number: int) -> dict[str, Any]:
    """Return a record: one in seven has no id, one in ten no answer, two in eight no image to show."""
    shown = NAMED[number % len(NAMED)]
    turns = [
        {"from": "human", "value": f"<image>\nWas ist das? {'é' * number}"},
        {"from": "gpt", "value": "" if number % 10 == 9 else f"Nummer {number}."},
    ]
    named = {"key": f"key {number}"} if number % 7 == 6 else {"id": f"n{number}", "key": f"key {number}"}
    return {**named, "image": shown, "conversations": turns}


def in_parquet(folder: Path) -> list[Path]:
    return [write_parquet(folder / f"{index}.parquet", table(each)) for index, each in enumerate(RANGES)]


def in_arrow(folder: Path) -> list[Path]:
    write = [write_file, write_stream, write_file]
    return [write[index](folder / f"{index}.arrow", table(each)) for index, each in enumerate(RANGES)]


def in_datasets(folder: Path) -> list[Path]:
    write_datasets(folder / "set", table(range(30)), shards=3)
    return sorted((folder / "set").glob("data-*.arrow"))


def in_tars(folder: Path) -> list[Path]:
    return [write_tar(folder / f"{index}.tar", each) for index, each in enumerate(RANGES)]


INPUTS: dict[str, Callable[[Path], list[Path]]] = {
    "json": lambda folder: write_named(folder, "json"),
    "jsonl": lambda folder: write_named(folder, "jsonl"),
    "parquet": in_parquet,
    "arrow": in_arrow,
    "datasets": in_datasets,
    "tar": in_tars,
}
"""What writes the inputs of a pool, by its kind."""

"""Input that takes minutes to make or to read, and stages that may not hold it."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from cases import Outcome, Trial
from harness import Bench

CHUNK = b"a" * (1 << 20)
LENGTH = 2 << 30
MOST_MB = 500

SIDE = 2_000
PICTURE = SIDE * SIDE * 3
"""12 MB."""


def long_texts(bench: Bench) -> Iterator[Trial]:
    """Pools with one text of 2 GB among good records."""
    for name in ("pool.jsonl", "pool.json"):
        yield Trial(
            "a text of 2 GB",
            name,
            f"set aside as too-large, the rest is read, in less than {MOST_MB} MB",
            "",
            partial(_read_long_text, bench, name),
        )


def _read_long_text(bench: Bench, name: str, draw: random.Random) -> Outcome:
    shutil.rmtree(bench.work)
    bench.work.mkdir()
    pool = bench.work / name
    good = json.loads((bench.folder / "pool.json").read_text())[:4]
    before, between, after = (b"", b"\n", b"\n") if name.endswith("l") else (b"[", b",\n", b"]")
    long_start = b'{"id": "long", "conversations": [{"from": "human", "value": "'
    long_end = b'"}, {"from": "gpt", "value": "yes"}]}'
    with pool.open("wb") as file:
        file.write(before + between.join(json.dumps(record).encode() for record in good[:2]) + between)
        file.write(long_start)
        for _ in range(LENGTH // len(CHUNK)):
            file.write(CHUNK)
        file.write(long_end + between)
        file.write(between.join(json.dumps(record).encode() for record in good[2:]) + after)
    images = ["--images", str(bench.folder / "images")]
    # Not forked from a process that holds PyTorch, so that its peak is its own.
    command = [
        sys.executable,
        "-m",
        "mllm_selector",
        "ingest",
        str(pool),
        *images,
        "--run-dir",
        str(bench.run),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    outcome = Outcome()
    outcome.check(ended.returncode == 0, ended.stderr[-300:])
    if ended.returncode == 0:
        rejected = [json.loads(line) for line in (bench.run / "rejected.jsonl").read_text().splitlines()]
        reasons = [entry["reason"] for entry in rejected]
        outcome.check(reasons == ["too-large"], f"set aside: {reasons}")
        done = json.loads((bench.run / "manifest.json").read_text())["stages"]["ingest"]
        outcome.check(done["counts"]["samples"] == len(good), f"{done['counts']['samples']} samples read")
        outcome.check(done["peak_mb"] < MOST_MB, f"{done['peak_mb']:.0f} MB")
    pool.unlink()
    return outcome


def large_pictures(bench: Bench, count: int) -> Iterator[Trial]:
    """All stages that load pictures, with a quarter of the pictures' size to spare."""
    quarter = count * PICTURE // 4
    yield Trial(
        f"{count} pictures of {PICTURE / 1e6:g} MB (RLIMIT_DATA)",
        "ingest, seed, export, score",
        f"done with a quarter of that, {quarter / 1e6:g} MB, beyond what the program has before it starts",
        "",
        partial(_read_large_pictures, bench, count, quarter),
    )


def bitmap_head() -> bytes:
    """The head of a bitmap; what follows it is black."""
    file = struct.pack("<2sIII", b"BM", 54 + PICTURE, 0, 54)
    return file + struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, PICTURE, 0, 0, 0, 0)


def _read_large_pictures(bench: Bench, count: int, quarter: int, draw: random.Random) -> Outcome:
    shutil.rmtree(bench.work)
    images, pool = bench.work / "images", bench.work / "pool.jsonl"
    images.mkdir(parents=True)
    with pool.open("w") as file:
        for row in range(count):
            with (images / f"{row}.bmp").open("wb") as image:
                image.write(bitmap_head())
                image.truncate(54 + PICTURE)  # a hole, which takes no room on the disk
            turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "black"}]
            file.write(json.dumps({"id": str(row), "image": f"{row}.bmp", "conversations": turns}) + "\n")
    outcome = Outcome()
    for command in (
        ["ingest", str(pool), "--images", str(images)],
        ["seed", "--model", str(bench.folder / "model"), "--seed-size", "8"],
        ["export"],
        ["score"],
    ):
        argv = [*command, "--run-dir", str(bench.run)]
        ended = bench.server.start(argv=argv, memory=quarter).wait()
        outcome.check(ended.code == 0, f"{command[0]}: {ended.last}")
    outcome.check(f"{count} samples scored, 0 set aside" in ended.log, ended.last)
    return outcome

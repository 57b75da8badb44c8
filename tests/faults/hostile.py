"""Input that takes minutes to make or to read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial

from cases import Outcome, Trial
from harness import Bench

CHUNK = b"a" * (1 << 20)
LENGTH = 2 << 30
MOST_MB = 500


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
    ended = bench.server.start(argv=["ingest", str(pool), *images, "--run-dir", str(bench.run)]).wait()
    outcome = Outcome()
    outcome.check(ended.code == 0, ended.last)
    if ended.code == 0:
        rejected = [json.loads(line) for line in (bench.run / "rejected.jsonl").read_text().splitlines()]
        reasons = [entry["reason"] for entry in rejected]
        outcome.check(reasons == ["too-large"], f"set aside: {reasons}")
        done = json.loads((bench.run / "manifest.json").read_text())["stages"]["ingest"]
        outcome.check(done["counts"]["samples"] == len(good), f"{done['counts']['samples']} samples read")
        outcome.check(done["peak_mb"] < MOST_MB, f"{done['peak_mb']:.0f} MB")
    pool.unlink()
    return outcome

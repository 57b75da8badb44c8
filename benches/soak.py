"""A large pool through the whole pipeline: whether memory stays flat and the speed stays what it was.

Usage: ``python benches/soak.py --samples 1000000 --work DIR [--json FILE]``

Makes a pool of tiny images (4,096 of them, shared) and a tiny model, runs ``mllm-selector select`` on it, and
takes the process's memory, its processor time and the samples scored once a second. Prints time and
peak memory of each stage, and of scoring, tenth by tenth, the speed and the memory. Checks that the run
completes, the subset has its size, and the last tenth's speed is at least 0.9 of the first's; the exit code
says so. That speed is by processor time, so that whatever else runs on the machine matters little. The tenths
are of what lies between the first shard and the last: a shard is encoded while the one before is scored, so
two are encoded by the time that the first is done, and none is while the last is scored.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_selector import Selection
from mllm_selector.artifacts import atomic_folder, atomic_write
from mllm_selector.config import ScoreOptions
from mllm_selector.demo.model import ModelSize, make_model
from mllm_selector.demo.scenes import draw_scene

IMAGES = 4_096
SHARD = ScoreOptions().shard_size
TINY = ModelSize(hidden=32, vision_layers=2, text_layers=2, image_side=32, patch_side=8, vocabulary=400)


def main() -> int:
    """Make, run, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="keeps every number")
    given = parser.parse_args()
    pool = make_pool(given.work, given.samples)
    run = given.work / f"run-{given.samples}"
    command = [
        *(sys.executable, "-m", "mllm_selector", "select", str(pool), "--images", str(given.work / "images")),
        *("--seed-model", str(given.work / "model"), "--budget", "10%", "--run-dir", str(run), "--json"),
    ]
    started = time.monotonic()
    seen = watch(command)
    seconds = time.monotonic() - started
    selection = Selection.load(run)
    summary = selection.summary()
    print(f"{given.samples:,} samples in {seconds:,.0f} s on {platform.processor() or platform.machine()}")
    for stage in summary["stages"]:
        print(f"{stage['stage']:<7} {stage['seconds']:9,.1f} s {stage['peak_mb']:8,.0f} MB")
    parts = tenths(seen)
    for number, (by_clock, rate, memory, mapped) in enumerate(parts, start=1):
        print(
            f"tenth {number:2} of scoring: {rate:8,.1f} samples a processor second, "
            f"{by_clock:8,.1f} by the clock, {memory:7,.0f} MB of its own, {mapped:,.0f} MB of mapped files"
        )
    if given.json is not None:
        given.json.write_text(json.dumps({"seconds": seconds, "stages": summary["stages"], "tenths": parts}))
    exact = len(selection) == given.samples // 10
    steady = parts[-1][1] >= 0.9 * parts[0][1]
    print(f"subset of the right size: {exact}; speed at the end at least 0.9 of the beginning: {steady}")
    return 0 if exact and steady else 1


def make_pool(work: Path, samples: int) -> Path:
    """Write model, images and a pool of JSON lines; what is there is kept."""
    random = np.random.Generator(np.random.Philox(0))
    scenes = [draw_scene(random) for _ in range(IMAGES)]
    turns = [scene.turns(random) for scene in scenes]
    if not (work / "model").exists():
        with atomic_folder(work / "model") as folder:
            make_model(folder, (text for every in turns[:200] for turn in every for text in turn), size=TINY)
    if not (work / "images").exists():
        with atomic_folder(work / "images") as folder:
            for number, scene in enumerate(scenes):
                scene.picture().resize((100, 25)).save(folder / f"{number}.png")
    pool = work / f"pool-{samples}.jsonl"
    if not pool.exists():
        with atomic_write(pool) as file:
            for row in range(samples):
                number = row % IMAGES
                question, answer = turns[number][row // IMAGES % len(turns[number])]
                conversation = [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ]
                record = {"id": str(row), "image": f"{number}.png", "conversations": conversation}
                file.write(json.dumps(record).encode() + b"\n")
    return pool


@dataclass(frozen=True)
class Seen:
    """A run at a moment: seconds by clock and processor, samples done, MB of its own and of mapped files."""

    clock: float
    processor: float
    done: int
    memory: float
    mapped: float


def watch(command: list[str]) -> list[Seen]:
    """Run a command; return what it was like whenever it told of progress in scoring."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    seen: list[Seen] = []
    lines = process.stderr
    reader = threading.Thread(target=lambda: _read(lines, Path(f"/proc/{process.pid}"), seen))
    reader.start()
    code = process.wait()
    reader.join()
    if code:
        sys.exit(f"the run failed with exit code {code}")
    return seen


def _read(lines: Iterable[str], process: Path, seen: list[Seen]) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    for line in lines:
        event = json.loads(line)
        if event.get("stage") != "score" or event["event"] not in ("start", "progress"):
            if event["event"] in ("note", "finish"):
                print(event.get("stage"), event["text"], file=sys.stderr)
            continue
        status = (process / "status").read_text()
        own, mapped = (int(status.partition(name)[2].split()[0]) / 1000 for name in ("RssAnon:", "RssFile:"))
        user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        processor = (int(user) + int(system)) / tick
        seen.append(Seen(time.monotonic(), processor, event.get("done", 0), own, mapped))


def tenths(seen: list[Seen]) -> list[tuple[float, float, float, float]]:
    """Return, of each tenth between the outer shards, samples a second by clock and processor, and memory."""
    done = np.array([each.done for each in seen], dtype=float)
    memory = np.array([(each.memory, each.mapped) for each in seen])
    edges = np.linspace(SHARD, done[-1] - SHARD, 11)
    rates = [
        np.diff(edges) / np.maximum(np.diff(np.interp(edges, done, seconds)), 1e-9)
        for seconds in ([each.clock for each in seen], [each.processor for each in seen])
    ]
    inside = [(done >= low) & (done <= high) for low, high in itertools.pairwise(edges)]
    return [
        (float(by_clock), float(by_processor), *memory[which].max(axis=0, initial=0.0).tolist())
        for by_clock, by_processor, which in zip(*rates, inside, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())

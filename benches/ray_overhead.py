"""What Ray costs: scoring, and reading a pool, on a Ray cluster of one node against doing it in this process.

    python benches/ray_overhead.py [--only ingest|score]

Makes a LLaVA with random weights and a vocabulary of 32,000, scores the same NLVR samples with one scorer of
one thread, with Ray and without, in turns. Time is that from the end of the first part to the end of the last
one, so that starting Ray, its workers and the engine is left out; it is told apart. The parts of all runs
must be the same bytes.

Then a pool of several files of JSON lines is read whose images are decoded, by one thread, on a cluster that
has read before; pool and rejected records must be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from PIL import Image

from mllm_selector.config import IngestOptions, ScoreOptions
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import ingest, score
from scoring_setup import VOCABULARY, machine, make_llava, make_pool, model_size, prepare


class Steps(SilentProgress):
    """When how many samples were done."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def update(self, done: int, **fields: float | str) -> None:
        """Note the moment."""
        self.seen.append((time.monotonic(), done))


def score_once(run_dir: Path, samples: int, shard: int, **options: Any) -> tuple[float, float, list[bytes]]:
    """Return seconds up to the first part, seconds from there to the end, and the parts."""
    steps = Steps()
    began = time.monotonic()
    with RunDirectory(run_dir) as run:
        shutil.rmtree(run.scores, ignore_errors=True)
        run.stages["score"] = StageRecord("running", "bench")
        score.run(run, ScoreOptions(shard_size=shard, **options), steps)
        parts = [path.read_bytes() for path in sorted(run.scores.glob("part-*.arrow"))]
    first = next(at for at, done in steps.seen if done >= shard)
    last = next(at for at, done in steps.seen if done >= samples)
    return first - began, last - first, parts


def compare_scoring(folder: Path, given: argparse.Namespace) -> None:
    """Score with Ray and without, in turns."""
    times: dict[str, list[tuple[float, float]]] = {"no Ray": [], "Ray": []}
    kept: list[bytes] = []
    pool, images = make_pool(folder, given.nlvr, given.samples)
    parameters = make_llava(folder / "model", pool, model_size(256, 4), VOCABULARY)
    prepare(folder / "run", pool, images, folder / "model")
    common = {"device": "cpu", "threads": 1, "token_budget": 2048, "image_budget": 1024, "workers": 1}
    for _ in range(given.repeats):
        for name, options in {"no Ray": {}, "Ray": {"ray": "local", "ray_scorers": 1}}.items():
            *seconds, parts = score_once(folder / "run", given.samples, given.shard_size, **common, **options)
            kept = kept or parts
            if parts != kept:
                raise SystemExit("the parts are not the same bytes")
            times[name].append((seconds[0], seconds[1]))
    print(
        f"{parameters / 1e6:.1f} M parameters, {given.samples} samples in parts of {given.shard_size}, one "
        f"scorer of one thread, medians of {given.repeats} runs; all parts are the same bytes\n"
    )
    without = statistics.median(rest for _, rest in times["no Ray"])
    print("| | seconds to the end of the first part | seconds from there on, median (all) | / no Ray |")
    print("|---|---|---|---|")
    for name, runs in times.items():
        rest = statistics.median(each for _, each in runs)
        first = statistics.median(each for each, _ in runs)
        every = ", ".join(f"{each:.2f}" for _, each in runs)
        print(f"| {name} | {first:.1f} | {rest:.2f} ({every}) | {rest / without:.3f} |")


def make_inputs(folder: Path, inputs: int, records: int) -> list[Path]:
    """Write files of JSON lines, each record with a picture of its own."""
    (folder / "pictures").mkdir(parents=True)
    random = np.random.Generator(np.random.Philox(0))
    paths = []
    for index in range(inputs):
        lines = []
        for number in range(records):
            name = f"{index}-{number}.jpg"
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((640, 480)).save(folder / "pictures" / name)
            question, answer = "<image>" + "What is it? " * 20, "It. " * 20
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            lines.append(json.dumps({"id": name, "image": name, "conversations": turns}))
        paths.append(folder / f"{index}.jsonl")
        paths[-1].write_text("\n".join(lines))
    return paths


def ingest_once(folder: Path, inputs: list[Path], address: str | None) -> tuple[float, list[bytes]]:
    """Return the seconds of reading a pool, and what is written."""
    options = IngestOptions(
        pool=inputs, images=folder / "pictures", check_images="decode", threads=1, ray=address
    )
    with RunDirectory(folder / "run") as run:
        run.stages["ingest"] = StageRecord("running", "bench")
        began = time.monotonic()
        ingest.run(run, options, SilentProgress())
        seconds = time.monotonic() - began
        found = [path.read_bytes() for path in (run.pool, run.rejected)]
    shutil.rmtree(folder / "run")
    return seconds, found


def compare_reading(folder: Path, given: argparse.Namespace) -> None:
    """Read a pool with Ray and without, in turns."""
    import ray

    inputs = make_inputs(folder, given.inputs, given.records)
    began = time.monotonic()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    ingest_once(folder, make_inputs(folder / "few", 2, 1), "local")
    started = time.monotonic() - began
    times: dict[str, list[float]] = {"no Ray": [], "Ray, one node": []}
    kept: list[bytes] = []
    for _ in range(given.repeats):
        for name, address in {"no Ray": None, "Ray, one node": "local"}.items():
            seconds, found = ingest_once(folder, inputs, address)
            kept = kept or found
            if found != kept:
                raise SystemExit("pool and rejected records are not the same bytes")
            times[name].append(seconds)
    ray.shutdown()
    print(
        f"\n{given.inputs} inputs of {given.records} records, each with a JPEG of 640 x 480 that is decoded, "
        f"one thread, {given.repeats} runs each; all files are the same bytes. Starting Ray and a worker: "
        f"{started:.1f} s\n"
    )
    without = statistics.median(times["no Ray"])
    print("| reading | seconds, median (all) | / no Ray |")
    print("|---|---|---|")
    for name, every in times.items():
        median = statistics.median(every)
        shown = ", ".join(f"{each:.2f}" for each in every)
        print(f"| {name} | {median:.2f} ({shown}) | {median / without:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--shard-size", type=int, default=30)
    parser.add_argument("--inputs", type=int, default=8)
    parser.add_argument("--records", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("ingest", "score"))
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        if given.only != "ingest":
            compare_scoring(Path(temporary), given)
        if given.only != "score":
            compare_reading(Path(temporary) / "reading", given)


if __name__ == "__main__":
    main()

"""What Ray costs: scoring on a Ray cluster of one node against scoring in this process.

    python benches/ray_overhead.py

Makes a LLaVA with random weights and a vocabulary of 32,000, scores the same NLVR samples with one scorer of
one thread, with Ray and without, in turns. Time is that from the end of the first part to the end of the last
one, so that starting Ray, its workers and the engine is left out; it is told apart. The parts of all runs
must be the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from mllm_selector.config import ScoreOptions
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import score
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--shard-size", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {"no Ray": [], "Ray": []}
    kept: list[bytes] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pool, images = make_pool(folder, given.nlvr, given.samples)
        parameters = make_llava(folder / "model", pool, model_size(256, 4), VOCABULARY)
        prepare(folder / "run", pool, images, folder / "model")
        common = {"device": "cpu", "threads": 1, "token_budget": 2048, "image_budget": 1024, "workers": 1}
        for _ in range(given.repeats):
            for name, options in {"no Ray": {}, "Ray": {"ray": "local", "ray_scorers": 1}}.items():
                *seconds, parts = score_once(
                    folder / "run", given.samples, given.shard_size, **common, **options
                )
                kept = kept or parts
                if parts != kept:
                    raise SystemExit("the parts are not the same bytes")
                times[name].append((seconds[0], seconds[1]))
    print(machine())
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


if __name__ == "__main__":
    main()

"""What `mllm-selector plan` said against what the run then took.

    python benches/plan_check.py --run-dir demo-run --work DIR
    python benches/plan_check.py --soak DIR
    python benches/plan_check.py --made N [--columns D] [--budget B] [--threads T] --work DIR

The first takes pool, images and model of a finished demo run, plans a run in a new folder, once from probes
and once from the demo's records, and runs `select` there. The second takes what `soak.py --samples N --work
DIR` has left for several N: each of these runs is planned from probes, and from the records of the smallest.
Both print seconds and memory of each stage beside the plans. The third compares what plan's probes say of
choosing from N samples, and of the figures of its report, with just that, on embeddings of
`selection/large_pick.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mllm_selector
from mllm_selector.config import Amount, PickOptions
from mllm_selector.planning.made_up import probe_pick, probe_report
from mllm_selector.reporting.numbers import DUPLICATE_COSINE
from mllm_selector.reporting.overview import Embedded, products

Plan = Mapping[str, Mapping[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run-dir", type=Path, help="a finished demo run")
    what.add_argument("--soak", type=Path, help="the folder of several runs of soak.py")
    what.add_argument("--made", type=int, help="a number of samples")
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where the demo's pool is selected from, or embeddings are")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.soak is not None:
        print("\n".join(of_soak(given.soak)))
        return 0
    if given.work is None:
        parser.error("--run-dir and --made need --work")
    if given.made is not None:
        print("\n".join(of_made(given.made, given.columns, given.budget, given.threads, given.work)))
        return 0
    demo, new = given.run_dir, given.work / "run"
    arguments = [str(demo / "demo" / "pool.json"), "--images", str(demo / "demo" / "nlvr")]
    arguments += ["--model", str(demo / "model"), "--budget", "20%", "--device", given.device]
    probed = planned(*arguments, "--run-dir", str(new))
    recorded = planned(*arguments, "--run-dir", str(new), "--rates", str(demo))
    command("select", *arguments, "--run-dir", str(new), "--quiet")
    print("\n".join(table(new, probed, recorded)))
    return 0


def of_soak(work: Path) -> Iterator[str]:
    """Yield a table for each run of a soak."""
    sizes = sorted(int(folder.name.removeprefix("run-")) for folder in work.glob("run-*"))
    smallest = work / f"run-{sizes[0]}"
    for size in sizes:
        pool = work / f"pool-{size}.jsonl"
        arguments = [str(pool), "--images", str(work / "images"), "--seed-model", str(work / "model")]
        arguments += ["--budget", "10%", "--run-dir", str(work / "planned")]
        probed = planned(*arguments)
        recorded = planned(*arguments, "--rates", str(smallest))
        yield f"{size:,} samples; records of {sizes[0]:,}"
        yield ""
        yield from table(work / f"run-{size}", probed, recorded)
        yield ""


def of_made(rows: int, columns: int, budget: str, threads: int, work: Path) -> Iterator[str]:
    """Yield a table of choosing from made-up samples, and of the figures of their report."""
    sys.path.insert(0, str(Path(__file__).parent / "selection"))
    import large_pick

    paths = large_pick.written(argparse.Namespace(rows=rows, columns=columns, parts=16, work=work))
    embeddings, necessity = large_pick.opened(paths)
    chosen = Amount.parse(budget).of(rows)
    pick = probe_pick(PickOptions(budget=Amount.parse(budget), threads=threads), rows, chosen, columns, 1)
    report = probe_report(rows, chosen, columns)
    planned = (pick.seconds_for(rows), report.seconds_for(products(rows, chosen, columns)))
    started = time.monotonic()
    order = mllm_selector.pick(necessity, embeddings, budget=budget, threads=threads)
    took = [time.monotonic() - started]
    parts = [chunk.flatten().to_numpy().reshape(-1, columns) for part in embeddings for chunk in part.chunks]
    embedded = Embedded(parts, np.ones(rows, np.bool_), order)
    started = time.monotonic()
    embedded.map({})
    embedded.coverage()
    embedded.duplicates(DUPLICATE_COSINE, 6)
    took.append(time.monotonic() - started)
    yield f"{rows:,} x {columns}, {budget}, {threads} threads"
    yield ""
    yield "| what | took, s | by probes | / took |"
    yield "|---|---|---|---|"
    for name, real, said in zip(("choosing", "figures of the report"), took, planned, strict=True):
        yield f"| {name} | {real:.1f} | {said:.1f} | {said / real:.2f} |"


def table(run: Path, probed: Plan, recorded: Plan) -> Iterator[str]:
    """Yield lines that compare a finished run with two plans of it."""
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    yield "| stage | took, s | by probes | / took | by records | / took | peak, MB | by probes | by records |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, record in stages.items():
        cells = [f"{record['seconds']:.1f}"]
        for plan in (probed, recorded):
            seconds = plan[name]["seconds"]
            cells += ["not known", ""] if seconds is None else [f"{seconds:.1f}", ratio(seconds, record)]
        cells.append(f"{record['peak_mb']:,.0f}")
        cells += [memory(plan[name]) for plan in (probed, recorded)]
        yield f"| {name} | {' | '.join(cells)} |"


def ratio(seconds: float, record: Mapping[str, Any]) -> str:
    return f"{seconds / record['seconds']:.2f}" if record["seconds"] else ""


def memory(stage: Mapping[str, Any]) -> str:
    if stage["memory_mb"] is None:
        return "not known"
    mapped = f" + {stage['mapped_mb']:,.0f} mapped" if stage["mapped_mb"] >= 1 else ""
    return f"{stage['memory_mb']:,.0f}{mapped}"


def planned(*arguments: str) -> Plan:
    found = json.loads(command("plan", *arguments, "--json", "--quiet"))
    return {stage["stage"]: stage for stage in found["stages"]}


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mllm_selector", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

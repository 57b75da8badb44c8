"""Pools against what users read and write them with today: each peer and ours in turn, on the same files.

    python benches/pools/run.py [TASK ...] [--records N] [--rows N] [--threads N] [--looks LOOK ...] ...

Every measurement is a fresh process, pinned to as many cores as it may have threads, with its input in the
page cache. "seconds" is one call after a small one, or the whole process of a command; "CPU seconds" is what
all threads spent in that time; "process seconds" is the whole process in both. "seconds / ours" is how many
times the seconds of our first row a row takes. "peak RSS MB" counts the pages of mapped files, "anonymous MB"
does not. Results are checked; the exit status is 1 if one is wrong or failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from measure import Failure, measure
from tasks import SMALL, TASKS

DEFAULTS = ["ingest", "lines", "parquet", "open", "writeback"]
COLUMNS = [
    "task",
    "records",
    "input MB",
    "threads",
    "who",
    "open ms",
    "seconds",
    "CPU seconds",
    "process seconds",
    "seconds / ours",
    "peak RSS MB",
    "anonymous MB",
    "check",
]
PACKAGES = ["mllm-selector", "pyarrow", "orjson", "datasets", "zstandard"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default {', '.join(DEFAULTS)}")
    add("--records", type=int, default=66_500, help="of the LLaVA pool; 665,000 are about 1 GB")
    add("--seed", type=int, default=0, help="of the LLaVA pool")
    add("--rows", type=int, default=1_000_000, help="of the pool file for `open`; 10,000,000 are about 3 GB")
    add("--reads", type=int, default=10_000, help="random rows that `open` reads")
    add(
        "--looks",
        nargs="+",
        default=["none"],
        choices=["none", "header", "decode"],
        help="how ours look at images, each in turn (peers never do): --check-images",
    )
    add("--threads", type=int, default=min(2, cores))
    add("--repeats", type=int, default=1, help="runs of each contender; the median counts")
    add("--timeout", type=float, default=3600, help="seconds after which a contender is given up")
    add("--who", nargs="+", default=[""], help="only contenders whose name has one of these words")
    add("--work", type=Path, default=Path("build/bench-pools"), help="folder for the files")
    add("--json", type=Path, metavar="FILE", help="write all numbers to this file as well")
    options = parser.parse_args()
    options.tasks = options.tasks or DEFAULTS
    options.work = options.work.absolute()
    for task in options.tasks:
        if task not in TASKS:
            parser.error(f"{task} is none of {', '.join(TASKS)}")
    if min(options.records, options.rows) < SMALL:
        parser.error(f"--records and --rows: at least {SMALL}, which the call before the clock starts takes")
    if options.threads > cores:
        parser.error(f"--threads {options.threads}: this process may use {cores} cores")
    return options


def main() -> int:
    options = parse()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results: list[dict[str, Any]] = []
    for task in options.tasks:
        print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
        for line, record in compare(task, options):
            print(line, flush=True)
            results.append(record)
            if options.json:
                options.json.write_text(json.dumps({"machine": about, "results": results}, indent=1))
    return int(any(record["check"].startswith(("WRONG", "failed")) for record in results))


def machine() -> dict[str, str]:
    """Say what the figures are measured on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    about = {
        "cores": str(len(os.sched_getaffinity(0))),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "python": platform.python_version(),
    }
    return about | {name: metadata.version(name) for name in PACKAGES}


def compare(task: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure and check the contenders of a task; give a row of the table and its numbers for each."""
    ready = TASKS[task](options, options.threads)
    outcomes: dict[str, dict[str, Any]] = {}
    for contender in ready.contenders:
        if not any(word in contender.name for word in options.who):
            continue
        sys.stderr.write(f"{task}: {contender.name} ...\n")
        try:
            done = measure(
                contender, ready.reads, options.threads, repeats=options.repeats, timeout=options.timeout
            )
            outcomes[contender.name] = vars(done) | {"check": ready.check(contender, done)}
        except Failure as failure:
            outcomes[contender.name] = {"check": str(failure)}
        shutil.rmtree(contender.out, ignore_errors=True)

    ours = [
        each["seconds"] for name, each in outcomes.items() if name.startswith("ours") and "seconds" in each
    ]
    for name, outcome in outcomes.items():
        seconds = outcome.get("seconds")
        record = {
            "task": task,
            "records": ready.records,
            "input_mb": ready.reads[0].stat().st_size / 1e6,
            "threads": options.threads,
            "who": name,
            "open_ms": outcome.get("results", {}).get("open_ms"),
            "seconds": seconds,
            "cpu_seconds": outcome.get("cpu_seconds"),
            "process_seconds": outcome.get("process_seconds"),
            "ratio": seconds / ours[0] if ours and seconds else None,
            "resident_mb": outcome.get("resident_mb"),
            "anonymous_mb": outcome.get("anonymous_mb"),
            "check": outcome["check"],
        }
        yield f"| {' | '.join(map(shown, record.values()))} |", record | {"runs": outcome.get("runs", [])}


def shown(value: object) -> str:
    """Return the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


sys.exit(main())

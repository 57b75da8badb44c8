"""Selection against what users run today: each peer and ours in turn, in one run, on the same rows.

    python benches/selection/run.py [TASK ...] [--data clusters|uniform|FILE.npy] [--rows N] [--k K] ...

Every measurement is a fresh process, pinned to as many cores as it may have threads, with the rows in memory
(memory-mapped for `memory` and `growth`) and everything imported before the clock starts. Results are
checked after each task. Prints Markdown tables. "time / ours" is how many times the seconds of our first
row a row takes; "anonymous MB" is the process's peak, so with the rows unless these are mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import data
import growth
import roofline
from measure import Contender, Failure, Measurement, measure
from tasks import TASKS

COMPARISONS = ["kcenter", "kmeans", "duplicates", "skip", "facility", "pick"]
OTHERS = {"growth": growth, "roofline": roofline}
ALL = [*TASKS, *OTHERS]
HEADER = (
    "| task | data | N | d | k | threads | who | seconds | time / ours | anonymous MB | check |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
PACKAGES = [
    "mllm-selector",
    "numpy",
    "scipy",
    "scikit-learn",
    "faiss-cpu",
    "apricot-select",
    "numba",
    "torch",
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(ALL)}; default the first six")
    add("--data", default="clusters", help="clusters, uniform, or a .npy file of float16 or float32 rows")
    add("--rows", type=int, default=100_000)
    add("--columns", type=int, default=384, help="of clusters and uniform")
    add("--k", type=int, default=1_000, help="centres, clusters, or rows of facility location")
    add("--neighbours", type=int, default=50, help="of each row in the graph for facility location")
    add("--threads", type=int, nargs="+", default=sorted({1, min(2, cores)}), help="each in turn")
    add("--repeats", type=int, default=1, help="runs of each contender; the median counts")
    add("--timeout", type=float, default=3600, help="seconds after which a contender is given up")
    add("--who", nargs="+", default=[""], help="only contenders whose name has one of these words")
    add("--centres", type=int, default=200, help="centres that the NumPy k-center is timed for")
    add("--queries", type=int, default=1_000, help="query rows that the faiss range search is timed for")
    add("--iterations", type=int, default=20, help="iterations of faiss k-means")
    add("--timed-iterations", type=int, default=20, help="iterations that faiss k-means is timed for")
    add("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="N for growth")
    add("--ks", type=int, nargs="+", default=[1_000, 10_000], help="k for growth")
    add(
        "--peer-env",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="run the peers a second time with these set, such as OPENBLAS_CORETYPE=SkylakeX",
    )
    add("--work", type=Path, default=Path("build/bench-data"), help="folder for the data sets")
    add("--json", type=Path, metavar="FILE", help="write all numbers to this file as well")
    options = parser.parse_args()
    options.tasks = options.tasks or COMPARISONS
    for task in options.tasks:
        if task not in ALL:
            parser.error(f"{task} is none of {', '.join(ALL)}")
    if max(options.threads) > cores:
        parser.error(f"--threads {max(options.threads)}: this process may use {cores} cores")
    options.peer_env = dict(setting.split("=", 1) for setting in options.peer_env)
    return options


def main() -> None:
    options = parse()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    records: list[dict[str, object]] = []
    for task in options.tasks:
        print(f"\n{OTHERS[task].HEADER if task in OTHERS else HEADER}", flush=True)
        for threads in options.threads:
            lines = OTHERS[task].run(options, threads) if task in OTHERS else compare(task, options, threads)
            for line, record in lines:
                print(line, flush=True)
                records.append({"table": task, **record})
                if options.json:
                    options.json.write_text(json.dumps({"machine": about, "results": records}, indent=1))


def machine() -> dict[str, str]:
    """Say what the figures are measured on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    about = {
        "cores": str(len(os.sched_getaffinity(0))),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "python": platform.python_version(),
    }
    try:
        return about | {name: metadata.version(name) for name in PACKAGES}
    except metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; `make bench` installs what the benchmarks compare with")


def compare(task: str, options: argparse.Namespace, threads: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Measure the contenders of a task, then check them; yield a row of the table and its numbers."""
    contenders = {name: (contender, setting) for name, contender, setting in wanted(task, options, threads)}
    paths = {
        dtype: data.prepare(options.data, options.rows, options.columns, dtype, options.work)
        for dtype in dict.fromkeys(contender.dtype for contender, _ in contenders.values())
    }
    results: dict[str, Measurement | Failure] = {}
    for name, (contender, setting) in contenders.items():
        sys.stderr.write(f"{task}: {name} ...\n")
        try:
            results[name] = measure(
                contender,
                paths[contender.dtype],
                options.rows,
                threads,
                repeats=options.repeats,
                timeout=options.timeout,
                environment=setting,
            )
        except Failure as failure:
            results[name] = failure

    X = data.load(next(iter(paths.values())), options.rows, mapped=True)
    done = {name: result for name, result in results.items() if isinstance(result, Measurement)}
    ours = [result.seconds for name, result in done.items() if contenders[name][0].ours]
    base = ours[0] if ours and len(ours) < len(done) else None
    for name, result in results.items():
        record = {
            "task": task,
            "data": options.data if options.data in data.KINDS else Path(options.data).name,
            "rows": options.rows,
            "columns": X.shape[1],
            "k": options.k,
            "threads": threads,
            "who": name,
        }
        if isinstance(result, Measurement):
            contender = contenders[name][0]
            reference = done.get(contender.against or next(iter(results)))
            checked = TASKS[task].check(X, options, result.arrays, reference.arrays) if reference else ""
            outcome = {
                "seconds": result.seconds,
                "ratio": result.seconds / base if base else None,
                "anonymous_mb": result.anonymous_mb,
                "check": "; ".join(part for part in (contender.note, checked) if part),
            }
            more = {"runs": result.runs, "resident_mb": result.resident_mb}
        else:
            outcome = {"seconds": None, "ratio": None, "anonymous_mb": None, "check": str(result)}
            more = {}
        record |= outcome
        yield f"| {' | '.join(shown(value) for value in record.values())} |", record | more


def wanted(
    task: str, options: argparse.Namespace, threads: int
) -> Iterator[tuple[str, Contender, dict[str, str]]]:
    """Name, contender and environment of each measurement; peers once more with `--peer-env`."""
    for contender in TASKS[task].contenders(options, threads):
        if not any(word in contender.name for word in options.who):
            continue
        yield contender.name, contender, {}
        if options.peer_env and not contender.ours:
            setting = ", ".join(f"{name}={value}" for name, value in options.peer_env.items())
            yield f"{contender.name} ({setting})", contender, options.peer_env


def shown(value: object) -> str:
    """Return the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


main()

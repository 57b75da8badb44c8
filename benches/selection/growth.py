"""How the time of k-center and k-means grows with the rows and with k: exponents fitted in log-log."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import numpy as np

import data
from measure import Contender, Failure, measure

ITERATIONS = 10
HEADER = "| task | d | threads | grows | seconds | exponent |\n|---|---|---|---|---|---|"


def run(options: Namespace, threads: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Measure ours on the float16 file; yield a row of the table and its numbers."""
    path = data.prepare(
        options.data, max(options.rows, *options.sizes), options.columns, "float16", options.work
    )
    columns = np.load(path, mmap_mode="r").shape[1]
    for task, call, arguments in (
        ("k-center", "ours.k_center", {}),
        ("k-means, 10 iterations", "ours.kmeans", {"max_iterations": ITERATIONS, "tolerance": 0}),
    ):
        plans = {
            f"N, k = {options.k:,}": [(rows, options.k) for rows in options.sizes],
            f"k, N = {options.rows:,}": [(options.rows, k) for k in options.ks if k <= options.rows],
        }
        for grows, cases in plans.items():
            seconds = {}
            for rows, k in cases:
                contender = Contender(task, call, {**arguments, "k": k, "threads": threads}, mapped=True)
                try:
                    taken = measure(
                        contender, path, rows, threads, repeats=options.repeats, timeout=options.timeout
                    )
                except Failure as failure:
                    print(f"{task}, N = {rows}, k = {k}: {failure}", flush=True)
                    continue
                seconds[rows if grows.startswith("N") else k] = taken.seconds
            if len(seconds) < 2:
                continue
            exponent = fit(list(seconds), list(seconds.values()))
            shown = ", ".join(f"{size:,}: {value:.2f}" for size, value in seconds.items())
            yield (
                f"| {task} | {columns} | {threads} | {grows} | {shown} | {exponent:.2f} |",
                {
                    "task": task,
                    "columns": columns,
                    "threads": threads,
                    "grows": grows,
                    "seconds": {str(size): value for size, value in seconds.items()},
                    "exponent": exponent,
                },
            )


def fit(sizes: list[int], seconds: list[float]) -> float:
    """Least-squares slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])

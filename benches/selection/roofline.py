"""The machine's rates, measured, and the share of them that k-center and k-means reach."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator

import numpy as np

import data
from measure import Contender, measure

HEADER = (
    "| what | N | k | threads | GFLOP/s | GB/s | of the best float32 product |\n|---|---|---|---|---|---|---|"
)
SIDE = 4096
KMEANS_TRAINING = 32


def best(call: Callable[[], object], times: int = 7) -> float:
    """Least seconds of several calls."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def numpy_product(X):
    A, B = np.resize(X, (SIDE, X.shape[1])), np.resize(X, (X.shape[1], SIDE))
    return {"flops": 2 * A.size * SIDE, "best": best(lambda: A @ B)}


def torch_product(X):
    import torch

    A = torch.from_numpy(np.resize(X, (SIDE, X.shape[1])))
    B = torch.from_numpy(np.resize(X, (X.shape[1], SIDE)))
    return {"flops": 2 * A.numel() * SIDE, "best": best(lambda: A @ B)}


def numpy_sum(X):
    return {"bytes": X.nbytes, "best": best(X.sum)}


def numpy_vector_product(X):
    return {"bytes": X.nbytes, "best": best(lambda: X @ X[0])}


def run(options: Namespace, threads: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Measure the peaks, then ours; yield a row of the table and its numbers."""
    path = data.prepare(options.data, options.rows, options.columns, "float32", options.work)
    columns = np.load(path, mmap_mode="r").shape[1]
    products: list[float] = []

    peaks: list[tuple[str, str, dict[str, str]]] = [
        ("NumPy product as shipped", "numpy_product", {}),
        ("PyTorch product", "torch_product", {}),
        ("NumPy sum", "numpy_sum", {}),
        ("NumPy X @ c", "numpy_vector_product", {}),
    ]
    peaks[1:1] = [
        (f"NumPy product, {name}={value}", "numpy_product", {name: value})
        for name, value in options.peer_env.items()
    ]
    for what, call, environment in peaks:
        found = measure(
            Contender(what, f"roofline.{call}"),
            path,
            options.rows,
            threads,
            repeats=options.repeats,
            timeout=options.timeout,
            environment=environment,
        ).arrays
        product = float(found.get("flops", 0) / found["best"]) / 1e9
        memory = float(found.get("bytes", 0) / found["best"]) / 1e9
        products.append(product)
        yield line(what, options.rows, 0, threads, product, memory, product / max(products) if product else 0)

    nominal = 2 * options.rows * options.k * columns
    for what, call, arguments in (
        ("k-center, ours", "ours.k_center", {}),
        # Nominal: all rows assigned once. Training on few rows for each centroid is in the time alone.
        (
            "k-means, ours, all rows assigned",
            "ours.kmeans",
            {"max_iterations": 1, "train_rows": min(options.rows, KMEANS_TRAINING * options.k)},
        ),
    ):
        contender = Contender(what, call, {**arguments, "k": options.k, "threads": threads})
        taken = measure(
            contender, path, options.rows, threads, repeats=options.repeats, timeout=options.timeout
        )
        rate = nominal / taken.seconds / 1e9
        yield line(what, options.rows, options.k, threads, rate, 0, rate / max(products))


def line(
    what: str, rows: int, k: int, threads: int, product: float, memory: float, share: float
) -> tuple[str, dict[str, object]]:
    cells = [
        f"{product:.1f}" if product else "",
        f"{memory:.1f}" if memory else "",
        f"{share:.0%}" if share else "",
    ]
    record = {
        "what": what,
        "rows": rows,
        "k": k,
        "threads": threads,
        "gflop_per_second": product,
        "gb_per_second": memory,
        "share": share,
    }
    return f"| {what} | {rows:,} | {k or ''} | {threads} | {' | '.join(cells)} |", record

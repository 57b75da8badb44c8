"""Time of every selection method on one pool, and of COINCIDE's prototypes in one large cluster.

    python benches/methods.py --rows 100000 --columns 384 --budget 10% --threads 2
    python benches/methods.py --mmd 20000 --columns 384 --picks 4000

The second line also times the definition of the greedy maximum mean discrepancy (the whole objective for
each candidate and pick, in NumPy) on 200 points, and says whether the picks are the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from mllm_selector import methods
from mllm_selector.arrays import pick

# The readable formulas that the tests compare with.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import method_reference

PARAMETERS = {"mmssr": {"capabilities": "counting,reading"}}


def pool(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Embeddings in Zipf-sized clusters, necessity, sources and the columns that methods read."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, columns)).astype(np.float32)
    sizes = 1 / np.arange(1, 201)
    of = rng.choice(200, size=rows, p=sizes / sizes.sum())
    X = centres[of] + rng.normal(size=(rows, columns)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    scores = {name: rng.random(rows).astype(np.float32) for name in ("upd", "miwv", "visnec", "ifd")}
    for name in ("counting", "reading"):
        scores[name] = rng.integers(0, 6, rows).astype(np.float32)
    return X.astype(np.float16), rng.gamma(2, size=rows).astype(np.float32), of % 10, scores


def time_methods(given: argparse.Namespace) -> None:
    X, necessity, sources, columns = pool(given.rows, given.columns)
    print(f"{given.budget} of {given.rows:,} x {given.columns}, {given.threads} threads")
    print("| method | seconds | chosen |\n|---|---|---|")
    for name in given.methods or methods.known():
        started = time.perf_counter()
        rows = pick(
            necessity,
            X,
            budget=given.budget,
            method=name,
            param=PARAMETERS.get(name),
            columns=columns,
            sources=sources,
            threads=given.threads,
        )
        print(f"| {name} | {time.perf_counter() - started:.2f} | {len(rows):,} |", flush=True)


def prototypes(given: argparse.Namespace, rows: int, picks: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Choose prototypes of one cluster; return its rows, the choice and the seconds."""
    X, necessity, _, _ = pool(rows, given.columns)
    started = time.perf_counter()
    chosen = pick(
        necessity,
        X,
        budget=picks,
        method="coincide",
        group_count=1,
        order="chosen",
        threads=given.threads,
    )
    return X, chosen, time.perf_counter() - started


def time_mmd(given: argparse.Namespace) -> None:
    _, chosen, seconds = prototypes(given, given.mmd, given.picks)
    print(
        f"{len(chosen):,} picks of {given.mmd:,} x {given.columns}: {seconds:.1f} s, {given.threads} threads"
    )
    X, chosen, seconds = prototypes(given, 200, 50)
    started = time.perf_counter()
    direct = method_reference.greedy_mmd(method_reference.gaussian_kernel(X), 50)
    by_definition = time.perf_counter() - started
    same = "the same" if chosen.tolist() == direct else "other"
    print(f"50 picks of 200: {seconds:.3f} s, by the definition {by_definition:.2f} s; {same} picks")


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", help="Default all.")
    parser.add_argument("--mmd", type=int, help="Time the prototypes of one cluster of so many rows instead.")
    parser.add_argument("--picks", type=int, default=4_000)
    given = parser.parse_args()
    if given.mmd is None:
        time_methods(given)
    else:
        time_mmd(given)


if __name__ == "__main__":
    main()

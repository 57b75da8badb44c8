"""What smaller embeddings change in a selection: projected as by `score --embedding-size`, or as int8.

    python benches/selection/smaller.py [--data clusters|uniform|FILE.npy] [--rows N] [--budget B] ...

Chooses from the full embeddings and from smaller ones in each way, and judges every choice by the full ones:

- same: share of its rows that the choice from the full embeddings has too;
- shift: share of it that would have to move to other regions (1,000 clusters of the full embeddings) for
  each region to have what the choice from the full embeddings gives it (total variation distance);
- mean, greatest: cosine distance of all rows to the nearest one chosen.

The yardstick is the choice from the full embeddings with another seed: what differs no more is chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import mllm_selector
from data import load, necessity, prepare, unit
from large_pick import to_nearest
from mllm_selector.scoring.projection import PCA_SAMPLES, Projection, random_rows

BLOCK = 4096
REGIONS = 1000

Choice = Callable[[np.ndarray, int], np.ndarray]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="clusters", help="clusters, uniform, or a .npy file of rows")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=384, help="of clusters and uniform")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--budget", default="1%")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/bench-data"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    path = prepare(options.data, options.rows, options.columns, "float16", options.work)
    X = load(path, options.rows, mapped=False)
    regions = mllm_selector.kmeans(X, REGIONS, threads=options.threads).labels
    print(f"{options.data}, {len(X):,} x {X.shape[1]}, budget {options.budget}\n")
    print("| choice | embeddings | bytes a row | same | shift | mean | greatest |")
    print("|---|---|---|---|---|---|---|")
    smaller = dict(kinds(X, options.sizes))
    for name, choose in choices(options).items():
        whole = choose(X, 0)
        ways = {"full": whole, "full, another seed": choose(X, 1)}
        ways |= {kind: choose(Y, 0) for kind, Y in smaller.items()}
        for kind, rows in ways.items():
            size = sizes(X, smaller).get(kind, X.nbytes // len(X))
            same = np.isin(rows, whole).mean()
            distances = to_nearest(X, X[rows])
            print(
                f"| {name} | {kind} | {size} | {same:.1%} | {shift(regions, rows, whole):.1%} | "
                f"{distances.mean():.4f} | {distances.max():.3f} |",
                flush=True,
            )


def choices(options: argparse.Namespace) -> dict[str, Choice]:
    """Ways to choose, given embeddings and a seed."""
    scores = necessity(options.rows)

    def grouped(**more: str) -> Choice:
        return lambda X, seed: mllm_selector.pick(
            scores, X, budget=options.budget, seed=seed, threads=options.threads, **more
        )

    return {"default": grouped(), "k-center in each group": grouped(within="k-center", share="size")}


def kinds(X: np.ndarray, to: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield smaller embeddings by name, as float16."""
    yield "int8", np.concatenate([as_int8(block) for block in blocks(X)])
    width = X.shape[1]
    for size in to:
        drawn = X[random_rows(max(PCA_SAMPLES, 8 * size), len(X), 0)].astype(np.float32)
        for name, projection in {
            "random": Projection.random(size, width, 0),
            "pca": Projection.principal(size, drawn),
        }.items():
            yield (
                f"{name} {size}",
                np.concatenate([projection(block).astype(np.float16) for block in blocks(X)]),
            )


def blocks(X: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(X), BLOCK):
        yield X[first : first + BLOCK].astype(np.float32)


def as_int8(X: np.ndarray) -> np.ndarray:
    """Return what is left of rows after rounding to 255 steps, a scale for each row."""
    scale = np.abs(X).max(axis=1, keepdims=True) / 127
    return unit(np.rint(X / scale) * scale).astype(np.float16)


def sizes(X: np.ndarray, smaller: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: Y.shape[1] * 2 for name, Y in smaller.items()} | {"int8": X.shape[1] + 4}


def shift(regions: np.ndarray, rows: np.ndarray, whole: np.ndarray) -> float:
    """Total variation distance between two choices' shares of the regions."""
    one, other = (np.bincount(regions[each], minlength=REGIONS) / len(each) for each in (rows, whole))
    return float(np.abs(one - other).sum() / 2)


if __name__ == "__main__":
    main()

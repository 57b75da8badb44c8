"""Selection against what users run today: NumPy and scikit-learn, in turn, in one run, on the same data.

    python benches/bench_select.py [--rows 100000] [--columns 384] [--k 1000] [--threads 1] [--data FILE.npy]

Without ``--data``, rows are drawn around Zipf-sized clusters on the unit sphere. The NumPy loop for k-center
is timed for `--centres` centres and extrapolated, as every centre costs the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--k", type=int, default=1_000)
    parser.add_argument(
        "--centres", type=int, default=100, help="centres that the NumPy k-center loop is timed for"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="float16 or float32 matrix to use instead")
    parser.add_argument(
        "--skip", nargs="*", default=[], help="parts to leave out: kcenter, kmeans, duplicates, pick"
    )
    return parser.parse_args()


OPTIONS = parse()
# BLAS reads these when NumPy is loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(OPTIONS.threads)

import numpy as np  # noqa: E402 - after the environment is set

from mllm_selector import arrays  # noqa: E402


def clustered(n, d, seed=0):
    rng = np.random.default_rng(seed)
    count = max(2, n // 50)
    sizes = 1 / np.arange(1, count + 1)
    topics = rng.normal(size=(max(2, count // 40), d))
    means = topics[rng.integers(len(topics), size=count)] + rng.normal(size=(count, d))
    labels = rng.choice(count, size=n, p=sizes / sizes.sum())
    X = (means[labels] + 0.5 * rng.normal(size=(n, d))).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def timed(call):
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def show(task, who, seconds, note="", base=None):
    ratio = f"{base / seconds:6.1f}x" if base else ""
    sys.stdout.write(f"{task:<24} {who:<34} {seconds:9.2f} s {ratio:>8}  {note}\n")
    sys.stdout.flush()


def numpy_k_center(X, k):
    nearest = np.full(len(X), np.inf, np.float32)
    rows = [0]
    for _ in range(k):
        np.minimum(nearest, 2 - 2 * (X @ X[rows[-1]]), out=nearest)
        rows.append(int(nearest.argmax()))
    return rows[:k]


def bench_k_center(X, k, threads):
    count = min(OPTIONS.centres, k)
    seconds, expected = timed(lambda: numpy_k_center(X, count))
    base = seconds * k / count
    show("k-center", "NumPy X @ c per centre", base, f"extrapolated from {count} centres")
    seconds, cover = timed(lambda: arrays.k_center(X, k, threads=threads))
    same = np.mean(cover.rows[:count] == expected)
    show("k-center", "ours, float32", seconds, f"{same:.0%} of the rows the same", base)
    half = X.astype(np.float16)
    seconds, _ = timed(lambda: arrays.k_center(half, k, threads=threads))
    show("k-center", "ours, float16", seconds, "", base)


def bench_k_means(X, k, threads):
    from sklearn.cluster import KMeans, MiniBatchKMeans

    def inertia(centroids):
        block = 10_000
        squares = (centroids**2).sum(axis=1)
        return sum(
            (
                (X[i : i + block] ** 2).sum(axis=1)
                + (squares - 2 * X[i : i + block] @ centroids.T).min(axis=1)
            ).sum()
            for i in range(0, len(X), block)
        ) / len(X)

    base, model = timed(lambda: KMeans(k, init="random", n_init=1, max_iter=20, random_state=0).fit(X))
    show(
        "k-means", "scikit-learn, random init, 20 it.", base, f"inertia {inertia(model.cluster_centers_):.4f}"
    )
    seconds, model = timed(lambda: MiniBatchKMeans(k, n_init=1, random_state=0).fit(X))
    show(
        "k-means",
        "scikit-learn MiniBatchKMeans",
        seconds,
        f"inertia {inertia(model.cluster_centers_):.4f}",
        base,
    )
    seconds, found = timed(lambda: arrays.kmeans(X, k, threads=threads))
    note = f"inertia {inertia(found.centroids):.4f}, {found.iterations} iterations"
    show("k-means", "ours, all rows", seconds, note, base)
    seconds, found = timed(lambda: arrays.kmeans(X, k, train_rows=64 * k, threads=threads))
    note = f"inertia {inertia(found.centroids):.4f}, {found.iterations} iterations"
    show("k-means", "ours, trained on 64 k rows", seconds, note, base)


def numpy_filter(X, threshold, block=1024):
    kept = np.empty_like(X)
    count = 0
    for first in range(0, len(X), block):
        rows = X[first : first + block]
        far = np.ones(len(rows), bool)
        for begin in range(0, count, 16 * block):
            far &= ((rows @ kept[begin : min(begin + 16 * block, count)].T) < threshold).all(axis=1)
        near = rows @ rows.T >= threshold
        for place in np.flatnonzero(far):
            if far[place]:  # not rejected by a row of this block
                far[place + 1 :] &= ~near[place, place + 1 :]
        kept[count : count + far.sum()] = rows[far]
        count += far.sum()
    return count


def bench_duplicates(X, threads):
    base, count = timed(lambda: numpy_filter(X, 0.9))
    show("near-duplicates at 0.9", "NumPy blocks", base, f"{count} kept")
    seconds, found = timed(lambda: arrays.near_duplicates(X, 0.9, threads=threads))
    show("near-duplicates at 0.9", "ours", seconds, f"{len(found.kept)} kept", base)


def bench_pick(X, threads):
    from sklearn.cluster import KMeans

    necessity = np.random.default_rng(0).gamma(2, size=len(X))
    budget = len(X) // 10
    k = int(np.sqrt(len(X) / 2))

    def plain():
        labels = KMeans(k, n_init=1, max_iter=25, random_state=0).fit_predict(X)
        share = np.bincount(labels, weights=necessity, minlength=k)
        counts = np.floor(budget * share / share.sum()).astype(int)
        rng = np.random.default_rng(0)
        picks = [rng.permutation(np.flatnonzero(labels == label))[: counts[label]] for label in range(k)]
        return np.concatenate(picks)

    base, _ = timed(plain)
    show("pick 10 %", "NumPy + scikit-learn", base)
    seconds, rows = timed(lambda: arrays.pick(necessity, X, budget=budget, threads=threads))
    show("pick 10 %", "ours", seconds, f"{len(rows)} chosen", base)


def main():
    X = np.load(OPTIONS.data) if OPTIONS.data else clustered(OPTIONS.rows, OPTIONS.columns)
    X = np.ascontiguousarray(X[: OPTIONS.rows], np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    sys.stdout.write(f"{len(X)} x {X.shape[1]}, k = {OPTIONS.k}, threads = {OPTIONS.threads}\n")
    parts = {
        "kcenter": lambda: bench_k_center(X, OPTIONS.k, OPTIONS.threads),
        "kmeans": lambda: bench_k_means(X, OPTIONS.k, OPTIONS.threads),
        "duplicates": lambda: bench_duplicates(X, OPTIONS.threads),
        "pick": lambda: bench_pick(X, OPTIONS.threads),
    }
    for name, part in parts.items():
        if name not in OPTIONS.skip:
            part()


main()

"""Selection algorithms written to be read, in plain NumPy: what the Rust core is compared with."""

from __future__ import annotations

import numpy as np


def dot(X, Y):
    """Dot products of rows by the package's definition: fused multiply-add in float32, 64 partial sums.

    Column i belongs to sum i mod 64; in the end the upper half of the sums is added to the lower half until
    one is left. A product of two float32 is exact in float64, and so nearly is its sum with a float32:
    rounding that sum to float32 is a fused multiply-add but for rare double rounding.
    """
    shape = np.broadcast_shapes(X.shape, Y.shape)
    X, Y = (np.broadcast_to(values, shape).astype(np.float64) for values in (X, Y))
    sums = np.zeros((*shape[:-1], 64), np.float32)
    for first in range(0, shape[-1], 64):
        products = X[..., first : first + 64] * Y[..., first : first + 64]
        width = products.shape[-1]
        sums[..., :width] = (sums[..., :width] + products).astype(np.float32)
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def squared_norms(X):
    return dot(X, X)


def k_center(X, k, first=(0,), metric="euclidean", weights=None):
    """Gonzalez' greedy algorithm in float64, one pass over all rows for each centre."""
    X = np.asarray(X, np.float64)
    factor = np.ones(len(X)) if weights is None else np.asarray(weights, np.float32).astype(np.float64)
    if metric == "euclidean":
        factor = factor * factor
    nearest = np.full(len(X), np.inf)
    rank = nearest * factor
    rows, radii = [], []
    while len(rows) < k:
        row = first[len(rows)] if len(rows) < len(first) else int(np.argmax(rank))
        rows.append(row)
        nearest = np.minimum(nearest, exact_distances(X, row, metric))
        rank = nearest * factor
        rank[rows] = -1  # never again
        radius = max(rank.max(), 0.0)
        radii.append(np.sqrt(radius) if metric == "euclidean" else radius)
    return np.array(rows), np.array(radii, np.float32)


def exact_distances(X, row, metric):
    """Squared Euclidean or cosine distance of all rows to one, in float64."""
    if metric == "euclidean":
        return ((X - X[row]) ** 2).sum(axis=1)
    products = (X * X[row]).sum(axis=1)
    squares = (X * X).sum(axis=1)
    return np.maximum(0.0, 1.0 - products / np.sqrt(squares * squares[row]))


def assign(X, centroids):
    """Nearest centroid of every row, and the squared distance to it, in float64."""
    X, centroids = np.asarray(X, np.float64), np.asarray(centroids, np.float64)
    squares = ((X[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)
    return squares.argmin(axis=1), squares.min(axis=1)


def lloyd(X, centroids, iterations):
    """Lloyd's iterations; no cluster may become empty."""
    X = np.asarray(X, np.float64)
    for _ in range(iterations):
        labels, _ = assign(X, centroids)
        centroids = np.stack([X[labels == label].mean(axis=0) for label in range(len(centroids))])
    return centroids


def allocate(budget, weights, capacities):
    """Share a budget out by weight, at most the capacity each; rounded by the largest remainder."""
    weights, capacities = np.asarray(weights, float), np.asarray(capacities)
    full = np.zeros(len(weights), bool)
    while True:
        rest = budget - capacities[full].sum()
        shares = np.where(full, capacities, rest * weights / max(weights[~full].sum(), 1e-300))
        overfull = ~full & (shares > capacities)
        if not overfull.any():
            break
        full |= overfull
    counts = np.floor(shares + 1e-9).astype(int)
    order = np.argsort(-np.round(shares - counts, 9), kind="stable")
    for group in order[: budget - counts.sum()]:
        counts[group] += 1
    return counts


def group_weights(necessity, groups, share):
    """What each group's share is proportional to, written out."""
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    positive = np.maximum(necessity, 0).astype(np.float64)
    return {
        "size-necessity": [len(row) * positive[row].mean() for row in rows],
        "necessity": [positive[row].mean() for row in rows],
        "size": [len(row) for row in rows],
        "equal": [1 for row in rows],
    }[share]


def at_level(total, shares):
    """Values of an increasing function of one number where they add up to a total; by bisection."""
    low, high = 0.0, 1.0
    while shares(high).sum() < total:
        high *= 2
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if shares(level).sum() < total else (low, level)
    return shares(high)


def largest_remainder(total, shares, owed=0.0):
    """Round down, then up by remainder plus what is owed, whole numbers last."""
    counts = np.floor(shares + 1e-9).astype(int)
    left = np.round(shares - counts, 9)
    order = np.lexsort([np.arange(len(counts)), -np.round(shares - counts + owed, 9), left == 0])
    for place in order[: total - counts.sum()]:
        counts[place] += 1
    return counts


def limited_shares(budget, weights, capacities, floors, ceilings):
    """Share a budget out among strata with bounds (rows) and among the groups in each (columns)."""
    sums = at_level(
        budget,
        lambda level: np.clip(np.minimum(level * weights, capacities).sum(axis=1), floors, ceilings),
    )
    owed = np.zeros(weights.shape[1])
    counts = np.zeros(weights.shape, int)
    for stratum, total in enumerate(largest_remainder(budget, sums)):
        shares = at_level(total, lambda level, row=stratum: np.minimum(level * weights[row], capacities[row]))
        counts[stratum] = largest_remainder(total, shares, owed)
        owed += shares - counts[stratum]
    return counts


def near_duplicates(X, threshold, priority=None):
    """Keep a row unless it is near one kept before; return the row that stands for each."""
    X = np.asarray(X, np.float64)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    representatives = np.arange(len(X))
    kept: list[int] = []
    for row in range(len(X)) if priority is None else priority:
        near = [other for other in kept if X[row] @ X[other] >= threshold]
        if near:
            representatives[row] = near[0]
        else:
            kept.append(row)
    return representatives


def cosines(X):
    """Cosines of all pairs of rows in float64; those of equal rows are exactly 1."""
    X = np.asarray(X, np.float64)
    # Not a matrix product: there, the place of a row may change the last bits.
    dots = np.einsum("id,jd->ij", X, X)
    return dots / np.sqrt(np.outer(dots.diagonal(), dots.diagonal()))


def near_pairs(X, threshold):
    """All pairs (lower row, higher row) whose cosine is at least the threshold, ascending."""
    return np.argwhere(np.triu(cosines(X) >= threshold, 1))


def nearest_neighbours(X, count):
    """Return for each row the other rows of the highest cosine, nearest first, ties to the lowest row.

    Returns
    -------
    rows : ndarray of int, shape (n, count)
    cosines : ndarray of float64, shape (n, count)
    """
    scores = cosines(X)
    np.fill_diagonal(scores, -np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return rows, np.take_along_axis(scores, rows, axis=1)


def facility_location(neighbours, cosines, k, first=(), weights=None):
    """Plain greedy facility location on a graph of neighbours, ties to the lowest row.

    The value of a choice is the sum over all rows of the greatest similarity to a chosen row, times the row's
    weight: 1 to itself, the cosine to a row among its neighbours if that is positive, 0 to all others.

    Parameters
    ----------
    neighbours, cosines : arrays of shape (n, count)
        As `nearest_neighbours` returns them.
    k : int
        How many rows to choose, those of `first` included, which are taken first.

    Returns
    -------
    rows : ndarray of int, shape (k,)
        In the order of choice.
    gains : ndarray of float64, shape (k,)
        What each added to the value.
    """
    n = len(neighbours)
    similarities = np.eye(n)
    similarities[np.arange(n)[:, None], neighbours] = np.maximum(cosines, 0)
    factors = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    covered = np.zeros(n)
    rows, gains = [], []
    while len(rows) < k:
        added = factors @ np.maximum(similarities - covered[:, None], 0)
        added[rows] = -1  # never again
        rows.append(first[len(rows)] if len(rows) < len(first) else int(added.argmax()))
        gains.append(added[rows[-1]])
        covered = np.maximum(covered, similarities[:, rows[-1]])
    return np.array(rows), np.array(gains)


def weighted_inclusion(weights, count):
    """Probability of each item to be among `count` drawn one by one without replacement, by weight."""
    weights = np.asarray(weights, float)
    inclusion = np.zeros(len(weights))

    def draw(left, probability, drawn):
        if drawn == count:
            return
        total = weights[left].sum()
        for place in left:
            chance = probability * weights[place] / total
            inclusion[place] += chance
            draw([other for other in left if other != place], chance, drawn + 1)

    draw(list(range(len(weights))), 1.0, 0)
    return inclusion

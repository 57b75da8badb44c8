"""Whether results agree: each check says in a few words what was found.

Two right answers may differ where float32 cannot tell two rows apart. A check that meets a difference
computes it again in float64 and says how close the decision was.
"""

from __future__ import annotations

import numpy as np

import data


def inertia(X, centroids, block: int = 8192) -> float:
    """Mean squared distance of all rows to their nearest centroid."""
    squares = np.einsum("ij,ij->i", centroids, centroids)
    total = 0.0
    for first in range(0, len(X), block):
        rows = np.asarray(X[first : first + block], np.float32)
        nearest = (squares - 2 * (rows @ centroids.T)).argmin(axis=1)
        total += float(((rows - centroids[nearest]) ** 2).sum(dtype=np.float64))
    return total / len(X)


def same_order(found, expected) -> str:
    """Compare k-center's rows with the first that were chosen by another."""
    count = min(len(found), len(expected))
    found, expected = found[:count], expected[:count]
    different = np.flatnonzero(found != expected)
    if not len(different):
        return f"the same {count} rows in the same order"
    common = len(np.intersect1d(found, expected))
    return f"the same {different[0]} rows in the same order, {common} of {count} in common"


def greedy_order(X, centres) -> str:
    """Compare k-center's rows with those of the plain algorithm in float64."""
    rows = X.astype(np.float64)
    squares = np.einsum("ij,ij->i", rows, rows)
    nearest = np.full(len(rows), np.inf)
    expected = [int(centres[0])]
    while len(expected) < len(centres):
        centre = expected[-1]
        np.minimum(nearest, squares - 2 * (rows @ rows[centre]) + squares[centre], out=nearest)
        nearest[expected] = -np.inf
        expected.append(int(nearest.argmax()))
    return f"by float64, {same_order(np.asarray(centres), np.array(expected))}"


def farthest(X, centres) -> str:
    """Replay a greedy choice in float64: how much nearer than the farthest row were the rows chosen."""
    rows = data.sample(len(X), 50_000)
    far = np.zeros(len(centres))
    for _, nearest in nearest_so_far(X, rows, centres):
        np.maximum(far, nearest.max(axis=0), out=far)
    chosen = np.zeros(len(centres))
    for places, nearest in nearest_so_far(X, centres, centres):
        chosen[places] = nearest[np.arange(len(places)), places - 1]
    shortfall = (far[:-1] - chosen[1:]).max(initial=0)
    return f"each the farthest of {len(rows)} rows to within {shortfall:.0e}"


def nearest_so_far(X, rows, centres, block: int = 1024):
    """Yield places in `rows`, and their squared distances to the nearest of the first 1, 2, ... centres."""
    vectors = X[centres].astype(np.float64)
    squares = (vectors**2).sum(axis=1)
    for first in range(0, len(rows), block):
        places = np.arange(first, min(first + block, len(rows)))
        points = X[rows[places]].astype(np.float64)
        distances = (points**2).sum(axis=1)[:, None] + squares - 2 * points @ vectors.T
        yield places, np.minimum.accumulate(distances, axis=1)


def within_radius(X, centres, radius: float) -> str:
    """Look for a row, in a sample, that is farther from all centres than the radius."""
    rows = data.sample(len(X), 10_000)
    nearest = np.full(len(rows), np.inf)
    for first in range(0, len(rows), 1000):
        block = slice(first, first + 1000)
        products = X[rows[block]].astype(np.float32) @ X[centres].astype(np.float32).T
        lengths = [np.square(X[which].astype(np.float32)).sum(axis=1) for which in (rows[block], centres)]
        nearest[block] = (lengths[0][:, None] + lengths[1] - 2 * products).min(axis=1)
    beyond = int((nearest > radius**2 + 1e-5).sum())
    return f"radius {radius:.4f}, {beyond} of {len(rows)} sampled rows beyond it"


def same_pairs(X, found, expected, threshold: float, queries) -> str:
    """Compare the pairs that have at least one of the query rows."""
    asked = np.zeros(len(X), bool)
    asked[queries] = True
    codes = []
    for pairs in (found, expected):
        pairs = pairs[asked[pairs].any(axis=1) & (pairs[:, 0] != pairs[:, 1])]
        codes.append(np.unique(pairs.min(axis=1) * len(X) + pairs.max(axis=1)))
    different = np.setxor1d(*codes)
    if not len(different):
        return f"the same {len(codes[0])} pairs"
    gap = max(abs(cosine(X, *divmod(int(code), len(X))) - threshold) for code in different)
    return (
        f"{len(codes[0])} and {len(codes[1])} pairs, {len(different)} in one only: "
        f"cosines within {gap:.0e} of the threshold"
    )


def cosine(X, row: int, other: int) -> float:
    x, y = X[row].astype(np.float64), X[other].astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def same_kept(X, found, expected, necessity) -> str:
    """Compare the rows kept by a score-first skip."""
    different = np.setxor1d(found, expected)
    if not len(different):
        return f"the same {len(found)} rows"
    row = different[np.argmax(necessity[different])]
    before = found[necessity[found] > necessity[row]]
    nearest = max((cosine(X, row, other) for other in before), default=-1.0)
    return f"{len(found)} and {len(expected)} rows; the first that differs has cosine {nearest:.9f}"


def same_graph(found, expected) -> str:
    """Compare two graphs of nearest neighbours, each a pair of rows and cosines."""
    rows, cosines = found
    other_rows, other_cosines = expected
    same = np.mean(np.sort(rows, axis=1) == np.sort(other_rows, axis=1))
    gap = np.abs(np.sort(cosines, axis=1) - np.sort(other_cosines, axis=1)).max()
    return f"{same:.4%} of the neighbours the same, cosines within {gap:.0e}"


def coverage(X, chosen, graph) -> str:
    """Mean value of facility location: on the graph, where rows not listed count 0, and on all cosines."""
    rows, cosines = graph
    selected = np.zeros(len(X), bool)
    selected[chosen] = True
    values = np.where(selected[rows], cosines, 0).max(axis=1)
    values[selected] = 1
    sample = data.sample(len(X), 2_000)
    dense = (data.unit(X[sample]) @ data.unit(X[chosen]).T).max(axis=1)
    return f"value {values.mean():.6f}, all cosines of {len(sample)} rows {dense.mean():.4f}"


def distinct(rows) -> str:
    return f"{len(np.unique(rows))} distinct rows"


def nearest_centroids(X, centroids, labels) -> str:
    """Compare the labels of a sample with the nearest centroids in float64."""
    rows = data.sample(len(X), 1_000)
    squares = (centroids.astype(np.float64) ** 2).sum(axis=1)
    scores = squares - 2 * X[rows].astype(np.float64) @ centroids.T.astype(np.float64)
    worst = (scores[np.arange(len(rows)), labels[rows]] - scores.min(axis=1)).max()
    return f"labels of {len(rows)} sampled rows nearest to within {worst:.0e}"

"""What users run today, each as they would write it with NumPy, PyTorch, faiss, scikit-learn or apricot.

Every function takes the rows first and returns named arrays. Rows need not have length exactly 1.
"""

from __future__ import annotations

import heapq
import math
import time

import numpy as np

import data


def numpy_k_center(X, k: int, centres: int):
    """Greedy k-center, one product `X @ c` for each of the first `centres` centres."""
    norms = np.einsum("ij,ij->i", X, X)
    nearest = np.full(len(X), np.inf, np.float32)
    rows = [0]
    for _ in range(min(centres, k)):
        centre = rows[-1]
        np.minimum(nearest, norms - (2 * (X @ X[centre]) - norms[centre]), out=nearest)
        rows.append(int(nearest.argmax()))
    return {"rows": np.array(rows[: min(centres, k)])}


def numpy_lazy_k_center(X, k: int, pool_size: int = 4096):
    """Greedy k-center in lazy batches: few passes over all rows, many centres in each.

    Distances only shrink. So as long as a row of the pool is farther than every row outside was at the last
    pass, it is the farthest of all, and only the pool has to be kept up to date.
    """
    norms = np.einsum("ij,ij->i", X, X)
    nearest = np.full(len(X), np.inf, np.float32)
    rows, pending = [0], [0]
    while len(rows) < k:
        centres = X[pending]
        for first in range(0, len(X), 4096):
            block = slice(first, first + 4096)
            scores = 2 * (X[block] @ centres.T)
            scores -= norms[pending]
            np.minimum(nearest[block], norms[block] - scores.max(axis=1), out=nearest[block])
        pending = [int(nearest.argmax())]
        rows.append(pending[0])

        size = min(pool_size, len(X) - 1)
        order = np.argpartition(nearest, len(X) - size - 1)
        outside = nearest[order[len(X) - size - 1]]
        pool = np.sort(order[len(X) - size :])
        candidates, pool_norms, pool_nearest = X[pool], norms[pool], nearest[pool]
        while len(rows) < k:
            centre = rows[-1]
            distances = pool_norms - (2 * (candidates @ X[centre]) - norms[centre])
            np.minimum(pool_nearest, distances, out=pool_nearest)
            place = int(pool_nearest.argmax())
            if pool_nearest[place] <= outside:
                break
            rows.append(int(pool[place]))
            pending.append(rows[-1])
    return {"rows": np.array(rows)}


def faiss_kmeans(X, k: int, iterations: int):
    """Lloyd's iterations of faiss on all rows, and the assignment of all rows."""
    import faiss

    started = time.perf_counter()
    model = faiss.Kmeans(X.shape[1], k, niter=iterations, max_points_per_centroid=len(X), seed=1)
    model.train(X)
    trained = time.perf_counter()
    _, labels = model.assign(X)
    return {
        "centroids": model.centroids,
        "labels": labels,
        "train_seconds": trained - started,
        "assign_seconds": time.perf_counter() - trained,
    }


def sklearn_minibatch_kmeans(X, k: int):
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(k, n_init=1, random_state=0).fit(X)
    return {"centroids": model.cluster_centers_, "labels": model.labels_}


def faiss_index(X):
    """Flat index of the unit rows, filled in blocks."""
    import faiss

    index = faiss.IndexFlatIP(X.shape[1])
    for first in range(0, len(X), data.BLOCK):
        index.add(data.unit(X[first : first + data.BLOCK]))
    return index


def faiss_range_search(X, threshold: float, queries: int):
    """All rows whose cosine with a query row is above a threshold, for a sample of query rows."""
    started = time.perf_counter()
    index = faiss_index(X)
    searched = time.perf_counter()
    rows = data.sample(len(X), queries)
    limits, _, found = index.range_search(data.unit(X[rows]), threshold)
    return {
        "pairs": np.stack([np.repeat(rows, np.diff(limits).astype(np.int64)), found], axis=1),
        "add_seconds": searched - started,
        "search_seconds": time.perf_counter() - searched,
    }


def numpy_skip(X, necessity, threshold: float, block: int = 1024):
    """Visit rows by falling score and keep one unless it is near one kept (DEITA), in blocks."""
    order = np.argsort(-necessity, kind="stable")
    kept_rows = np.empty(len(X), np.int64)
    kept = np.empty(X.shape, np.float32)
    count = 0
    for first in range(0, len(X), block):
        visited = order[first : first + block]
        rows = data.unit(X[visited])
        far = np.ones(len(rows), bool)
        for begin in range(0, count, 16 * block):
            far &= (rows @ kept[begin : min(begin + 16 * block, count)].T).max(axis=1) < threshold
        near = rows @ rows.T >= threshold
        for place in np.flatnonzero(far):
            if far[place]:  # not rejected by a row of this block
                far[place + 1 :] &= ~near[place, place + 1 :]
        added = slice(count, count + int(far.sum()))
        kept[added], kept_rows[added] = rows[far], visited[far]
        count = added.stop
    return {"rows": np.sort(kept_rows[:count])}


def torch_skip(X, necessity, threshold: float, block: int = 1024):
    """Do as `numpy_skip` does, with PyTorch's matrix product."""
    import torch

    order = np.argsort(-necessity, kind="stable")
    kept_rows = np.empty(len(X), np.int64)
    kept = torch.empty(X.shape)
    count = 0
    for first in range(0, len(X), block):
        visited = order[first : first + block]
        rows = torch.nn.functional.normalize(torch.from_numpy(X[visited]))
        far = torch.ones(len(rows), dtype=torch.bool)
        for begin in range(0, count, 16 * block):
            far &= (rows @ kept[begin : min(begin + 16 * block, count)].T).amax(dim=1) < threshold
        near = rows @ rows.T >= threshold
        for place in far.nonzero()[:, 0].tolist():
            if far[place]:
                far[place + 1 :] &= ~near[place, place + 1 :]
        added = slice(count, count + int(far.sum()))
        kept[added], kept_rows[added] = rows[far], visited[far.numpy()]
        count = added.stop
    return {"rows": np.sort(kept_rows[:count])}


def faiss_apricot(X, k: int, neighbours: int):
    """Exact neighbours by faiss, facility location on their graph by apricot's lazy greedy."""
    from apricot import FacilityLocationSelection

    started = time.perf_counter()
    cosines, rows = faiss_index(X).search(data.unit(X), neighbours + 1)
    others = rows != np.arange(len(X))[:, None]
    others[others.all(axis=1), -1] = False  # hidden behind equal rows
    rows, cosines = rows[others].reshape(-1, neighbours), cosines[others].reshape(-1, neighbours)
    searched = time.perf_counter()
    graph = covered_by(rows, cosines).T  # apricot has them in rows
    selector = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(graph)
    return {
        "rows": selector.ranking,
        "neighbours": rows,
        "cosines": cosines,
        "graph_seconds": searched - started,
    }


def covered_by(rows, cosines):
    """Return the graph as a matrix: column j has what row j covers, those that list it and itself."""
    from scipy.sparse import csc_matrix

    n, neighbours = rows.shape
    covered = np.repeat(np.arange(n), neighbours)
    places = np.concatenate([covered, np.arange(n)]), np.concatenate([rows.ravel(), np.arange(n)])
    values = np.concatenate([np.maximum(cosines, 0).ravel(), np.ones(n)]).astype(np.float64)
    return csc_matrix((values, places), shape=(n, n))


def group_facility(X, count: int, neighbours: int):
    """Facility location on the graph of a group's nearest neighbours: products by NumPy, greedy by a heap.

    apricot is no peer here: it takes a second and more for each call, however few the rows are.
    """
    if count in (0, len(X)):
        return np.arange(count)
    unit = data.unit(X)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    neighbours = min(neighbours, len(X) - 1)
    rows = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
    graph = covered_by(rows, np.take_along_axis(cosines, rows, axis=1))
    starts, covered, values = graph.indptr, graph.indices, graph.data
    best = np.zeros(len(X))

    def gain(row: int) -> float:
        part = slice(starts[row], starts[row + 1])
        return float(np.maximum(values[part] - best[covered[part]], 0).sum())

    heap = [(-total, row) for row, total in enumerate(np.asarray(graph.sum(axis=0))[0].tolist())]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        row = heap[0][1]
        now = (-gain(row), row)
        heapq.heapreplace(heap, now)
        if heap[0] != now:
            continue
        heapq.heappop(heap)
        chosen.append(row)
        part = slice(starts[row], starts[row + 1])
        best[covered[part]] = np.maximum(best[covered[part]], values[part])
    return np.array(chosen)


def sklearn_pick(X, necessity, budget: int, mini_batch: bool, neighbours: int | None = None):
    """Pick rows of k-means clusters, their shares by size times mean necessity.

    Inside a cluster they are drawn uniformly, or by facility location on the graph of so many neighbours.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    k = max(1, math.isqrt(len(X) // 2))
    if mini_batch:
        model = MiniBatchKMeans(k, n_init=1, random_state=0)
    else:
        model = KMeans(k, n_init=1, max_iter=25, random_state=0)
    labels = model.fit_predict(data.unit(X))

    sizes = np.bincount(labels, minlength=k)
    weights = np.bincount(labels, weights=necessity, minlength=k)
    counts = np.zeros(k, np.int64)
    while (rest := budget - counts.sum()) > 0:  # what a full cluster cannot take goes to the others
        shares = rest * np.where(counts < sizes, weights, 0) / weights[counts < sizes].sum()
        extra = np.floor(shares).astype(np.int64)
        extra[np.argsort(extra - shares, kind="stable")[: rest - extra.sum()]] += 1
        counts = np.minimum(counts + extra, sizes)
    rng = np.random.default_rng(0)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    picks = [
        rng.choice(rows, count, replace=False)
        if neighbours is None
        else rows[group_facility(X[rows], count, neighbours)]
        for rows, count in zip(members, counts, strict=True)
    ]
    return {"rows": np.sort(np.concatenate(picks))}

"""Which rows are near which, by cosine: near-duplicates, nearest neighbours, facility location.

Matrices and determinism are those of `mllm_selector.arrays`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_selector import _internal
from mllm_selector.checks import (
    Embeddings,
    Report,
    checked_count,
    checked_rows,
    checked_weights,
    matrix_parts,
)
from mllm_selector.errors import UsageError

__all__ = [
    "Facilities",
    "NearDuplicates",
    "Neighbours",
    "facility_location",
    "near_duplicates",
    "nearest_neighbours",
]


@dataclass(frozen=True)
class NearDuplicates:
    """Result of `near_duplicates`.

    Attributes
    ----------
    representatives : ndarray of int64, shape (n,)
        The row that stands for each row: itself if it is kept.
    pairs : ndarray of int64, shape (m, 2), or None
        All near pairs (lower row, higher row) in ascending order, if they were asked for.
    """

    representatives: NDArray[np.int64]
    pairs: NDArray[np.int64] | None

    @property
    def kept(self) -> NDArray[np.int64]:
        """Rows that stand for themselves, ascending."""
        return np.flatnonzero(self.representatives == np.arange(len(self.representatives)))


@dataclass(frozen=True)
class Neighbours:
    """Result of `nearest_neighbours`: a graph that `facility_location` can work on.

    Attributes
    ----------
    rows : ndarray of uint32, shape (n, k)
        Neighbours of each row, the nearest first, ties to the lowest row; the row itself is not among them.
        4294967295 where fewer than `k` rows were compared, which exact search leaves nowhere.
    cosines : ndarray of float32, shape (n, k)
        Their cosines; minus infinity where there is no neighbour.
    recall : float or None
        None if the search was exact. Else the share of the nearest neighbours that it found, measured
        against exact search on 1,000 rows drawn uniformly (all, if there are fewer). As equally near rows
        cannot be told apart, a neighbour counts if its cosine is at least that of the k-th nearest.
    """

    rows: NDArray[np.uint32]
    cosines: NDArray[np.float32]
    recall: float | None = None


@dataclass(frozen=True)
class Facilities:
    """Result of `facility_location`.

    Attributes
    ----------
    rows : ndarray of int64, shape (k,)
        The chosen rows in the order of choice: each prefix is the result for a smaller k.
    gains : ndarray of float64, shape (k,)
        What each of them added to the value; never rising.
    """

    rows: NDArray[np.int64]
    gains: NDArray[np.float64]

    @property
    def value(self) -> float:
        """The value of all chosen rows together."""
        return float(self.gains.sum())


def near_duplicates(
    X: Embeddings,
    threshold: float,
    *,
    priority: ArrayLike | None = None,
    pairs: bool = False,
    probes: int | None = None,
    threads: int | None = None,
    progress: Report | None = None,
) -> NearDuplicates:
    """Find near-duplicates: rows whose cosine is at least a threshold, exactly unless `probes` are given.

    Rows are visited one after another. A row is kept unless it is near one kept before; the first such row in
    the order of visiting stands for it. So no two kept rows are near each other, and every other row is near
    the one that stands for it.

    Parameters
    ----------
    X : array or Arrow column of float16 or float32, shape (n, d), or list of such parts
        The rows; none may be zero.
    threshold : float
        Cosine from which two rows count as duplicates, in (0, 1]. Equal rows have exactly 1.
    priority : array of int, shape (n,), optional
        All rows in the order of visiting, for example by falling necessity; default 0, 1, ..., n - 1.
    pairs : bool
        Also list all near pairs; with m of them this needs 32 m bytes, 16 m of them for the result.
    probes : int, optional
        With `pairs`: compare only rows of similar clusters, see the notes. Default: compare all.
    threads : int, optional
        CPU threads; default all. The result does not depend on it.
    progress : callable, optional
        Called with (done, total) now and then.

    Returns
    -------
    NearDuplicates

    Raises
    ------
    UsageError
        If an argument cannot work, X holds NaN or infinity, or a row is zero.

    Notes
    -----
    Time O(n m d) for m kept rows; with `pairs`, O(n^2 d). Most pairs are ruled out by 8-bit codes
    with a proven bound on their error, most of those by the codes of the first columns alone; the canonical
    dot product, which no thread count or processor changes, decides on the others (see
    ``rust/core/src/linalg``).

    With `probes`, rows are sorted by cluster, cut into blocks of about 4,096, and each block is compared with
    the `probes` blocks most like it, itself among them, as SemDeDup (Abbas et al., arXiv 2303.09540) compares
    inside clusters. No pair is made up. Pairs of rows in blocks that were not compared are missed; such a row
    may be kept though it is near another that is. The nearer two rows, the likelier they are in one cluster:
    the lower the threshold, the more is missed. Time is O(n probes d).

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1], [1, 0.01]], np.float32)
    >>> found = near_duplicates(X, 0.99, pairs=True)
    >>> found.kept, found.representatives, found.pairs
    (array([0, 1]), array([0, 1, 0]), array([[0, 2]]))
    """
    if probes is not None and not pairs:
        msg = "probes: without pairs all rows are compared; ask for pairs=True, or leave probes out"
        raise UsageError(msg)
    matrix = matrix_parts(X)
    threads = None if threads is None else checked_count("threads", threads)
    visits = None if priority is None else checked_rows("priority", priority)
    if not pairs:
        representatives = _internal.near_duplicates(
            matrix, threshold=threshold, priority=visits, threads=threads, progress=progress
        )
        return NearDuplicates(representatives, None)
    representatives, found = _internal.near_duplicates_by_pairs(
        matrix,
        threshold=threshold,
        priority=visits,
        probes=_checked_probes(probes),
        threads=threads,
        progress=progress,
    )
    return NearDuplicates(representatives, found)


def nearest_neighbours(
    X: Embeddings,
    k: int,
    *,
    probes: int | None = None,
    threads: int | None = None,
    progress: Report | None = None,
) -> Neighbours:
    """Find the k nearest other rows of each row by cosine, exactly unless `probes` are given.

    Parameters
    ----------
    X : array or Arrow column of float16 or float32, shape (n, d), or list of such parts
        The rows; none may be zero.
    k : int
        Number of neighbours of each row, below n.
    probes : int, optional
        Compare only rows of similar clusters, see the notes: for millions of rows, where comparing all takes
        long. Default: compare all.
    threads : int, optional
        CPU threads; default all. The result does not depend on it.
    progress : callable, optional
        Called with (done, total) now and then.

    Returns
    -------
    Neighbours
        With `recall` measured if there are `probes`.

    Raises
    ------
    UsageError
        If an argument cannot work, X holds NaN or infinity, or a row is zero.

    Notes
    -----
    Time O(n^2 d); most pairs are ruled out by 8-bit codes with a proven bound on their error, and
    the canonical dot product decides on the others. Memory, X apart: 8 n k bytes for the result and about 12
    n k bytes more.

    With `probes`, rows are sorted by cluster, cut into blocks of about 4,096, and each block is compared with
    the `probes` blocks most like it, itself among them: the idea of inverted files with several probes
    (Jegou, Douze and Schmid, Product quantization for nearest neighbor search, IEEE TPAMI 33, 2011), for all
    rows at once. Neighbours in blocks that were not compared are missed, and farther rows stand in for them;
    their cosines are right. How many are missed depends on the data, so it is measured: see
    `Neighbours.recall`. Time is O(n probes d), and O(n d) for the recall.

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1], [1, 1], [3, 4]], np.float32)
    >>> graph = nearest_neighbours(X, 2)
    >>> graph.rows
    array([[2, 3],
           [3, 2],
           [3, 0],
           [2, 1]], dtype=uint32)
    >>> graph.cosines[0].round(3)
    array([0.707, 0.6  ], dtype=float32)
    """
    rows, cosines, recall = _internal.nearest_neighbours(
        matrix_parts(X),
        k=checked_count("k", k),
        probes=_checked_probes(probes),
        threads=None if threads is None else checked_count("threads", threads),
        progress=progress,
    )
    return Neighbours(rows, cosines, recall)


def facility_location(
    X: Embeddings | None,
    k: int,
    *,
    neighbours: int | Neighbours = 50,
    weights: ArrayLike | None = None,
    probes: int | None = None,
    threads: int | None = None,
    progress: Report | None = None,
) -> Facilities:
    """Choose the rows that the others are near to: greedy facility location on a graph of neighbours.

    The value of chosen rows is the sum over all rows of their weight times their similarity to the chosen row
    most similar to them. A row's similarity is 1 to itself, the cosine to its neighbours in the graph if that
    is positive, and 0 to all others. Again and again, the row that adds most to the value is taken. Where
    `k_center` goes for the rows farthest out, this goes for rows that stand for many.

    Parameters
    ----------
    X : array or Arrow column of float16 or float32, shape (n, d), or list of such parts; or None
        The rows; none may be zero. None if `neighbours` is a graph.
    k : int
        Number of rows to choose, at most n.
    neighbours : int or Neighbours
        How many nearest neighbours of each row the graph has (all other rows, if these are fewer), or the
        graph itself: of `nearest_neighbours`, or with `Neighbours.rows` and `Neighbours.cosines` from
        elsewhere, in any order in each row.
    weights : array of float, shape (n,), optional
        What covering each row counts, at least 0, such as its necessity; default 1.
    probes : int, optional
        As in `nearest_neighbours`: a graph that may miss neighbours, for millions of rows. To see its recall,
        make the graph first and give it as `neighbours`.
    threads : int, optional
        CPU threads; default all. The result does not depend on it.
    progress : callable, optional
        Called with (done, total) now and then.

    Returns
    -------
    Facilities

    Raises
    ------
    UsageError
        If an argument cannot work, X holds NaN or infinity, a row is zero, or the graph is none.

    Notes
    -----
    The objective is that of Lin and Bilmes, A class of submodular functions for document
    summarization (ACL 2011), used to choose training data by Wei, Iyer and Bilmes, Submodularity in data
    subset selection and active learning (ICML 2015). It is monotone and submodular, so the greedy value is at
    least 1 - 1/e of the greatest (Nemhauser, Wolsey and Fisher, Mathematical Programming 14, 1978). A row's
    gain can only fall, so only rows that come up again are computed again (Minoux, Accelerated greedy
    algorithms, 1978); the rows are those of the plain greedy algorithm, ties to the lowest row.

    Nearly all of the time is that of `nearest_neighbours`. Memory: 8 bytes for each of the graph's edges,
    beside the graph.

    Examples
    --------
    >>> X = np.array([[9, 0], [9, 1], [9, 2], [-1, 9], [0, 9], [1, 9]], np.float32)
    >>> found = facility_location(X, 2, neighbours=2)
    >>> found.rows
    array([1, 4])
    >>> round(found.value, 3)
    5.976
    """
    k = checked_count("k", k)
    threads = None if threads is None else checked_count("threads", threads)
    factors = None if weights is None else checked_weights(weights)
    if isinstance(neighbours, Neighbours):
        graph = _checked_graph(neighbours, X, probes)
        rows, gains = _internal.facility_location_on(
            *graph, k=k, weights=factors, threads=threads, progress=progress
        )
        return Facilities(rows, gains)
    if X is None:
        msg = "X: there are no rows; give them, or a graph of them as neighbours"
        raise UsageError(msg)
    rows, gains = _internal.facility_location(
        matrix_parts(X),
        k=k,
        neighbours=checked_count("neighbours", neighbours),
        probes=_checked_probes(probes),
        weights=factors,
        threads=threads,
        progress=progress,
    )
    return Facilities(rows, gains)


def _checked_probes(probes: int | None) -> int | None:
    return None if probes is None else checked_count("probes", probes)


def _checked_graph(
    graph: Neighbours, X: Embeddings | None, probes: int | None
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return the rows and cosines of a graph; the entries are checked where they are used."""
    if probes is not None:
        msg = "probes: the graph is given, so nothing is searched; leave probes out"
        raise UsageError(msg)
    rows, cosines = np.asarray(graph.rows), np.asarray(graph.cosines)
    if rows.ndim != 2 or rows.shape != cosines.shape or 0 in rows.shape or rows.dtype.kind not in "iu":
        msg = (
            f"neighbours: rows are {rows.dtype} of shape {rows.shape}, cosines of shape {cosines.shape}; "
            "give whole numbers, and both of one shape (n, neighbours of each row)"
        )
        raise UsageError(msg)
    if X is not None:
        matrix_parts(X, rows=len(rows))
    highest = np.iinfo(np.uint32).max
    if rows.min() < 0 or rows.max() > highest:
        wrong = int(rows[(rows < 0) | (rows > highest)][0])
        msg = (
            f"neighbours: row {wrong} is not one of the {len(rows)} rows; where a row has fewer neighbours, "
            f"write {highest} with a cosine of minus infinity"
        )
        raise UsageError(msg)
    return np.ascontiguousarray(rows, np.uint32), np.ascontiguousarray(cosines, np.float32)

"""Selection on plain arrays: `pick`, `k_center` and `kmeans`; `mllm_selector.neighbours` has the others.

A matrix of embeddings is one array or a list of arrays (parts of one matrix, such as memory-mapped files),
each two-dimensional, C-contiguous, float16 or float32. An Arrow column of fixed-size lists of these types,
without nulls, does as well: from pyarrow or any library with the Arrow PyCapsule interface (polars,
nanoarrow, ...). The values are read where they lie, in blocks, and never copied as a whole. float16 and
float32 of the same values give the same results, and so does any number of threads on any machine: randomness
is drawn per item from a counter-based generator (Philox), sums have a fixed order (a dot product is 64
interleaved partial sums), ties go to the lowest row. What 8-bit codes can rule out with a proven bound on
their error is never multiplied in float32, so this costs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_selector import _internal, methods
from mllm_selector.checks import (
    Embeddings,
    Report,
    checked_count,
    checked_rows,
    checked_seed,
    checked_weights,
    matrix_parts,
)
from mllm_selector.config import Amount, Limits, PickOptions, Settings
from mllm_selector.errors import UsageError
from mllm_selector.progress import SilentProgress
from mllm_selector.samples import Scored
from mllm_selector.sampling import grouped_sample

__all__ = ["Clusters", "Cover", "k_center", "kmeans", "pick"]


@dataclass(frozen=True)
class Clusters:
    """Result of `kmeans`.

    Attributes
    ----------
    centroids : ndarray of float32, shape (k, d)
        Means of the clusters' rows; of length 1 under the cosine metric.
    labels : ndarray of uint32, shape (n,)
        Cluster of each row.
    inertia : float
        Sum over the rows of the squared Euclidean, or the cosine, distance to their centroid.
    iterations : int
        Updates of the centroids made on the training rows; those on the samples before are not counted.
    """

    centroids: NDArray[np.float32]
    labels: NDArray[np.uint32]
    inertia: float
    iterations: int


@dataclass(frozen=True)
class Cover:
    """Result of `k_center`.

    Attributes
    ----------
    rows : ndarray of int64, shape (k,)
        The centres in the order in which they were taken: each prefix is the result for a smaller k.
    radii : ndarray of float32, shape (k,)
        After each centre, the greatest distance (times weight) of any row to its nearest centre.
    """

    rows: NDArray[np.int64]
    radii: NDArray[np.float32]


def pick(
    necessity: ArrayLike,
    embeddings: Embeddings | None = None,
    *,
    budget: str | int | float | Amount,
    method: str = "grouped",
    param: Mapping[str, Any] | None = None,
    columns: Mapping[str, ArrayLike] | None = None,
    groups: str | ArrayLike | None = None,
    group_count: int | None = None,
    share: str = "size-necessity",
    within: str | None = None,
    smooth: int | None = None,
    sources: ArrayLike | None = None,
    floors: Mapping[Any, str | int | float | Amount] | None = None,
    ceilings: Mapping[Any, str | int | float | Amount] | None = None,
    trim: float = 0.0,
    seed_rows: ArrayLike | None = None,
    seed_samples: str = "compete",
    skip_duplicates: float | None = None,
    order: str = "pool",
    seed: int = 0,
    threads: int | None = None,
) -> NDArray[np.int64]:
    """Choose samples, by default by necessity-based grouped sampling.

    The samples are put into groups, the budget is shared out among the groups, and samples are taken inside
    each group. This is our reading of the grouped sampling of MLLM-Selector (arXiv 2503.20502), whose
    formula for groups and shares is not public. Other methods, with their papers: `mllm_selector.methods`.

    Parameters
    ----------
    necessity : array of float, shape (n,)
        Necessity of each sample; NaN for samples that were not scored: these are never chosen. Negative
        values count as 0 in shares and weighted draws.
    embeddings : array or Arrow column of float16 or float32, shape (n, d), or list of such parts, optional
        Needed for ``groups="cluster"``, ``within="k-center"``, ``within="facility-location"`` and
        `skip_duplicates`, which all compare by cosine. Rows of samples without necessity are not looked at.
    budget : int, float or str
        How many samples to choose: a count, or a share of the n samples (``0.1``, ``"10%"``).
    method : str
        How samples are chosen: a method by its name, see ``mllm-selector pick --help``. `groups`, `share`,
        `within`, `smooth`, `trim` and `skip_duplicates` are of ``grouped`` only.
    param : mapping, optional
        The method's own parameters by name.
    columns : mapping of str to array of float, shape (n,), optional
        More scores by name, for methods that need them; NaN where a sample has none.
    groups : {"cluster", "necessity", "source", "random"} or array of shape (n,), optional
        ``cluster`` (default): spherical k-means on the embeddings, trained on at most 256 rows a cluster.
        ``necessity``: score strata of equal size. ``source``: the groups are `sources`. ``random``: random
        groups of equal size. An array (of numbers or strings) names the group of each sample.
    group_count : int, optional
        Number of groups; default ``sqrt(n / 2)`` up to 10,000 clusters, 10 strata or random groups.
    share : {"size-necessity", "necessity", "size", "equal"}
        What a group's share is proportional to: size times mean necessity, mean necessity, size, or nothing.
        A group gets at most what it has; the rest is shared out again. Shares are rounded by the
        largest remainder. If the necessity is 0 throughout, shares go by size.
    within : {"uniform", "top", "weighted", "k-center", "facility-location", "middle"}, optional
        How samples are taken in a group: drawn uniformly; the highest necessity first; drawn without
        replacement with probability proportional to necessity (Efraimidis and Spirakis 2006);
        spread out by greedy k-center (`k_center`); those that stand for the others best, by facility location
        on the graph of the group's 50 nearest neighbours (`facility_location`, with 4 probes, so that the
        graph of a group of up to 16,384 samples is exact); the nearest by rank to the group's median
        necessity. Default: facility location in clusters, uniform draws in other groups.
    smooth : int, optional
        Let the necessity of a sample be the mean over that of so many nearest others by cosine, without the
        highest and lowest tenth (rounded down). So a single wrong answer counts for nothing, and what is
        chosen by necessity inside a group is a region, not a sample. The time is that of
        `nearest_neighbours`.
    sources : array of shape (n,), optional
        Source of each sample, such as the data set that it came from: what `floors` and `ceilings` apply to.
    floors, ceilings : mapping of name to count or share of the budget, optional
        Least and most samples from each source, or from each group of the array `groups` if there are no
        `sources`. ``*`` stands for every name that is not given. Shares are rounded down for floors, up for
        ceilings. A ceiling of 0 leaves a source out. See the notes for what becomes of the groups' shares.
    trim : float
        Share of the highest necessity in each group that is never chosen, in [0, 1).
    seed_rows : array of int, optional
        Rows of the seed subset.
    seed_samples : {"compete", "include", "exclude"}
        Seed rows may be chosen like any other, are all taken and count in the budget, or are never chosen.
    skip_duplicates : float, optional
        Pass over samples whose embedding has at least this cosine, in (0, 1], with one chosen before.
    order : {"pool", "chosen"}
        Return ascending rows, or rows in the order of choice: every prefix keeps to the groups' shares.
    seed : int
        Random seed.
    threads : int, optional
        CPU threads; default all. The result does not depend on it.

    Returns
    -------
    ndarray of int64, shape (budget,)
        The chosen rows.

    Raises
    ------
    UsageError
        If an argument cannot work, the budget is above what can be chosen, or floors and ceilings cannot be
        kept.

    Notes
    -----
    Floors and ceilings work on strata: each source with a limit that can matter, and all other sources
    together. A group's weight (what its share is proportional to) is divided among its parts in the strata by
    the number of samples that can be chosen there. First the strata get their budgets: all parts get samples
    in proportion to weight, none more than it has; a stratum's sum that lies outside its bounds is moved to
    the nearer one, and the other strata get more or less, in proportion to weight, until all sums add up to
    the budget; these are rounded by the largest remainder. Then each stratum's budget is shared out among its
    parts as it is among groups otherwise, and samples are taken inside the parts. So a limit that is not
    reached leaves the groups' shares as they are, but for rounding, and limits that can never matter change
    nothing at all.

    Time is that of k-means for clusters, O(n k d) an iteration, and O(n log n) otherwise;
    ``within="k-center"`` adds O(sum of group size x quota x d), ``within="facility-location"`` O(sum of group
    size x min(group size, 16,384) x d), `skip_duplicates` O(budget^2 d).

    Examples
    --------
    >>> necessity = [0.1, 0.2, 3.0, 1.0, float("nan"), 2.0]
    >>> pick(necessity, budget=2, groups=["a", "a", "a", "b", "b", "b"], within="top")
    array([2, 5])
    >>> sources = ["ocr", "ocr", "ocr", "vqa", "vqa", "vqa"]
    >>> pick(necessity, budget=3, groups="source", sources=sources, within="top", ceilings={"ocr": 1})
    array([2, 3, 5])
    """
    options = PickOptions(
        budget=Amount.parse(budget),
        method=method,
        param=Settings.parse(param) if param else None,
        groups=groups if isinstance(groups, str) else "cluster",
        group_count=group_count,
        share=share,
        within=within,
        smooth=smooth,
        source_floor=Limits.parse(floors, "floors") if floors else None,
        source_ceiling=Limits.parse(ceilings, "ceilings") if ceilings else None,
        trim=trim,
        seed_samples=seed_samples,
        skip_duplicates=skip_duplicates,
        order=order,
        seed=seed,
        threads=threads,
    )
    scored = Scored.checked(necessity, embeddings, sources, seed_rows, columns)
    if groups is None or isinstance(groups, str):
        choice = methods.choose(scored, options, SilentProgress())
    elif method == "grouped":
        methods.prepare(options)
        choice = grouped_sample(scored, options, groups=groups)
    else:
        msg = f"groups: the method {method} does not use them; leave them out, or give them as sources"
        raise UsageError(msg)
    return np.sort(choice.rows) if order == "pool" else choice.rows


def kmeans(
    X: Embeddings,
    k: int,
    *,
    metric: str = "euclidean",
    seed: int = 0,
    max_iterations: int = 25,
    tolerance: float = 3e-4,
    train_rows: int | None = None,
    threads: int | None = None,
    progress: Report | None = None,
) -> Clusters:
    """Cluster rows by k-means.

    Greedy k-means++ seeding on a sample (Arthur and Vassilvitskii, SODA 2007), from 2,048 clusters on among
    candidates that k-means|| draws (Bahmani et al., PVLDB 2012); then Lloyd's iterations: on growing samples
    first, then on all training rows. A cluster that loses all its rows gets the row that is farthest from its
    centroid. In the result, every row has the nearest of all centroids.

    Parameters
    ----------
    X : array or Arrow column of float16 or float32, shape (n, d), or list of such parts
        The rows.
    k : int
        Number of clusters, at most n.
    metric : {"euclidean", "cosine"}
        ``cosine`` is spherical k-means: rows count by their direction, centroids have length 1.
    seed : int
        Random seed of the seeding and of the training sample.
    max_iterations : int
        Most updates of the centroids on each sample, and on the training rows.
    tolerance : float
        Stop once an update on the training rows lowers the inertia by at most this share, by the labels of a
        search among all centroids; 0 goes on until nothing changes.
    train_rows : int, optional
        Train on so many rows, drawn uniformly, and assign all of them in the end; default all rows.
    threads : int, optional
        CPU threads; default all. The result does not depend on it.
    progress : callable, optional
        Called with (done, total) now and then.

    Returns
    -------
    Clusters
        With every cluster non-empty. There are fewer than `k` only if X has fewer than `k` distinct rows (as
        far as float32 distances tell), or if no row is nearest to one of the last centroids.

    Raises
    ------
    UsageError
        If an argument cannot work, X holds NaN or infinity, or a row is zero under the cosine metric.

    Notes
    -----
    The seeding looks at 16 rows for each centroid (at least 4,096), k-means++ by their 8-bit codes. The first
    sample has 32 rows for each centroid (at least 8,192), each one after it 4 times as many, up to half of
    the training rows; one is left for the next once an update lowers the inertia by at most 0.3 %. Most of
    the way is made on samples, where an update costs less, as in the growing batches of Newling and Fleuret,
    Nested mini-batch k-means (NIPS 2016); the updates on all training rows mend what a sample cannot tell.

    A search among all centroids leaves each row a shortlist of the 8 whose scores 8-bit codes bound highest.
    The next updates go by the nearest on the list, which costs little, until they lower the inertia by at
    most `tolerance`, or by more than 1 % at once, so that the lists are out of date; then all centroids are
    searched again. Keeping to few centroids of each row is the idea of Wang et al., Fast approximate k-means
    via cluster closures (CVPR 2012); here an exact search confirms the end.

    Time O(n k d) for a search among all, at worst: 8-bit codes rule out most centroids of a row. Memory, X
    apart: about 44 bytes a row, 17 k d bytes.

    Examples
    --------
    >>> X = np.array([[0, 0], [0, 2], [9, 0], [9, 2]], np.float32)
    >>> clusters = kmeans(X, 2)
    >>> bool(clusters.labels[0] == clusters.labels[1] != clusters.labels[2] == clusters.labels[3])
    True
    >>> clusters.inertia
    4.0
    """
    checked_count("k", k)
    centroids, labels, inertia, iterations = _internal.kmeans(
        matrix_parts(X),
        None,
        k=k,
        metric=metric,
        seed=checked_seed(seed),
        max_iterations=checked_count("max_iterations", max_iterations),
        tolerance=tolerance,
        train_rows=None if train_rows is None else checked_count("train_rows", train_rows),
        threads=None if threads is None else checked_count("threads", threads),
        progress=progress,
    )
    return Clusters(centroids, labels, inertia, iterations)


def k_center(
    X: Embeddings,
    k: int,
    *,
    first: int | Sequence[int] | NDArray[np.integer[Any]] | str = 0,
    metric: str = "euclidean",
    weights: ArrayLike | None = None,
    threads: int | None = None,
    progress: Report | None = None,
) -> Cover:
    """Choose rows that cover all rows: exact greedy k-center (Gonzalez, TCS 38, 1985).

    Takes the row with the greatest distance to its nearest centre, again and again; with weights, the
    greatest weight times distance. Unweighted, the radius is at most twice the least possible for k centres.

    Parameters
    ----------
    X : array or Arrow column of float16 or float32, shape (n, d), or list of such parts
        The rows.
    k : int
        Number of centres, those of `first` included, at most n.
    first : int, sequence of int, or "mean"
        Row or rows to begin with, in this order, or the row nearest the mean.
    metric : {"euclidean", "cosine"}
        ``cosine`` is ``1 - x.y / (|x| |y|)``.
    weights : array of float, shape (n,), optional
        Weight of each row, at least 0.
    threads : int, optional
        CPU threads; default all. The result does not depend on it.
    progress : callable, optional
        Called with (done, total) now and then.

    Returns
    -------
    Cover

    Raises
    ------
    UsageError
        If an argument cannot work, X holds NaN or infinity, or a row is zero under the cosine metric.

    Notes
    -----
    The rows equal those of the plain algorithm, one pass over X for each centre, computed in
    float64; ties go to the lowest row. Time O(n k d) at worst. A row is compared with the
    centres since it was looked at last only when it may be the farthest (``rust/core/src/kcenter.rs``), most
    pairs by 8-bit codes with a proven bound on their error, some in float32, and in float64 where that is
    too near.

    Examples
    --------
    >>> X = np.array([[0.0], [1.0], [5.0], [9.0]], np.float32)
    >>> cover = k_center(X, 3)
    >>> cover.rows, cover.radii
    (array([0, 3, 2]), array([9., 4., 1.], dtype=float32))
    """
    starts: NDArray[np.int64] | None
    if isinstance(first, str):
        if first != "mean":
            msg = f"first: {first!r} is neither 'mean' nor a row or rows"
            raise UsageError(msg)
        starts = None
    else:
        starts = checked_rows("first", first)
    rows, radii = _internal.k_center(
        matrix_parts(X),
        k=checked_count("k", k),
        metric=metric,
        first=starts,
        weights=None if weights is None else checked_weights(weights),
        threads=None if threads is None else checked_count("threads", threads),
        progress=progress,
    )
    return Cover(rows, radii)

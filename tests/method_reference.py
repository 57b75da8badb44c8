"""The formulas of the rival selection methods, written out from their papers to be read, in plain NumPy."""

from __future__ import annotations

import math

import numpy as np

from reference import cosines


def deita(X, score, budget, threshold):
    """Visit by falling score and keep what is not near one kept before (arXiv 2312.15685, section 3)."""
    similar = cosines(X)
    kept: list[int] = []
    for row in sorted(range(len(score)), key=lambda row: (-score[row], row)):
        if len(kept) < budget and all(similar[row, other] < threshold for other in kept):
            kept.append(row)
    return kept


def self_filter(X, difficulty, budget, gamma=1.0, neighbours=10):
    """Take the most difficult, lower its nearest by gamma d cos^2 (arXiv 2402.12501, stage 2)."""
    similar = cosines(X)
    left = {row: float(value) for row, value in enumerate(difficulty)}
    chosen = []
    for _ in range(budget):
        row = max(left, key=lambda row: (left[row], -row))
        value = left.pop(row)
        chosen.append(row)
        for other in sorted(left, key=lambda other: (-similar[row, other], other))[:neighbours]:
            left[other] -= gamma * value * similar[row, other] ** 2
    return chosen


def weighted_cover(X, weights, budget):
    """Add the greatest weight times distance to the nearest chosen (D3, arXiv 2503.11441)."""
    distances = 1 - cosines(X)
    chosen = [int(np.argmax(weights))]
    while len(chosen) < budget:
        gains = weights * distances[:, chosen].min(axis=1)
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
    return chosen


def redundancy(X, groups):
    """For each row the greatest cosine to one before it, from the farthest from the centre (SemDeDup)."""
    similar = cosines(X)
    unit = np.asarray(X, np.float64) / np.linalg.norm(X, axis=1, keepdims=True)
    greatest = np.zeros(len(X))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        nearness = unit[members] @ unit[members].mean(axis=0)
        order = members[np.argsort(nearness, kind="stable")]
        upper = np.triu(similar[np.ix_(order, order)], 1)  # zeros elsewhere, as in the paper's code
        greatest[order] = upper.max(axis=0)
    return greatest


def visnec(scores, groups, share):
    """The highest scores above 0 of each cluster, the same share of each (arXiv 2603.01195)."""
    chosen = []
    for group in np.unique(groups):
        members = np.flatnonzero((groups == group) & (scores > 0))
        count = round(share * len(members))
        chosen += sorted(members, key=lambda row: (-scores[row], row))[:count]
    return chosen


def gaussian_kernel(X, bandwidth=1.0):
    """exp(-|x - y|^2 / (2 bandwidth^2)) of unit vectors."""
    return np.exp(-(2 - 2 * cosines(X)) / (2 * bandwidth**2))


def greedy_mmd(kernel, budget):
    """Argmin of mean(K) + mean(K[S+i, S+i]) - 2 mean(K[:, S+i]) (COINCIDE, arXiv 2406.10995)."""
    chosen: list[int] = []
    for _ in range(budget):
        best = None
        for row in range(len(kernel)):
            if row in chosen:
                continue
            with_it = [*chosen, row]
            distance = kernel.mean() + kernel[np.ix_(with_it, with_it)].mean() - 2 * kernel[:, with_it].mean()
            if best is None or distance < best[0]:
                best = (distance, row)
        chosen.append(best[1])
    return chosen


def coincide(X, labels, centroids, budget, temperature=0.1):
    """Clusters by share, each giving its share of what is left, prototypes inside; may give too few."""
    between = cosines(centroids)
    same = between > 0.9
    transfer = np.where(same, 0, between).sum(axis=1) / np.maximum((~same).sum(axis=1), 1)
    kernels = [gaussian_kernel(X[labels == cluster]) for cluster in range(len(centroids))]
    scores = transfer / np.array([kernel.mean() for kernel in kernels])
    order = np.argsort(-scores, kind="stable")
    chosen = []
    for place, cluster in enumerate(order):
        weights = np.exp(scores[order[place:]] / temperature)
        count = round((budget - len(chosen)) * weights[0] / weights.sum())
        members = np.flatnonzero(labels == cluster)
        count = min(count, len(members))
        chosen += members[greedy_mmd(kernels[cluster], count)].tolist()
    return chosen


def typicality(X, groups, count=5):
    """Mean cosine to the nearest others of the group (PreSel, arXiv 2503.07591)."""
    similar = cosines(X)
    means = np.zeros(len(X))
    for row in range(len(X)):
        others = np.flatnonzero((groups == groups[row]) & (np.arange(len(X)) != row))
        if len(others):
            means[row] = np.sort(similar[row, others])[::-1][:count].mean()
    return means


def presel_shares(ratios, sources):
    """softmax(-IRS / T) over the tasks, IRS the mean ratio of a task, T = 1 / sqrt(tasks)."""
    tasks = np.unique(sources)
    scores = np.array([np.nanmean(ratios[sources == task]) for task in tasks])
    weights = np.exp(-scores * math.sqrt(len(tasks)))
    return weights / weights.sum()


def mmssr(scores, bins_of, budget, threshold=0.0):
    """Share the budget out among capabilities, each part among the bins, ascending by size; in rounds.

    Parameters
    ----------
    scores : dict of str to array of shape (n,)
        By capability.
    bins_of : list of list
        Bins of each sample.
    budget : int
        Samples to choose.
    """
    chosen: list[int] = []
    names = list(scores)
    while len(chosen) < budget:
        part = max((budget - len(chosen)) // len(names), 1)
        useless = []
        for name in names:
            part = min(part, budget - len(chosen))
            able = [row for row in range(len(bins_of)) if row not in chosen and scores[name][row] > threshold]
            able.sort(key=lambda row: (-scores[name][row], row))
            new = _from_bins(able, bins_of, part)
            if not new:
                useless.append(name)
            chosen += new
            if len(chosen) == budget:
                break
        names = [name for name in names if name not in useless]
    return chosen


def _from_bins(able, bins_of, part):
    names = sorted({name for row in able for name in bins_of[row]})
    bins = sorted(([row for row in able if name in bins_of[row]] for name in names), key=len)
    new: list[int] = []
    debt = 0
    for members in bins:
        if len(new) == part:
            break
        each = max(part // len(bins), 1)
        there = [row for row in members if row not in new]
        new += there[: min(each + debt, part - len(new))]
        debt = max(each + debt - len(there), 0)
    return new


def smoothed(X, necessity, count):
    """Mean necessity of the nearest others, without the highest and the lowest tenth."""
    similar = cosines(X)
    np.fill_diagonal(similar, -np.inf)
    near = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    values = np.sort(np.asarray(necessity, np.float64)[near], axis=1)
    cut = count // 10
    return values[:, cut : count - cut].mean(axis=1)

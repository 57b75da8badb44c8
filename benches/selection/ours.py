"""The same tasks by this package, in the form of `peers`."""

from __future__ import annotations

import time

import numpy as np

import mllm_selector


def k_center(X, k: int, threads: int):
    cover = mllm_selector.k_center(X, k, threads=threads)
    return {"rows": cover.rows, "radius": cover.radii[-1]}


def kmeans(X, k: int, threads: int, **options):
    found = mllm_selector.kmeans(X, k, threads=threads, **options)
    return {"centroids": found.centroids, "labels": found.labels, "iterations": found.iterations}


def duplicates(X, threshold: float, threads: int):
    return {"pairs": mllm_selector.near_duplicates(X, threshold, pairs=True, threads=threads).pairs}


def skip(X, necessity, threshold: float, threads: int):
    order = np.argsort(-necessity, kind="stable")
    return {"rows": mllm_selector.near_duplicates(X, threshold, priority=order, threads=threads).kept}


def facility_location(X, k: int, neighbours: int, threads: int):
    started = time.perf_counter()
    graph = mllm_selector.nearest_neighbours(X, neighbours, threads=threads)
    searched = time.perf_counter()
    found = mllm_selector.facility_location(None, k, neighbours=graph, threads=threads)
    return {
        "rows": found.rows,
        "neighbours": graph.rows,
        "cosines": graph.cosines,
        "graph_seconds": searched - started,
    }


def pick(X, necessity, budget: int, threads: int, within: str | None = None):
    return {"rows": mllm_selector.pick(necessity, X, budget=budget, threads=threads, within=within)}

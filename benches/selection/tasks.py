"""What is compared with what, and how the results are checked."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import checks
import data
from measure import Arrays, Contender

PAIRS_FROM = 0.95
SKIP_FROM = 0.9

# Distances that the plain k-center in float64 takes a minute or two for.
PLAIN_PAIRS = 10**8


@dataclass(frozen=True)
class Task:
    """A comparison: its contenders for given options and threads, and the check of one result.

    The check gets the rows, the options, the result and the result that it is compared with.
    """

    contenders: Callable[[Namespace, int], list[Contender]]
    check: Callable[[object, Namespace, Arrays, Arrays], str]


def k_center(options: Namespace, threads: int) -> list[Contender]:
    k, centres = options.k, min(options.centres, options.k)
    return [
        Contender(
            "NumPy, a product per centre",
            "peers.numpy_k_center",
            {"k": k, "centres": centres},
            estimate=lambda seconds, _: seconds * k / centres,
            note=f"extrapolated from {centres} centres" if centres < k else "",
        ),
        Contender("NumPy, lazy batches", "peers.numpy_lazy_k_center", {"k": k}),
        Contender("ours, float32", "ours.k_center", {"k": k, "threads": threads}),
        Contender(
            "ours, float16",
            "ours.k_center",
            {"k": k, "threads": threads},
            dtype="float16",
            against="ours, float32",
        ),
    ]


def check_k_center(X, options, result, reference):
    if len(X) * options.k <= PLAIN_PAIRS:
        return checks.greedy_order(X, result["rows"])
    greedy = checks.farthest(X, result["rows"])
    if result is reference:
        return greedy
    return f"{checks.same_order(result['rows'], reference['rows'])}; {greedy}"


def kmeans(options: Namespace, threads: int) -> list[Contender]:
    timed = min(options.timed_iterations, options.iterations)
    return [
        Contender(
            f"faiss, all rows, {options.iterations} iterations",
            "peers.faiss_kmeans",
            {"k": options.k, "iterations": timed},
            estimate=lambda _, arrays: float(
                arrays["train_seconds"] * options.iterations / timed + arrays["assign_seconds"]
            ),
            note=f"extrapolated from {timed} iterations" if timed < options.iterations else "",
        ),
        Contender("scikit-learn MiniBatchKMeans", "peers.sklearn_minibatch_kmeans", {"k": options.k}),
        Contender("ours", "ours.kmeans", {"k": options.k, "threads": threads}),
    ]


def check_kmeans(X, options, result, reference):
    return f"inertia a row {checks.inertia(X, result['centroids']):.5f}"


def duplicates(options: Namespace, threads: int) -> list[Contender]:
    queries = min(options.queries, options.rows)
    return [
        Contender(
            "faiss IndexFlatIP range search",
            "peers.faiss_range_search",
            {"threshold": PAIRS_FROM, "queries": queries},
            estimate=lambda _, arrays: float(
                arrays["add_seconds"] + arrays["search_seconds"] * options.rows / queries
            ),
            note=f"extrapolated from {queries} query rows" if queries < options.rows else "",
        ),
        Contender("ours", "ours.duplicates", {"threshold": PAIRS_FROM, "threads": threads}),
    ]


def check_duplicates(X, options, result, reference):
    if result is reference:
        return ""
    queries = data.sample(options.rows, options.queries)
    agreement = checks.same_pairs(X, result["pairs"], reference["pairs"], PAIRS_FROM, queries)
    return f"{agreement} of {len(queries)} query rows"


def skip(options: Namespace, threads: int) -> list[Contender]:
    arguments = {"threshold": SKIP_FROM}
    return [
        Contender("NumPy, blocks of products", "peers.numpy_skip", arguments, scored=True),
        Contender("PyTorch, blocks of products", "peers.torch_skip", arguments, scored=True),
        Contender("ours", "ours.skip", {**arguments, "threads": threads}, scored=True),
    ]


def check_skip(X, options, result, reference):
    if result is reference:
        return ""
    return checks.same_kept(X, result["rows"], reference["rows"], data.necessity(len(X)))


def facility(options: Namespace, threads: int) -> list[Contender]:
    arguments = {"k": options.k, "neighbours": options.neighbours}
    return [
        Contender("faiss IndexFlatIP + apricot, lazy", "peers.faiss_apricot", arguments),
        Contender("ours", "ours.facility_location", {**arguments, "threads": threads}),
    ]


def check_facility(X, options, result, reference):
    expected = reference["neighbours"], reference["cosines"]
    found = [f"graph {float(result['graph_seconds']):.2f} s"]
    if result is not reference:
        found.append(checks.same_graph((result["neighbours"], result["cosines"]), expected))
    return "; ".join([*found, checks.coverage(X, result["rows"], expected)])


def pick(options: Namespace, threads: int) -> list[Contender]:
    budget = {"budget": options.rows // 10}
    full, mini = budget | {"mini_batch": False}, budget | {"mini_batch": True}
    ours = budget | {"threads": threads}
    return [
        Contender(who, function, arguments, scored=True)
        for who, function, arguments in (
            ("scikit-learn KMeans, uniform draws", "peers.sklearn_pick", full),
            ("scikit-learn MiniBatchKMeans, uniform draws", "peers.sklearn_pick", mini),
            (
                "scikit-learn MiniBatchKMeans, facility location",
                "peers.sklearn_pick",
                mini | {"neighbours": 50},
            ),
            ("ours, facility location (default)", "ours.pick", ours),
            ("ours, uniform draws", "ours.pick", ours | {"within": "uniform"}),
        )
    ]


def check_pick(X, options, result, reference):
    return checks.distinct(result["rows"])


def memory(options: Namespace, threads: int) -> list[Contender]:
    return [
        Contender(
            f"ours, {name}, float16 file mapped",
            f"ours.{function}",
            {"k": options.k, "threads": threads},
            dtype="float16",
            mapped=True,
        )
        for name, function in (("k-center", "k_center"), ("k-means", "kmeans"))
    ]


def check_memory(X, options, result, reference):
    if "radius" in result:
        return checks.within_radius(X, result["rows"], float(result["radius"]))
    return checks.nearest_centroids(X, result["centroids"], result["labels"])


TASKS = {
    "kcenter": Task(k_center, check_k_center),
    "kmeans": Task(kmeans, check_kmeans),
    "duplicates": Task(duplicates, check_duplicates),
    "skip": Task(skip, check_skip),
    "facility": Task(facility, check_facility),
    "pick": Task(pick, check_pick),
    "memory": Task(memory, check_memory),
}

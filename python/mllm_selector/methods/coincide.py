"""COINCIDE: clusters by transfer and density, prototypes inside (Lee, Li and Hwang, arXiv 2406.10995).

With unit vectors ``e``, for each cluster ``c`` the transfer ``T_c`` is the mean cosine of its centroid to
the centroids whose cosine with it is at most 0.9, and the density ``D_c`` the mean of ``exp(-|e_i - e_j|^2
/ 2)`` over all pairs of its samples. Its share is ``softmax(T_c / (0.1 D_c))``. Clusters are visited by
falling share, and each gives its share of what is left of the budget, rounded, or all that it has; the
shares of the clusters after it are made anew. In a cluster, samples are chosen greedily by the squared
maximum mean discrepancy to the cluster (`mllm_selector_core::greedy_mmd`, incremental: one pass over the
cluster for each pick).

The paper's embeddings are activations of five layers of a small model, the transfer is by their language
half alone, and there are 1.5 % as many clusters as samples: here all is by the score stage's embeddings,
and clusters are as many as `group_count` says. What the last clusters cannot give is asked of the others
again, so that the budget is met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import option
from mllm_selector.methods.base import Method, Parameters, Samples, Task, interleave

__all__ = ["METHOD"]


@dataclass(frozen=True, kw_only=True)
class _Coincide(Parameters):
    temperature: float = option(0.1, help="Of the softmax over the clusters.")
    bandwidth: float = option(1.0, help="Width of the Gaussian kernel between unit vectors.")
    same: float = option(0.9, help="Centroids of a cosine above this do not count in the transfer.")

    def check(self) -> None:
        """Check the parameters."""
        self.at_least("temperature", 0, above=True)
        self.at_least("bandwidth", 0, above=True)


def _groups(samples: Samples, parameters: _Coincide) -> NDArray[np.uint32]:
    return samples.clusters()[1]


def _transfer(centroids: NDArray[np.float32], same: float) -> NDArray[np.float64]:
    """Return the mean cosine of each centroid to those that are not the same; 0 if all are."""
    # Not a matrix product, whose sums depend on the machine.
    vectors = centroids.astype(np.float64)
    transfer = np.zeros(len(vectors))
    for place, vector in enumerate(vectors):
        cosines = (vectors * vector).sum(axis=1)
        others = cosines[cosines <= same]
        transfer[place] = others.mean() if len(others) else 0
    return transfer


def _quotas(budget: int, values: NDArray[np.float64], rooms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Share the budget out: `values` are the exponents of the softmax, `rooms` what each cluster can give."""
    order = np.argsort(-values, kind="stable")
    quotas = np.zeros(len(values), np.int64)
    while budget:
        order = order[quotas[order] < rooms[order]]
        # As all clusters behind one have lower exponents, none overflows.
        for place, cluster in enumerate(order):
            rest = np.exp(values[order[place:]] - values[cluster])
            share = round(budget * float(rest[0] / rest.sum()))
            given = min(share, int(rooms[cluster] - quotas[cluster]))
            quotas[cluster] += given
            budget -= given
    return quotas


def _choose(task: Task, parameters: _Coincide) -> NDArray[np.int64]:
    samples, groups = task.samples, task.groups
    assert groups is not None
    centroids, _ = samples.clusters()
    threads = samples.options.threads
    sums = samples.once(
        "kernel sums",
        lambda: _internal.kernel_sums(
            samples.matrix,
            samples.index(),
            groups,
            bandwidth=parameters.bandwidth,
            threads=threads,
            progress=samples.report("density", "samples"),
        ),
    )
    sizes = np.bincount(groups)
    density = np.bincount(groups, sums) / sizes.astype(np.float64) ** 2
    exponents = _transfer(centroids, parameters.same) / density / parameters.temperature
    quotas = _quotas(task.budget, exponents, np.bincount(groups[task.open], minlength=len(sizes)))
    is_open = np.zeros(len(samples), np.bool_)
    is_open[task.open] = True
    chosen = _internal.greedy_mmd(
        samples.matrix,
        samples.index(),
        groups,
        sums=sums,
        is_open=is_open,
        taken=np.sort(task.taken),
        quotas=quotas,
        bandwidth=parameters.bandwidth,
        threads=threads,
        progress=samples.report("prototypes", "samples"),
    )
    return interleave(np.split(chosen, np.cumsum(quotas)[:-1]))


METHOD = Method(
    name="coincide",
    about="prototypes of each cluster, more of those that transfer and are not dense (COINCIDE)",
    choose=_choose,
    parameters=_Coincide,
    groups=_groups,
    uses=frozenset({"group_count"}),
)

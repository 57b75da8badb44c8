"""Histograms of necessity, in bins of round widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "bin_edges", "nice_step"]

LEAST_BINS, MOST_BINS = 10, 60

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Histogram:
    """Numbers of samples by necessity.

    Attributes
    ----------
    edges : list of float
        Edges of the bins, closed on the left; the last bin is closed on both sides and may be wider
        than the others.
    pool, chosen : list of int
        Samples of the pool, and chosen ones among them, in each bin.
    """

    edges: list[float]
    pool: list[int]
    chosen: list[int]

    @property
    def has_tail(self) -> bool:
        """Whether the last bin is wider than the others."""
        edges = self.edges
        return len(edges) > 2 and edges[-1] - edges[-2] > (edges[1] - edges[0]) * (1 + 1e-6)

    def bin_name(self, index: int) -> str:
        """Say what a bin holds."""
        low, high = self.edges[index], self.edges[index + 1]
        if self.has_tail and index == len(self.pool) - 1:
            return f"{low:.4g} and more, up to {high:.4g}"
        return f"{low:.4g} to {high:.4g}"

    @classmethod
    def of(cls, necessity: Floats, chosen: Flags, edges: Floats) -> Self:
        """Count the samples that were scored."""
        scored = ~np.isnan(necessity)
        return cls(
            edges=edges.tolist(),
            pool=np.histogram(necessity[scored], edges)[0].tolist(),
            chosen=np.histogram(necessity[scored & chosen], edges)[0].tolist(),
        )


def nice_step(span: float, steps: int) -> float:
    """Return the round number (1, 2 or 5 times a power of ten) that cuts a span into at most some steps."""
    rough = span / steps
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def bin_edges(necessity: Floats) -> Floats:
    """Choose bins of a round width, and one last bin for the thin tail, which would flatten the rest."""
    values = necessity[~np.isnan(necessity)]
    if not len(values):
        return np.array([0.0, 1.0])
    low, high, highest = float(min(values.min(), 0.0)), float(np.quantile(values, 0.995)), float(values.max())
    if highest <= low:
        return np.array([low, low + 1.0])
    bins = min(MOST_BINS, max(LEAST_BINS, int(2 * math.sqrt(len(values)))))
    step = nice_step((high if high > low else highest) - low, bins)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    edges = [step * number for number in range(first, last + 1)]
    return np.array(edges if highest <= edges[-1] else [*edges, highest], dtype=np.float64)

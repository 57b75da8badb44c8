"""Means over seeds with Student-t intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

__all__ = ["CONFIDENCE", "Estimate", "estimate", "t_quantile"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes
    ----------
    mean : float
        The mean.
    half_width : float or None
        Half of the 95 % confidence interval; None for one seed, of which no spread is known.
    count : int
        Seeds.
    """

    mean: float
    half_width: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values and its Student-t confidence interval.

    For a paired comparison, `values` are the differences of the pairs.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = t_quantile((1 + CONFIDENCE) / 2, count - 1)
    return Estimate(mean, quantile * math.sqrt(variance / count), count)


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution.

    Parameters
    ----------
    probability : float
        Above 0.5 and below 1.
    degrees : int
        Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _central(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _central(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def _central(t: float, degrees: int) -> float:
    """Return the probability of a value between -t and t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = total = cosine if odd else 1.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0))

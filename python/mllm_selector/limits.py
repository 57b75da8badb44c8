"""How many samples each source must and may give."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from mllm_selector import _internal
from mllm_selector.config import Limits, PickOptions
from mllm_selector.errors import UsageError
from mllm_selector.samples import NAMES_SHOWN, Labels

__all__ = ["check_limits", "limits_of"]

NO_CEILING = 2**64 - 1


def limits_of(
    groups: Labels | None, sources: Labels | None, options: PickOptions, budget: int
) -> tuple[Labels | None, list[tuple[str, int, int]]]:
    """Return the labels that limits apply to, and the limit of each."""
    if options.source_floor is None and options.source_ceiling is None:
        return None, []
    labels = groups if sources is None else sources
    if labels is None:
        msg = "floor, ceiling: these need names; give an array with the source of each sample as sources"
        raise UsageError(msg)
    return labels, _limits([str(name) for name in labels.names], options, budget)


def _limits(names: list[str], options: PickOptions, budget: int) -> list[tuple[str, int, int]]:
    """Return name, floor and ceiling of each source in samples.

    Shares are rounded down for floors and up for ceilings: so floors that add up to 100 % or less, and
    ceilings that add up to 100 % or more, fit any budget.
    """
    floors = _amounts("floor", options.source_floor, names)
    ceilings = _amounts("ceiling", options.source_ceiling, names)
    limits = []
    for name in names:
        floor, ceiling = floors.of(name), ceilings.of(name)
        least = 0 if floor is None else math.floor(floor.exactly_of(budget))
        most = NO_CEILING if ceiling is None else math.ceil(ceiling.exactly_of(budget))
        limits.append((name, least, most))
    return limits


def _amounts(what: str, limits: Limits | None, names: list[str]) -> Limits:
    """Check that every name is known."""
    if limits is None:
        return Limits({})
    for name in limits.amounts:
        if name != "*" and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            shown = ", ".join(sorted(names)[:NAMES_SHOWN])
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            msg = f"{what} of '{name}': nothing has this name; {hint}known are {shown}{more}"
            raise UsageError(msg)
    return limits


def check_limits(sizes: Mapping[str, int], options: PickOptions, budget: int) -> None:
    """Check that limits can be kept by sources of given sizes, as far as that is known before scoring.

    Parameters
    ----------
    sizes : mapping of str to int
        Samples of each source.
    options : PickOptions
        With the limits.
    budget : int
        Samples to choose.

    Raises
    ------
    UsageError
        If a limit names no source, or the limits cannot be kept.
    """
    if options.source_floor is None and options.source_ceiling is None:
        return
    _internal.check_limits(budget, _limits(list(sizes), options, budget), list(sizes.values()))

"""The groups that the budget was shared out among."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Group", "describe_groups"]

GROUPS_KEY = b"mllm_selector.groups"


@dataclass(frozen=True)
class Group:
    """One group; `size` is None where the selection does not say it.

    `mean_necessity` is that of all samples of the group where the selection says it, else of the
    chosen ones. `main_source` is the most frequent source of the chosen ones.
    """

    group: int
    size: int | None
    chosen: int
    mean_necessity: float | None
    main_source: str | None
    main_source_share: float | None


def describe_groups(
    selection: pa.Table, codes: NDArray[np.int32], names: list[str]
) -> tuple[list[Group], bool]:
    """Describe the groups: as the selection's metadata tells them, else by the chosen samples alone."""
    numbers = selection["group"].to_numpy()
    sources = codes[selection["row"].to_numpy().astype(np.int64)]
    chosen = dict(zip(*(part.tolist() for part in np.unique(numbers, return_counts=True)), strict=True))
    main = _main_sources(numbers, sources, names)
    metadata = selection.schema.metadata or {}
    whole = GROUPS_KEY in metadata
    told = json.loads(metadata[GROUPS_KEY]) if whole else _of_chosen(selection)
    return [
        Group(
            group=group["group"],
            size=group["size"],
            chosen=chosen.get(group["group"], 0),
            mean_necessity=group["mean_necessity"],
            main_source=main.get(group["group"], (None, None))[0],
            main_source_share=main.get(group["group"], (None, None))[1],
        )
        for group in told
    ], whole


def _of_chosen(selection: pa.Table) -> list[dict[str, Any]]:
    """Return number and mean necessity of each group among the chosen samples."""
    necessity = selection["necessity"].to_numpy().astype(np.float64)
    scored = ~np.isnan(necessity)
    groups, index = np.unique(selection["group"].to_numpy(), return_inverse=True)
    sums = np.bincount(index[scored], necessity[scored], minlength=len(groups))
    counts = np.bincount(index[scored], minlength=len(groups))
    return [
        {"group": group, "size": None, "mean_necessity": total / count if count else None}
        for group, total, count in zip(groups.tolist(), sums.tolist(), counts.tolist(), strict=True)
    ]


def _main_sources(
    numbers: NDArray[np.int32], sources: NDArray[np.int32], names: list[str]
) -> dict[int, tuple[str, float]]:
    """Return the most frequent source of each group's chosen samples, and its share of them."""
    pairs, counts = np.unique(np.stack([numbers, sources], axis=1), axis=0, return_counts=True)
    totals: Counter[int] = Counter()
    best: dict[int, tuple[int, int]] = {}
    for (group, code), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        totals[group] += count
        best[group] = max(best.get(group, (0, 0)), (count, -code))
    return {group: (names[-code], count / totals[group]) for group, (count, code) in best.items()}

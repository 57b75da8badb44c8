"""The grid: which trainings there are, in which order they are run, and where their records go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ABLATIONS", "METHODS", "PLANS", "RIVALS", "SAMPLED", "Case", "Records", "planned"]

# Keyword arguments of `mllm_selector.pick`. Nothing is tuned; deita's threshold lets it meet the budgets.
RIVALS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "stratified": {"method": "stratified"},
    "top": {"method": "top"},
    "middle": {"method": "middle"},
    "k-center": {"method": "k-center"},
    "weighted-k-center": {"method": "weighted-k-center"},
    "d3": {"method": "d3"},
    "visnec": {"method": "visnec"},
    "coincide": {"method": "coincide"},
    "deita": {"method": "deita", "param": {"threshold": 0.99}},
    "self-filter": {"method": "self-filter"},
    "presel": {"method": "presel"},
    "semdedup": {"method": "semdedup"},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "share necessity": {"share": "necessity"},
    "share size": {"share": "size"},
    "share equal": {"share": "equal"},
    "trim 10 %": {"trim": 0.1},
    "within top": {"within": "top"},
    "within weighted": {"within": "weighted"},
    "within middle": {"within": "middle"},
    "within k-center": {"within": "k-center"},
    "score strata": {"groups": "necessity"},
    "50 groups": {"group_count": 50},
    "400 groups": {"group_count": 400},
    "smoothed, weighted": {"groups": "random", "group_count": 1, "smooth": 30, "within": "weighted"},
}
# How many samples of each cluster are scored; clusters are made of embeddings that cost no language model.
SAMPLED: dict[str, int | None] = {"4 a cluster": 4, "14 a cluster": 14, "all, cheap clusters": None}
METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "families equal": {"method": "stratified", "param": {"share": "equal"}},
    **RIVALS,
    **ABLATIONS,
    **{name: {"scored_of_each": count} for name, count in SAMPLED.items()},
}
"""All methods of the grid. ``families equal`` is told what no user knows: the family of every sample."""


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes
    ----------
    draw : int
        Seed of the pool, the test set, the seed subset, the selection and the training.
    mix : str
        A name of `world.MIXES`.
    wrong : float
        Share of wrong answers in the pool.
    method : str
        A name of `METHODS`.
    budget : float
        Percent of the pool.
    length : str
        ``epochs``: four passes over the subset; ``steps``: as many steps as four passes over 15 % take.
    start : str
        ``pretrained`` or ``seed``: the weights that training starts from.
    """

    draw: int
    mix: str = "skewed"
    wrong: float = 0.05
    method: str = "random"
    budget: float = 5.0
    length: str = "epochs"
    start: str = "pretrained"


# Draws from 1000 on are for tuning; nothing of them is reported.
DRAWS = range(5)
TUNING_DRAWS = range(1000, 1003)
FEW = ("random", "grouped", "families equal")


def _cases(
    draws: Sequence[int], budgets: Sequence[float], methods: Sequence[str], **fixed: Any
) -> list[Case]:
    return [
        Case(draw=draw, budget=budget, method=method, **fixed)
        for budget in budgets
        for draw in draws
        for method in methods
    ]


def _main() -> list[Case]:
    return _cases(DRAWS, (5, 15), FEW)


def _rivals() -> list[Case]:
    return _cases(DRAWS, (5, 15), tuple(RIVALS))


def _ceiling() -> list[Case]:
    return _cases(DRAWS, (100,), ("random",)) + _cases(DRAWS, (1, 40), FEW)


def _noise() -> list[Case]:
    methods = ("random", "grouped", "trim 10 %", "families equal", "top", "weighted-k-center")
    return [case for wrong in (0.15, 0.0) for case in _cases(DRAWS, (5, 15), methods, wrong=wrong)]


def _control() -> list[Case]:
    return _cases(DRAWS, (5, 15), ("random", "grouped"), mix="uniform")


def _counted() -> list[Case]:
    """Random draws that also get the 2.5 % of the seed subset."""
    return _cases(DRAWS, (7.5, 17.5), ("random",))


def _compute() -> list[Case]:
    """Random draws on which training takes what selection and training on 5 and 15 % take; see run.py."""
    return _cases(DRAWS, (20.8, 30.8), ("random",))


def _ablations() -> list[Case]:
    return _cases(DRAWS, (5, 15), tuple(ABLATIONS))


def _sampled() -> list[Case]:
    return _cases(DRAWS, (5, 15), tuple(SAMPLED))


def _start() -> list[Case]:
    return _cases(DRAWS, (5, 15), FEW, start="seed")


def _steps() -> list[Case]:
    return _cases(DRAWS, (1, 5, 40), FEW, length="steps") + _cases(DRAWS, (100,), ("random",), length="steps")


def _tune() -> list[Case]:
    methods = ("random", "grouped", "families equal", "trim 10 %", "share necessity", "deita")
    return _cases(TUNING_DRAWS, (5, 15), methods)


PLANS = {
    "main": _main,
    "rivals": _rivals,
    "ceiling": _ceiling,
    "noise": _noise,
    "control": _control,
    "counted": _counted,
    "compute": _compute,
    "ablations": _ablations,
    "sampled": _sampled,
    "start": _start,
    "steps": _steps,
    "tune": _tune,
}


def planned(names: Sequence[str], draws: Sequence[int] | None = None) -> Iterator[Case]:
    """Yield the cases of some plans in order, each once; on request those of some draws."""
    for case in dict.fromkeys(case for name in names for case in PLANS[name]()):
        if draws is None or case.draw in draws:
            yield case


class Records:
    """A file with a JSON object a line, one for each finished training.

    Parameters
    ----------
    path : Path
        The file; a last line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        if path.exists() and path.stat().st_size > len(whole) + bool(whole):
            os.truncate(path, len(whole) + bool(whole))

    def of(self, settings: str) -> dict[Case, dict[str, Any]]:
        """Return what is recorded under some settings, by case."""
        return {Case(**row["case"]): row for row in self.rows if row["settings"] == settings}

    def add(self, settings: str, case: Case, **fields: Any) -> None:
        """Write a line, on the disk when this returns."""
        row = {"settings": settings, "case": asdict(case), **fields}
        with self.path.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

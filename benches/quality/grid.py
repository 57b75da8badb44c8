"""The grid: which trainings there are, in which order they are run, and where their records go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "ABLATIONS",
    "BY_DEFAULT",
    "CHEAPER",
    "FINALS",
    "METHODS",
    "PASSED",
    "PLANS",
    "RIVALS",
    "SCORINGS",
    "SCORING_ABLATIONS",
    "TUNED",
    "TUNED_OVER_NOISE",
    "UNIFORM",
    "Case",
    "Records",
    "Scoring",
    "cost",
    "planned",
    "scored",
    "scoring_of",
    "uniform",
    "with_cost",
]

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
    "within uniform": {"within": "uniform"},
    "within top": {"within": "top"},
    "within weighted": {"within": "weighted"},
    "within middle": {"within": "middle"},
    "within k-center": {"within": "k-center"},
    "share necessity": {"share": "necessity"},
    "share size": {"share": "size"},
    "share equal": {"share": "equal"},
    "trim 10 %": {"trim": 0.1},
    "skip 0.98": {"skip_duplicates": 0.98},
    "50 groups": {"group_count": 50},
    "400 groups": {"group_count": 400},
    "score strata": {"groups": "necessity"},
    "smoothed, weighted": {"groups": "random", "group_count": 1, "smooth": 30, "within": "weighted"},
}


@dataclass(frozen=True)
class Scoring:
    """Where the necessity and the embeddings come from that a method is given.

    Attributes
    ----------
    seed_size : float
        Size of the seed subset, as a multiple of 2.5 % of the pool.
    small : bool
        Whether the seed model has one layer of width 32, instead of the target's three of width 64.
    metric : str
        What stands for the necessity: ``nll``, ``upd``, ``visnec`` or ``ifd``.
    positions : str
        Of which positions the embedding is the mean: ``all``, ``answer`` or ``image``; or ``inputs``: that of
        the question's words and of the image's features, which no language model is run for.
    cheap : bool
        Whether clusters, settled ones, are made of the embeddings of the inputs, as for samples of clusters.
    of_each : int or None
        How many samples of each cheap cluster are scored; None for all.
    power : float
        What a cluster's mean necessity is raised to in its share.
    floor : float
        What is added to the necessity of every sample, as a multiple of the pool's mean: no group has a share
        of about nothing, however easy it is.
    """

    seed_size: float = 1.0
    small: bool = False
    metric: str = "nll"
    positions: str = "all"
    cheap: bool = False
    of_each: int | None = None
    power: float = 1.0
    floor: float = 0.0


BY_DEFAULT = Scoring()
CHEAPER = {
    "all, cheap clusters": Scoring(cheap=True),
    "28 a cluster": Scoring(cheap=True, of_each=28),
    "14 a cluster": Scoring(cheap=True, of_each=14),
    "7 a cluster": Scoring(cheap=True, of_each=7),
    "4 a cluster": Scoring(cheap=True, of_each=4),
    "3 a cluster": Scoring(cheap=True, of_each=3),
    "small seed model": Scoring(small=True),
    "small, all, cheap": Scoring(small=True, cheap=True),
    "small, 7 a cluster": Scoring(small=True, cheap=True, of_each=7),
    "small, 3 a cluster": Scoring(small=True, cheap=True, of_each=3),
}
"""Selections that cost less than the default: fewer samples scored, a smaller seed model."""
SCORING_ABLATIONS = {
    "seed of 1 %": Scoring(seed_size=0.4),
    "seed of 5 %": Scoring(seed_size=2),
    "seed of 10 %": Scoring(seed_size=4),
    "mean ** 0.5": Scoring(power=0.5),
    "mean ** 2": Scoring(power=2),
    "necessity upd": Scoring(metric="upd"),
    "necessity visnec": Scoring(metric="visnec"),
    "necessity ifd": Scoring(metric="ifd"),
    "answer embedding": Scoring(positions="answer"),
    "image embedding": Scoring(positions="image"),
}
CANDIDATES: dict[str, dict[str, Any]] = {
    "skip 0.95": {"skip_duplicates": 0.95},
    "skip 0.99": {"skip_duplicates": 0.99},
    "answer, k-center": {"within": "k-center"},
    "answer, skip 0.95": {"skip_duplicates": 0.95},
    "answer, 50 groups": {"group_count": 50},
    "answer, trim 10 %": {"trim": 0.1},
    "inputs": {},
    "inputs, skip 0.98": {"skip_duplicates": 0.98},
    "inputs, skip 0.99": {"skip_duplicates": 0.99},
    "inputs, skip 0.995": {"skip_duplicates": 0.995},
    "inputs, k-center": {"within": "k-center"},
    "inputs, middle": {"within": "middle"},
    "inputs, 50 groups": {"group_count": 50},
    "inputs, 150 groups": {"group_count": 150},
    "inputs, 400 groups": {"group_count": 400},
    "inputs, trim 10 %": {"trim": 0.1},
    "floor 0.25, trim 10 %": {"trim": 0.1},
    "inputs, floor 0.25, trim 10 %": {"trim": 0.1},
    "inputs, floor 0.5, trim 10 %": {"trim": 0.1},
}
SCORINGS = {
    **CHEAPER,
    **SCORING_ABLATIONS,
    **{name: Scoring(positions="answer") for name in CANDIDATES if name.startswith("answer")},
    **{name: Scoring(positions="inputs") for name in CANDIDATES if name.startswith("inputs")},
    "floor 0.25, trim 10 %": Scoring(floor=0.25),
    "inputs, floor 0.25, trim 10 %": Scoring(positions="inputs", floor=0.25),
    "inputs, floor 0.5, trim 10 %": Scoring(positions="inputs", floor=0.5),
}
"""Methods whose necessity or embeddings are other ones than the package's default has."""

UNIFORM = (
    *("share necessity", "share size", "share equal", "trim 10 %", "skip 0.98", "50 groups", "400 groups"),
    *(*CHEAPER, *SCORING_ABLATIONS),
)
"""Changes to the default that were also tried with uniform draws inside the groups."""

_UNIFORM = "uniform, "


def uniform(method: str) -> str:
    """Return the name of the same method with uniform draws inside the groups."""
    return f"{_UNIFORM}{method}"


TUNED = (
    *("random", "within uniform", "grouped", "within k-center", "skip 0.98", "answer, k-center", "inputs"),
    *("inputs, k-center", "inputs, middle", "inputs, skip 0.98", "inputs, skip 0.99", "inputs, trim 10 %"),
    *map(uniform, ("answer embedding", "trim 10 %", "50 groups", "all, cheap clusters", "skip 0.98")),
    *(
        uniform(name)
        for name in CANDIDATES
        if "within" not in CANDIDATES[name] and not SCORINGS.get(name, BY_DEFAULT).floor
    ),
)
"""What might be better than `within uniform`, which was the default; tried on the tuning draws."""

TUNED_OVER_NOISE = (
    *("random", "within uniform", "grouped", "inputs, trim 10 %", "trim 10 %"),
    *("floor 0.25, trim 10 %", "inputs, floor 0.25, trim 10 %", "inputs, floor 0.5, trim 10 %"),
)
"""The same for pools with other shares of wrong answers too."""

FINALS = (uniform("inputs"), "inputs, trim 10 %")
"""What the tuning draws chose by the rule, after the first of its changes alone."""

_CHANGES: dict[str, dict[str, Any]] = {**ABLATIONS, **{name: {} for name in SCORINGS}, **CANDIDATES}
METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "families equal": {"method": "stratified", "param": {"share": "equal"}},
    **RIVALS,
    **_CHANGES,
    **{
        uniform(name): changes | {"within": "uniform"}
        for name, changes in _CHANGES.items()
        if "within" not in changes
    },
}
"""All methods of the grid. ``families equal`` is told what no user knows: the family of every sample."""

SEED_PERCENT, SEED_EPOCHS, EPOCHS = 2.5, 12, 4
PASSED = {"steps": 15.0, "full": 100.0}
"""Of how much of the pool, in percent, four epochs take as many steps as the trainings of a length."""
# Of 10,000 samples; a few clusters have less than is asked of each.
_CLUSTERS_PERCENT = 0.71
SMALL_COST = 0.111
"""What a pass of the small seed model costs, as a share of one of the target; see `model.Shape.products`."""


def scored(scoring: Scoring) -> float:
    """Return how much of a pool of 10,000 is scored, in percent."""
    return 100.0 if scoring.of_each is None else min(100.0, scoring.of_each * _CLUSTERS_PERCENT)


def scoring_of(method: str) -> Scoring:
    """Return the scoring that a method has."""
    return SCORINGS.get(method.removeprefix(_UNIFORM), BY_DEFAULT)


def cost(scoring: Scoring) -> float:
    """Return what a selection costs, as the percent of the pool on which training takes as long.

    A forward pass counts a third of a pass of a training. Pretraining and the images' features are there
    already; clustering and picking are left out.
    """
    seed = SEED_EPOCHS * SEED_PERCENT * scoring.seed_size
    return (SMALL_COST if scoring.small else 1) * (seed + scored(scoring) / 3) / EPOCHS


def with_cost(budget: float, method: str) -> float:
    """Return the budget of a random part that takes what choosing and training take, in percent."""
    return round(budget + cost(scoring_of(method)), 1)


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
        ``epochs``: four passes over the subset; else a name in `PASSED`.
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


# Draws from 1000 on are for tuning, and in no table but that about it.
DRAWS = range(5)
MORE_DRAWS = range(5, 10)
TUNING_DRAWS = range(1000, 1005)
# Draws from 2000 on are for one question, which was put after the tables of the others had been seen.
FRESH_DRAWS = range(2000, 2010)
FEW = ("random", "grouped", "families equal")
NEAREST = (*FEW, "stratified", "coincide", "presel", "k-center")


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
    methods = (
        *("random", "grouped", "trim 10 %", "families equal", "top", "weighted-k-center"),
        *("all, cheap clusters", "small, 7 a cluster"),
    )
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


def _more() -> list[Case]:
    """More draws of the default and of what comes near it; ten tell a difference of two points."""
    near = (*NEAREST, "all, cheap clusters", "small, 7 a cluster", "skip 0.98")
    budgets = {with_cost(budget, method) for method in ("grouped", near[-2]) for budget in (5, 15)}
    return (
        _cases(MORE_DRAWS, (5, 15), near)
        + _cases(MORE_DRAWS, (7.5, 17.5, *sorted(budgets)), ("random",))
        + _cases((*DRAWS, *MORE_DRAWS), (50,), ("random", "grouped"))
        + _cases(MORE_DRAWS, (40,), FEW)
        + _cases(MORE_DRAWS, (100,), ("random",))
    )


def _trade() -> list[Case]:
    """Cheaper selections, and random draws that get as much more data as each of them costs."""
    budgets = {with_cost(budget, method) for method in CHEAPER for budget in (5, 15)}
    return _cases(DRAWS, (5, 15), tuple(CHEAPER)) + _cases(DRAWS, sorted(budgets), ("random",))


def _scoring() -> list[Case]:
    return _cases(DRAWS, (5, 15), tuple(SCORING_ABLATIONS))


def _start() -> list[Case]:
    return _cases(DRAWS, (5, 15), FEW, start="seed")


def _steps() -> list[Case]:
    return _cases(DRAWS, (1, 5, 40), FEW, length="steps") + _cases(DRAWS, (100,), ("random",), length="steps")


def _full_steps() -> list[Case]:
    """As many steps as the full pool gets, so that a part is not at a disadvantage by its fewer steps."""
    methods = ("random", "grouped")
    return [
        *_cases((*DRAWS, *MORE_DRAWS), (50,), methods, length="full"),
        *_cases(DRAWS, (40, 15), methods, length="full"),
    ]


def _tune() -> list[Case]:
    return _cases(TUNING_DRAWS, (5, 15), TUNED)


def _tune_noise() -> list[Case]:
    """List candidates on tuning draws with other shares of wrong answers too."""
    return [
        case
        for wrong in (0.0, 0.15, 0.05)
        for case in _cases(TUNING_DRAWS, (5, 15), TUNED_OVER_NOISE, wrong=wrong)
    ]


def _uniform() -> list[Case]:
    """List the same with uniform draws inside the groups: the default before facility location."""
    only, more = ("within uniform",), ("within uniform", *map(uniform, ("all, cheap clusters", "skip 0.98")))
    return [
        *_cases((*DRAWS, *MORE_DRAWS), (5, 15), more),
        *_cases((*DRAWS, *MORE_DRAWS), (40, 50), only),
        *_cases(DRAWS, (1,), only),
        *_cases(DRAWS, (5, 15), tuple(map(uniform, UNIFORM))),
        *_cases(DRAWS, (5, 15), (*only, uniform("trim 10 %")), wrong=0.15),
        *_cases(DRAWS, (5, 15), (*only, *map(uniform, ("trim 10 %", "all, cheap clusters"))), wrong=0.0),
        *_cases(DRAWS, (5, 15), only, mix="uniform"),
        *_cases(DRAWS, (5, 15), only, start="seed"),
        *_cases(DRAWS, (1, 5, 40), only, length="steps"),
        *_cases(DRAWS, (15, 40), only, length="full"),
        *_cases((*DRAWS, *MORE_DRAWS), (50,), only, length="full"),
    ]


def _finals() -> list[Case]:
    """List what the tuning draws chose by the rule, and the first of its changes alone, on the others."""
    return [
        *_cases((*DRAWS, *MORE_DRAWS), (5, 15), FINALS),
        *_cases(DRAWS, (5, 15), FINALS, mix="uniform"),
        *_cases(DRAWS, (5, 15), FINALS, wrong=0.15),
        *_cases(DRAWS, (5, 15), FINALS, wrong=0.0),
    ]


def _fresh() -> list[Case]:
    """Ask again, on draws that nobody has seen, whether facility location inside groups is better.

    Set before they were run: it is taken for better if one of the differences to uniform draws at 5, 15 and
    50 % is clearly above zero, and none clearly below. The full pool and other shares of wrong answers
    were added when the answer was known.
    """
    methods = ("within uniform", "grouped", "random")
    return [
        *_cases(FRESH_DRAWS, (15, 5, 50), methods),
        *_cases(FRESH_DRAWS, (100,), ("random",)),
        *[case for wrong in (0.0, 0.15) for case in _cases(FRESH_DRAWS, (5, 15), methods, wrong=wrong)],
    ]


PLANS = {
    "main": _main,
    "rivals": _rivals,
    "ceiling": _ceiling,
    "noise": _noise,
    "control": _control,
    "counted": _counted,
    "compute": _compute,
    "ablations": _ablations,
    "start": _start,
    "steps": _steps,
    "full-steps": _full_steps,
    "more": _more,
    "trade": _trade,
    "scoring": _scoring,
    "tune": _tune,
    "tune-noise": _tune_noise,
    "uniform": _uniform,
    "finals": _finals,
    "fresh": _fresh,
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

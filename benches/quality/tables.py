"""Write RESULTS.md and its plots from the recorded trainings.

python benches/quality/tables.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import grid
import nlvr
import plots
import world
from grid import Case, Records
from mllm_selector.comparison import Estimate, estimate
from run import HERE, SIZES

__all__ = ["Results", "main"]

POOL = np.array(world.MIXES["skewed"])
BASE = Case(draw=0)
REAL = {"mix": "nlvr", "wrong": 0.0}
_WITHOUT_UNIFORM = [name for name in grid.METHODS if not name.startswith(grid.uniform(""))]
_NOISE = [
    *("within uniform", "trim 10 %", "all, cheap clusters", "small, 7 a cluster"),
    *map(grid.uniform, ("trim 10 %", "all, cheap clusters")),
]
_FRESH = ("random", "within uniform", "grouped")
ENOUGH = 3  # draws below which nothing is said


class Results:
    """Recorded accuracies, compared with random draws of the same world.

    Parameters
    ----------
    rows : dict of Case to dict
        As `Records.of` returns them.
    mix : ndarray of float64
        Share of each family in the pool.
    draws : range
        Which draws count; by default those that are neither for tuning nor fresh.
    """

    def __init__(
        self,
        rows: dict[Case, dict[str, Any]],
        mix: np.ndarray = POOL,
        draws: range = range(grid.TUNING_DRAWS.start),
    ) -> None:
        self.rows = {case: row for case, row in rows.items() if case.draw in draws}
        self.mix, self.macro = mix, np.full(len(mix), 1 / len(mix))
        self.refused = {case: row["refused"] for case, row in self.rows.items() if "refused" in row}

    def values(self, weights: np.ndarray, **wanted: Any) -> dict[int, float]:
        """Return the weighted accuracy in percent of each draw for which it is recorded."""
        return {
            case.draw: 100 * float(np.dot(row["accuracy"], weights))
            for case, row in self.rows.items()
            if "accuracy" in row and all(getattr(case, name) == value for name, value in wanted.items())
        }

    def mean(self, weights: np.ndarray | None = None, **wanted: Any) -> Estimate | None:
        """Return the mean over draws; by default of the accuracy in which every family counts the same."""
        values = self.values(self.macro if weights is None else weights, **_base(wanted))
        return estimate(list(values.values())) if values else None

    def gain(
        self, wanted: dict[str, Any], other: dict[str, Any], weights: np.ndarray | None = None
    ) -> Estimate | None:
        """Return the mean paired difference of two cases over the draws that both have."""
        weights = self.macro if weights is None else weights
        first, second = (self.values(weights, **_base(each)) for each in (wanted, other))
        pairs = [first[draw] - second[draw] for draw in first if draw in second]
        return estimate(pairs) if pairs else None

    def share(self, name: str, **wanted: Any) -> float | None:
        """Return the mean share of wrong answers, copies or hints in a selection, in percent."""
        wanted = _base(wanted)
        found = [
            row[name]
            for case, row in self.rows.items()
            if name in row and all(getattr(case, key) == value for key, value in wanted.items())
        ]
        return 100 * float(np.mean(found)) if found else None


def _base(wanted: dict[str, Any]) -> dict[str, Any]:
    fixed = {name: getattr(BASE, name) for name in ("mix", "wrong", "length", "start")}
    return fixed | wanted


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _plain(value: Estimate | None) -> str:
    if value is None:
        return "-"
    if value.half_width is None:
        return f"{value.mean:.1f} (1)"
    return f"{value.mean:.1f} +- {value.half_width:.1f} ({value.count})"


def _signed(value: Estimate | None) -> str:
    """Write a difference; bold where its interval is clear of zero and of enough draws."""
    if value is None:
        return "-"
    if value.half_width is None:
        return f"{value.mean:+.1f} (1)"
    text = f"{value.mean:+.1f} +- {value.half_width:.1f} ({value.count})"
    is_clear = value.count >= ENOUGH and abs(value.mean) > value.half_width
    return f"**{text}**" if is_clear else text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _against_random(
    results: Results,
    methods: Sequence[str],
    budgets: Sequence[float],
    notes: bool = True,
    base: str = "grouped",
    **fixed: Any,
) -> list[str]:
    """Table of methods: macro accuracy, differences to random and a base at each budget; what is in them."""
    head = ["method"]
    for budget in budgets:
        head += [f"{budget:g} %: macro", "to random", "to random, by the pool's mix", f"to {base}"]
    if notes:
        head += [f"wrong answers in it, {budget:g} %" for budget in budgets]
        head += [f"near-duplicates, {budgets[0]:g} %"]
    rows = []
    for method in methods:
        row = [method]
        for budget in budgets:
            of = {"method": method, "budget": budget, **fixed}
            random = {"method": "random", "budget": budget, **fixed}
            is_random = method == "random"
            row += [
                _plain(results.mean(**of)),
                "" if is_random else _signed(results.gain(of, random)),
                "" if is_random else _signed(results.gain(of, random, results.mix)),
                "" if method == base else _signed(results.gain(of, {**of, "method": base})),
            ]
        if notes:
            wrong = (results.share("wrong", method=method, budget=budget, **fixed) for budget in budgets)
            row += [_percent(share) for share in wrong]
            row += [_percent(results.share("copies", method=method, budget=budgets[0], **fixed))]
        if any(cell not in ("-", "") for cell in row[1:]):
            rows.append(row)
    return _table(head, rows) if rows else ["Not run.", ""]


def _ordered(results: Results, methods: Iterable[str]) -> list[str]:
    """Order methods by their gain at 5 %."""

    def gain(method: str) -> float:
        value = results.gain({"method": method, "budget": 5}, {"method": "random", "budget": 5})
        return -np.inf if value is None else value.mean

    return sorted(methods, key=gain, reverse=True)


def _side(value: Estimate | None) -> str:
    """Say on which side of zero the interval of a difference is: above, below, around; or unknown."""
    if value is None or value.half_width is None or value.count < ENOUGH:
        return "unknown"
    low, high = value.mean - value.half_width, value.mean + value.half_width
    return "above" if low > 0 else "below" if high < 0 else "around"


def _points(results: Results, wanted: dict[str, Any], other: dict[str, Any]) -> str:
    return _signed(results.gain(wanted, other)).strip("*")


def _verdict(results: Results, fresh: Results, real: Results) -> list[str]:
    """Say in sentences whether the default does what issue and README claim."""
    against_random = {
        "above": "**beats random**",
        "below": "**is worse than random**",
        "around": "**is not told apart from random**",
    }
    against_all = {
        "above": "**beats the full pool**",
        "below": "is **below the full pool**",
        "around": "is **not told apart from the full pool**",
    }
    full = {"method": "random", "budget": 100}
    lines = []
    for budget in (1, 5, 15, 40, 50):
        ours, random = ({"method": method, "budget": budget} for method in ("grouped", "random"))
        side = _side(results.gain(ours, random))
        if side == "unknown":
            lines.append(f"- At {budget} %, too few draws are recorded to say anything.")
            continue
        seen = _points(fresh, ours, random)
        lines.append(
            f"- At {budget} % the default {against_random[side]}: {_points(results, ours, random)} points of "
            f"macro accuracy{'' if seen == '-' else f'; on the fresh draws {seen}'}."
        )
        lines += _rivals(results, budget) if budget in (5, 15) else []
    for budget in (15, 40, 50):
        for where, draws in (("", results), ("On the fresh draws ", fresh)):
            told = [
                f"{against_all[side]}{how}: {_points(draws, ours, full)}"
                for how, ours in (
                    ("", {"method": "grouped", "budget": budget}),
                    (
                        " with as many steps as that gets",
                        {"method": "grouped", "budget": budget, "length": "full"},
                    ),
                )
                if (side := _side(draws.gain(ours, full))) != "unknown"
            ]
            uniform = {"method": "within uniform", "budget": budget}
            if told:
                lines.append(
                    f"- {where}{budget} % by the default {'; it '.join(told)}. With uniform draws inside the "
                    f"groups: {_points(draws, uniform, full)}."
                )
    for budget in (5, 50):
        told = "; on the fresh draws ".join(_by_family(draws, budget) for draws in (results, fresh))
        lines.append(f"- Families at {budget} % by the default against the full pool: {told}.")
    for method in ("grouped", "small, 7 a cluster"):
        for budget in (5, 15):
            more = grid.with_cost(budget, method)
            value = results.gain({"method": method, "budget": budget}, {"method": "random", "budget": more})
            if value is not None:
                lines.append(
                    f"- At equal compute, {budget} % by `{method}` against random at {more:g} %: "
                    f"{_signed(value)} points."
                )
    for budget in (5, 15, 40):
        ours, random = ({"method": method, "budget": budget, **REAL} for method in ("grouped", "random"))
        side = _side(real.gain(ours, random))
        if side != "unknown":
            lines.append(
                f"- On NLVR, a real pool, {budget} % by the default {against_random[side]}: "
                f"{_points(real, ours, random)}."
            )
    return [*lines, *_against_uniform(results), ""]


def _by_family(results: Results, budget: float) -> str:
    """Count the families in which the default is above or below the full pool."""
    ours, full = ({"method": "grouped", "budget": budget}, {"method": "random", "budget": 100})
    sides = [_side(results.gain(ours, full, family)) for family in np.eye(len(world.FAMILIES))]
    above, around, below = (sides.count(side) for side in ("above", "around", "below"))
    return f"{above} above, {around} not told apart, {below} below"


def _rivals(results: Results, budget: float) -> list[str]:
    """Name the rivals that beat the default, those not told apart from it, and those below it."""
    sides: dict[str, list[str]] = {"above": [], "around": [], "below": [], "unknown": []}
    for method in grid.RIVALS:
        if method == "grouped":
            continue
        pair = ({"method": name, "budget": budget} for name in (method, "grouped"))
        value = results.gain(*pair)
        told = f"{method} ({_signed(value).strip('*')})"
        sides[_side(value)].append(told)
    return [
        f"  - {what}: {', '.join(sides[side]) or 'none'}"
        for what, side in (
            ("Rivals that beat it", "above"),
            ("Not told apart from it", "around"),
            ("Below it", "below"),
            ("Fewer than three draws", "unknown"),
        )
    ]


def _pairs(results: Results, budget: float) -> dict[str, Estimate]:
    """Return what facility location adds to the default and to each change that has uniform draws too."""
    pairs = {"grouped": "within uniform", **{name: grid.uniform(name) for name in grid.UNIFORM}}
    found = {
        name: results.gain({"method": name, "budget": budget}, {"method": other, "budget": budget})
        for name, other in pairs.items()
    }
    return {name: value for name, value in found.items() if value is not None and value.count >= ENOUGH}


def _against_uniform(results: Results) -> list[str]:
    """Count the changes of the default to which facility location adds something, or takes it away."""
    lines = []
    for budget in (5, 15):
        pairs = _pairs(results, budget)
        if not pairs:
            continue
        sides = {side: [name for name in pairs if _side(pairs[name]) == side] for side in ("above", "below")}
        mean = np.mean([value.mean for value in pairs.values()])
        worse = ", ".join(f"`{name}`" for name in sides["below"])
        lines.append(
            f"- At {budget} %, facility location against uniform draws, in the default and "
            f"{len(pairs) - 1} changes of it: clearly better in {len(sides['above'])}, clearly worse in "
            f"{len(sides['below'])}{f' ({worse})' if worse else ''}; "
            f"{mean:+.1f} points in the mean."
        )
    return lines


def _uniform(results: Results) -> list[str]:
    """Table of what facility location adds to each change of the default."""
    by_budget = {budget: _pairs(results, budget) for budget in (5, 15)}
    names = sorted(by_budget[15], key=lambda name: by_budget[15][name].mean, reverse=True)
    rows = [[name, *(_signed(by_budget[budget].get(name)) for budget in (5, 15))] for name in names]
    return _table(["method", "5 %", "15 %"], rows) if rows else ["Not run.", ""]


def _families(results: Results) -> list[str]:
    lines: list[str] = []
    columns = [(method, budget) for budget in (5, 15) for method in ("random", "grouped", "families equal")]
    columns.append(("random", 100))
    head = ["family", "share of the pool", *(_column(method, budget) for method, budget in columns)]
    rows = []
    for number, family in enumerate(world.FAMILIES):
        only = np.eye(len(world.FAMILIES))[number]
        rows.append(
            [
                family,
                f"{POOL[number]:.0%}",
                *(_plain(results.mean(only, method=method, budget=budget)) for method, budget in columns),
            ]
        )
    lines += _table(head, rows)
    lines += ["Share of each family in the selections at 5 %, in percent, mean over the draws:", ""]
    return [*lines, *_shares(results, _ordered(results, _WITHOUT_UNIFORM))]


def _shares(results: Results, methods: Iterable[str], **fixed: Any) -> list[str]:
    """Table of what part of each selection at 5 % is of each family."""
    rows = []
    for method in methods:
        wanted = _base({"method": method, "budget": 5, **fixed})
        found = [
            row["families"]
            for case, row in results.rows.items()
            if "families" in row and all(getattr(case, name) == value for name, value in wanted.items())
        ]
        if found:
            rows.append([method, *(f"{100 * value:.0f}" for value in np.mean(found, axis=0))])
    return _table(["method", *world.FAMILIES], rows)


def _six(tuning: Results) -> str:
    """Say by how much each candidate is above `within uniform`, over shares of wrong answers and budgets."""
    at = [{"budget": budget, "wrong": wrong} for budget in (5, 15) for wrong in (0.0, 0.05, 0.15)]
    told = []
    for method in grid.TUNED_OVER_NOISE[2:]:
        gains = [tuning.gain({"method": method, **each}, {"method": "within uniform", **each}) for each in at]
        found = [gain.mean for gain in gains if gain is not None]
        if len(found) == len(at):
            told.append(f"{method} {np.mean(found):+.1f}")
    return "; ".join(told) or "not run"


def _over_uniform(results: Results) -> str:
    """Say by how much `grouped` is above `within uniform` at each budget."""
    told = []
    for budget in (5, 15, 40, 50):
        ours, uniform = ({"method": method, "budget": budget} for method in ("grouped", "within uniform"))
        told.append(f"{budget} %: {_signed(results.gain(ours, uniform))}")
    return "; ".join(told)


def _column(method: str, budget: float) -> str:
    return "full pool" if budget == 100 else f"{method}, {budget:g} %"


_BUDGETS = {"epochs": (1, 5, 15, 40, 50, 100), "steps": (1, 5, 15, 40, 100), "full": (15, 40, 50, 100)}


def _budgets(results: Results, length: str) -> list[str]:
    methods = ("grouped", "within uniform", "families equal")
    fixed = {
        # Four epochs on this part are the steps that the table gives every budget.
        budget: {"budget": budget, "length": "epochs" if budget == grid.PASSED.get(length) else length}
        for budget in _BUDGETS[length]
    }
    full = {"method": "random", **fixed[100]}
    rows = []
    for budget, each in fixed.items():
        random = {"method": "random", **each}
        row = [f"{budget} %", _plain(results.mean(**random))]
        for method in methods:
            ours = {"method": method, **each}
            row += [
                _plain(results.mean(**ours)),
                *(_signed(results.gain(ours, other)) for other in (random, full)),
            ]
        rows.append(row)
    head = ["budget", "random"]
    for method in methods:
        head += [method, "to random", "to the full pool"]
    return _table(head, rows)


def _costs(results: Results) -> list[str]:
    rows = []
    for budget, counted, compute in ((5, 7.5, 20.8), (15, 17.5, 30.8)):
        ours = {"method": "grouped", "budget": budget}
        rows += [
            [
                f"{budget} %",
                f"random, {other:g} %",
                why,
                _plain(results.mean(method="random", budget=other)),
                _signed(results.gain(ours, {"method": "random", "budget": other})),
            ]
            for other, why in (
                (budget, "equal data"),
                (counted, "the seed subset counts as data"),
                (compute, "equal compute, seed model and scoring included"),
            )
        ]
    return _table(["default at", "against", "what is equal", "macro of that", "default to that"], rows)


def _trade(results: Results) -> list[str]:
    """Table of cheaper selections: what is scored, what it costs, and what it is worth at 5 and 15 %."""
    rows = []
    for method in ("grouped", *grid.CHEAPER):
        scoring = grid.scoring_of(method)
        row = [method, f"{grid.scored(scoring):.3g} %", f"{grid.cost(scoring):.1f} %"]
        for budget in (5, 15):
            ours = {"method": method, "budget": budget}
            more = grid.with_cost(budget, method)
            row += [
                _signed(results.gain(ours, {"method": "random", "budget": budget})),
                ""
                if method == "grouped"
                else _signed(results.gain(ours, {"method": "grouped", "budget": budget})),
                f"{_signed(results.gain(ours, {'method': 'random', 'budget': more}))} ({more:g} %)",
            ]
        rows.append(row)
    head = ["method", "scored", "cost"]
    for budget in (5, 15):
        head += [f"{budget} %: to random", "to grouped", "to random at equal compute (its budget)"]
    return _table(head, rows)


def _real(results: Results) -> list[str]:
    """Tables of the NLVR pool: methods, budgets, and each source."""
    if not results.rows:
        return ["Not run.", ""]
    methods = list(dict.fromkeys(case.method for case in nlvr.cases()))
    parts = _against_random(results, methods, (5, 15), notes=False, **REAL)
    full = {"method": "random", "budget": 100, **REAL}
    rows = []
    for budget in (5, 15, 40, 100):
        random = {"method": "random", "budget": budget, **REAL}
        row = [f"{budget} %", _plain(results.mean(**random))]
        for method in ("grouped", "within uniform"):
            ours = {"method": method, "budget": budget, **REAL}
            row += [
                _plain(results.mean(**ours)),
                *(_signed(results.gain(ours, other)) for other in (random, full)),
            ]
        rows.append(row)
    head = ["budget", "random"]
    for method in ("grouped", "within uniform"):
        head += [method, "to random", "to the full pool"]
    parts += _table(head, rows)
    columns = [(method, budget) for budget in (5, 15) for method in grid.FEW]
    rows = [
        [
            family,
            f"{share:.0%}",
            *(_plain(results.mean(only, method=method, budget=budget, **REAL)) for method, budget in columns),
            _plain(results.mean(only, **full)),
            _plain(results.mean(only, method="majority", budget=100, **REAL)),
        ]
        for family, share, only in zip(nlvr.FAMILIES, results.mix, np.eye(len(results.mix)), strict=True)
    ]
    head = ["source", "share of the pool", *(_column(*column) for column in columns)]
    head += ["full pool", "majority"]
    return [*parts, *_table(head, rows)]


def text(results: Results, tuning: Results, fresh: Results, real: Results, settings: str) -> str:
    """Return RESULTS.md."""
    rivals = _ordered(results, ["random", "families equal", *grid.RIVALS])
    done = {case.draw for case in results.rows}
    parts = [
        "# Does training on the chosen part beat training on a random part?",
        "",
        "Made by `python benches/quality/tables.py` from `records.jsonl`; do not edit. README.md says what",
        "the world is, how it is run, and what it cannot show.",
        "",
        f"{len(results.rows):,} trainings, draws {min(done)} to {max(done)} (settings {settings}).",
        "Accuracy in percent of test samples whose whole answer is right. A cell is the mean +- half of the",
        "95 % confidence interval (Student-t over draws; each draw has its own pool, test set, seed subset",
        "and training), with the number of draws in brackets. Differences are paired by draw; bold: three",
        "draws or more, and the interval is clear of zero. *macro*: every family counts the same. *by the",
        "pool's mix*: families count by their share of the pool. Intervals are not corrected for the number",
        "of methods compared.",
        "",
        "## What comes out",
        "",
        "Facility location inside the groups became the default partly by what draws 0 to 9 told and then,",
        "by a rule set before, by ten fresh ones (2000 to 2009), which decided nothing else; both are given.",
        "",
        *_verdict(results, fresh, real),
        "![gain over random](gain.svg)",
        "",
        "## Methods at 5 and 15 %: skewed pool, 5 % wrong answers, 20 % near-duplicates",
        "",
        "`grouped` is the package's default: clusters, shares by necessity, facility location inside them;",
        "`within uniform` is the same with uniform draws inside. `families equal` is no rival: it is told",
        "every sample's family. Equal epochs and equal steps are the same thing inside a column, since",
        "subsets have one size.",
        "",
        *_against_random(results, [*rivals, "within uniform"], (5, 15)),
    ]
    if results.refused:
        parts += ["Refused, as the method cannot meet the budget exactly:", ""]
        told = {(case.method, case.budget): why for case, why in results.refused.items()}
        parts += [f"- {method}, {budget:g} %: {why}" for (method, budget), why in told.items()]
        parts += [""]
    parts += [
        "## Fresh draws",
        "",
        "Draws from 2000 on, for one question: whether facility location inside the groups is better than",
        "uniform draws. Set before they were run: it is, if one of the differences at 5, 15 and 50 % is",
        "clearly above zero, and none clearly below. 100 % and other shares of wrong answers were added",
        "when the answer was known.",
        "",
        *_against_random(fresh, _FRESH, (5, 15, 50), notes=False, base="within uniform"),
        *_budgets(fresh, "epochs"),
    ]
    for wrong in (0.0, 0.15):
        parts += [
            f"The same draws with {wrong:.0%} wrong answers:",
            "",
            *_against_random(fresh, _FRESH, (5, 15), notes=False, base="within uniform", wrong=wrong),
        ]
    parts += [
        "## Families",
        "",
        *_families(results),
        "## Budgets: four epochs each",
        "",
        "![macro accuracy by budget](budgets.svg)",
        "",
        *_budgets(results, "epochs"),
        "## Budgets: as many steps as four epochs on 15 %",
        "",
        *_budgets(results, "steps"),
        "## Budgets: as many steps as four epochs on the full pool",
        "",
        "At equal epochs a part gets fewer steps than the full pool; here it gets as many.",
        "",
        *_budgets(results, "full"),
        "## What is counted",
        "",
        *_costs(results),
        "## Necessity for less",
        "",
        "*cheap clusters*: of embeddings that no language model made (mean word of the question, mean and",
        "maximum of the image's features); the seed model scores so many samples of each of 71 clusters of",
        "10,000 samples, and inside a cluster picks are by facility location on the same embeddings.",
        "*small*: a seed model of one layer of width 32 chooses for the target of three layers of width 64;",
        "a pass of it costs 11 % of one of the target. *cost*: what seed model and scoring take, as the",
        "share of the pool on which four epochs take as long. *at equal compute*: to a random part that is",
        "larger by that cost. Pretraining is not counted, of neither model.",
        "",
        *_trade(results),
        "## Ablations of the default",
        "",
        "Each differs from `grouped` in what its name says: the size of the seed subset (2.5 % of the pool),",
        "what stands for the necessity (nll), of which positions the embedding is the mean (all), and what a",
        "group's mean necessity is raised to in its share.",
        "",
        *_against_random(
            results, ["grouped", *_ordered(results, {**grid.ABLATIONS, **grid.SCORING_ABLATIONS})], (5, 15)
        ),
        "What facility location adds to the default and to each change of it: points of macro accuracy to",
        "the same with uniform draws inside the groups.",
        "",
        *_uniform(results),
    ]
    parts += [
        "## Looking for a better default",
        "",
        "How it was looked for, on tuning draws, from 1000 on, which no other table has. Then the default",
        "was `within uniform`, so differences here are to that. *uniform*: with uniform draws inside the",
        "groups; all others with facility location, if their name says nothing else. *inputs*: all",
        "embeddings are those of the inputs, of the question's words and of the image's features, without",
        "the language model. *answer*: mean hidden states of the answer. *skip c*: samples are left out",
        "whose embedding has a cosine of c or more with one that is chosen.",
        "",
        "The rule by which one is chosen, set before the trainings of *inputs* were run: it is a default of",
        "the package, so `pick` can do it on what `score` gives; the mean of the differences to `within",
        "uniform` at 5 and at 15 % is the highest, or at most 0.5 points below the highest with fewer",
        "changes to it; and by the pool's mix it is not below it in the mean of both budgets. It becomes",
        "the default if, on the draws of the other tables, its difference to it is clear of zero at 5 or 15",
        "% and its mean not below zero at the other, and it is not clearly worse with other shares of wrong",
        "answers, on the control pool or on NLVR.",
        "",
        *_against_random(tuning, _ordered(tuning, dict.fromkeys(grid.TUNED)), (5, 15), base="within uniform"),
        "What the rule chose, and its first change alone, on the draws of the other tables:",
        "",
        *_against_random(results, ["random", "within uniform", *grid.FINALS], (5, 15), base="within uniform"),
        "Without wrong answers (below) easy kinds of question have hardly any necessity, and in clusters of",
        "inputs, each of one kind, hardly any share. Share of families at 5 % of the pool, in percent,",
        "without wrong answers:",
        "",
        *_shares(results, [*_FRESH, "all, cheap clusters", "small, 7 a cluster", *grid.FINALS], wrong=0.0),
        "So there was a second round on tuning draws, with other shares of wrong answers too. *floor c*: c",
        "times the pool's mean necessity is added to every sample's before groups get their shares. The",
        "rule, set before it was run: the highest mean of the six differences to `within uniform`, or at",
        "most 0.5 points below it with fewer changes, none of the six clearly below zero; the rest as",
        "before.",
        "",
    ]
    for wrong in (0.0, 0.05, 0.15):
        parts += [
            f"{wrong:.0%} wrong answers:",
            "",
            *_against_random(tuning, grid.TUNED_OVER_NOISE, (5, 15), base="within uniform", wrong=wrong),
        ]
    parts += [
        f"Mean of the six differences to `within uniform`: {_six(tuning)}.",
        "",
        "So it was `grouped`, with one change. Its differences to `within uniform` on the draws of the other",
        f"tables: {_over_uniform(results)}. The rule asked for one clear of zero at 5 or 15 %, so",
        "uniform draws stayed the default then, and the fresh draws were asked.",
        "",
    ]
    for wrong in (0.0, 0.15):
        parts += [
            f"## {wrong:.0%} wrong answers",
            "",
            *_against_random(results, [*rivals, *_NOISE, *grid.FINALS], (5, 15), wrong=wrong),
        ]
    parts += [
        "## Control: a pool in which all families are equally frequent",
        "",
        "There is nothing to re-balance, so an advantage should vanish.",
        "",
        *_against_random(
            Results(results.rows, np.array(world.MIXES["uniform"])),
            [*_FRESH, *grid.FINALS],
            (5, 15),
            mix="uniform",
        ),
        "## From the weights of the seed model",
        "",
        *_against_random(results, [*_FRESH, "families equal"], (5, 15), start="seed"),
        "## A real pool: NLVR",
        "",
        "Real pictures, and among the questions human statements; trained on one split of the corpus, tested",
        "on the other. *macro*: every source counts the same. *majority*: each source's most frequent answer",
        "in the pool, whatever is asked. README.md has the details.",
        "",
        *_real(real),
        "## Not done",
        "",
        *_missing({**results.rows, **tuning.rows, **fresh.rows}, real),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _missing(done: Mapping[Case, Any], real: Results) -> list[str]:
    """List what the plans ask for and the records do not have."""
    lines = []
    for name in grid.PLANS:
        wanted = list(grid.planned([name]))
        left = [case for case in wanted if case not in done]
        if left:
            draws = sorted({case.draw for case in left})
            lines.append(
                f"- plan `{name}`: {len(left)} of {len(wanted)} trainings (draws {draws[0]} to {draws[-1]})"
            )
    left = [case for case in nlvr.cases() if case not in real.rows]
    if left:
        lines.append(f"- NLVR: {len(left)} of {len(nlvr.cases())} trainings")
    lines += [
        "- `miwv`: its score is the loss of a prompt with a second sample, image and all, in front; the",
        "  model here sees one image. `mmssr`: its scores are a judge's, and no judge knows this world.",
        "- `--size full` (pools of 20,000, 400 test samples a family) and `--device cuda`.",
    ]
    return lines


def main() -> None:
    """Write the results."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--size", default="small", choices=tuple(SIZES))
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--nlvr-records", type=Path, default=HERE / "nlvr.jsonl")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    given = parser.parse_args()
    settings = SIZES[given.size].key
    records = Records(given.records).of(settings)
    results, tuning, fresh = (
        Results(records, draws=draws)
        for draws in (range(grid.TUNING_DRAWS.start), grid.TUNING_DRAWS, grid.FRESH_DRAWS)
    )
    real = Results(Records(given.nlvr_records).of(nlvr.NlvrSettings().key), nlvr.MIX)
    (given.out / "RESULTS.md").write_text(text(results, tuning, fresh, real, settings))
    gains = {
        budget: [
            (
                method,
                results.gain({"method": method, "budget": budget}, {"method": "random", "budget": budget}),
            )
            for method in _ordered(results, ["families equal", *grid.RIVALS])
        ]
        for budget in (5, 15)
    }
    (given.out / "gain.svg").write_text(plots.gains(gains))
    curves = {
        method: [
            (budget, results.mean(method="random" if budget == 100 else method, budget=budget))
            for budget in (1, 5, 15, 40, 100)
        ]
        for method in grid.FEW
    }
    (given.out / "budgets.svg").write_text(plots.curves(curves))


if __name__ == "__main__":
    main()

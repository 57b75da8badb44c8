"""From the rows of finished trainings to means, intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from mllm_selector.comparison.options import FULL, RANDOM
from mllm_selector.comparison.statistics import CONFIDENCE, estimate

__all__ = ["ALL", "MACRO", "MEASURES", "summarise"]

MACRO = "mean of sources"
ALL = "all samples"
MEASURES = ("accuracy", "token_accuracy", "loss")

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Compare methods at each budget.

    Parameters
    ----------
    rows : sequence of mapping
        The rows of ``trainings.jsonl``.
    settings : mapping
        What the trainings have in common; kept as it is.

    Returns
    -------
    dict
        ``settings``, ``confidence``, ``trainings`` (the rows) and ``results``: for each method and budget
        ``method``, ``budget``, ``samples``, ``seeds`` and ``sources``: for each source, the mean of the
        sources and all samples, the measures ``accuracy`` (share of answers of which every token is the most
        likely one), ``token_accuracy`` and ``loss`` (nats a token, mean over samples). A measure has
        ``value`` and, where there are pairs of one seed, ``to_random`` (the difference to ``random`` at the
        same budget) and ``to_full`` (to the full pool): each a mean over the seeds with ``half_width`` of its
        interval.
    """
    by_run: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        by_run.setdefault((row["method"], row["budget"]), {})[row["seed"]] = row
    full = next((same for (method, _), same in by_run.items() if method == FULL), {})
    results = []
    for (method, budget), same in by_run.items():
        random = {} if method in (RANDOM, FULL) else by_run.get((RANDOM, budget), {})
        results.append(
            {
                "method": method,
                "budget": budget,
                "samples": next(iter(same.values()))["samples"],
                "seeds": len(same),
                "sources": _sources(same, random, {} if method == FULL else full),
            }
        )
    return {
        "settings": dict(settings),
        "confidence": CONFIDENCE,
        "results": results,
        "trainings": list(rows),
    }


def _sources(
    same: Mapping[int, Row], random: Mapping[int, Row], full: Mapping[int, Row]
) -> dict[str, dict[str, Any]]:
    told = {seed: _with_totals(row["sources"]) for seed, row in same.items()}
    others = {
        name: {seed: _with_totals(row["sources"]) for seed, row in rows.items()}
        for name, rows in (("to_random", random), ("to_full", full))
    }
    return {
        source: {
            "samples": next(iter(told.values()))[source]["samples"],
            **{measure: _measure(told, others, source, measure) for measure in MEASURES},
        }
        for source in next(iter(told.values()))
    }


def _measure(
    told: Mapping[int, Any], others: Mapping[str, Mapping[int, Any]], source: str, measure: str
) -> dict[str, Any]:
    values = {seed: sources[source][measure] for seed, sources in told.items()}
    result = {"value": asdict(estimate(list(values.values())))}
    for name, other in others.items():
        pairs = [values[seed] - other[seed][source][measure] for seed in values if seed in other]
        if pairs:
            result[name] = asdict(estimate(pairs))
    return result


def _with_totals(sources: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Add the mean of the sources and the mean of the samples; they lead the list."""
    of = list(sources.values())
    samples = sum(each["samples"] for each in of)
    macro = {measure: fmean(each[measure] for each in of) for measure in MEASURES}
    micro = {measure: sum(each[measure] * each["samples"] for each in of) / samples for measure in MEASURES}
    return {MACRO: {"samples": samples, **macro}, ALL: {"samples": samples, **micro}, **sources}

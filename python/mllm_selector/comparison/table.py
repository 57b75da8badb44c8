"""A comparison as text of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mllm_selector.comparison.results import MACRO

__all__ = ["as_text"]

_WIDTH = 80
_LABEL = 21
_SCALE = {"accuracy": 100, "loss": 1}
_DIGITS = {"accuracy": 1, "loss": 3}


def as_text(result: Mapping[str, Any]) -> str:
    """Write the tables: accuracy and loss over all sources, then for each source."""
    sources = list(result["results"][0]["sources"])
    lines = [
        *_paragraph(
            "Accuracy is the share of answers, in percent, of which every token is the most likely one; loss "
            f"is in nats a token. +- is the {result['confidence']:.0%} confidence interval over the seeds; "
            "differences are of pairs of one seed, and clear of chance where they are larger than their "
            "interval."
        )
    ]
    for source in sources:
        samples = result["results"][0]["sources"][source]["samples"]
        title = source if source != MACRO else f"{source}, each counting the same"
        lines += ["", f"{title} ({samples:,} samples)"]
        for measure in _SCALE:
            lines += _table(result, source, measure)
    return "\n".join(lines)


def _table(result: Mapping[str, Any], source: str, measure: str) -> list[str]:
    lines = [f"  {measure:<{_LABEL}} {'budget':>8}  {'n':>2} {'':>13} {'to random':>13} {'to full':>13}"]
    for entry in result["results"]:
        of = entry["sources"][source][measure]
        cells = [
            _cell(of.get(name), measure, signed=name != "value") for name in ("value", "to_random", "to_full")
        ]
        label = entry["method"]
        if len(label) > _LABEL:
            lines.append(f"  {label}")
            label = ""
        lines.append(
            f"  {label:<{_LABEL}} {entry['budget']:>8}  {entry['seeds']:>2} "
            f"{cells[0]:>13} {cells[1]:>13} {cells[2]:>13}".rstrip()
        )
    return lines


def _cell(estimate: Mapping[str, Any] | None, measure: str, *, signed: bool) -> str:
    if estimate is None:
        return ""
    digits, scale = _DIGITS[measure], _SCALE[measure]
    text = f"{estimate['mean'] * scale:{'+' if signed else ''}.{digits}f}"
    if estimate["half_width"] is None:
        return text
    return f"{text} +-{estimate['half_width'] * scale:.{digits}f}"


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH)

"""The plots of RESULTS.md, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from mllm_selector.comparison import Estimate

__all__ = ["curves", "gains"]

_COLOURS = ("#3465a4", "#cc5500", "#4e9a06")
_STYLE = "font: 12px sans-serif; fill: #555"

Points = Sequence[tuple[float, Estimate | None]]


def gains(by_budget: Mapping[float, Sequence[tuple[str, Estimate | None]]]) -> str:
    """Draw differences to random with their intervals, a line a method, a colour a budget."""
    names = list(dict.fromkeys(name for entries in by_budget.values() for name, _ in entries))
    ends = [
        value.mean + sign * (value.half_width or 0)
        for entries in by_budget.values()
        for _, value in entries
        if value is not None
        for sign in (-1, 1)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step, left, width = 24, 150, 470

    def x(value: float) -> float:
        return left + width * (value - low) / max(high - low, 1e-9)

    parts = []
    for tick in range(math.ceil(low / 10) * 10, math.floor(high) + 1, 10):
        parts.append(_line(x(tick), 10, x(tick), 20 + step * len(names), "#999" if tick == 0 else "#ddd"))
        parts.append(_text(x(tick), 34 + step * len(names), f"{tick:+d}" if tick else "0", "middle"))
    for row, name in enumerate(names):
        parts.append(_text(left - 8, 28 + step * row, name, "end"))
    for number, (budget, entries) in enumerate(by_budget.items()):
        colour = _COLOURS[number]
        for name, value in entries:
            if value is None:
                continue
            y = 20 + step * names.index(name) + 7 * number
            half = value.half_width or 0
            parts.append(_line(x(value.mean - half), y, x(value.mean + half), y, colour))
            parts.append(f'<circle cx="{x(value.mean):.1f}" cy="{y}" r="3.5" fill="{colour}"/>')
        parts.append(_text(left + 80 * number, 56 + step * len(names), f"{budget:g} %", "start", colour))
    caption = "points of macro accuracy against random, and the 95 % interval"
    parts.append(_text(left, 74 + step * len(names), caption, "start"))
    return _svg(640, 84 + step * len(names), parts)


def curves(by_method: Mapping[str, Points]) -> str:
    """Draw macro accuracy by budget, on a logarithmic axis."""
    known = [(x, value) for points in by_method.values() for x, value in points if value is not None]
    low = min((value.mean for _, value in known), default=0.0) - 2
    high = max((value.mean for _, value in known), default=1.0) + 2
    left, top, width, height = 50, 20, 560, 260

    def place(budget: float, value: float) -> tuple[float, float]:
        return left + width * math.log(budget) / math.log(100), top + height * (high - value) / (high - low)

    parts = []
    for budget in (1, 5, 15, 40, 100):
        x, _ = place(budget, low)
        parts.append(_line(x, top, x, top + height, "#ddd"))
        parts.append(_text(x, top + height + 16, f"{budget} %", "middle"))
    for value in range(math.ceil(low / 10) * 10, math.floor(high) + 1, 10):
        _, y = place(1, value)
        parts.append(_line(left, y, left + width, y, "#ddd"))
        parts.append(_text(left - 6, y + 4, str(value), "end"))
    for number, (method, points) in enumerate(by_method.items()):
        colour = _COLOURS[number]
        there = [(budget, value) for budget, value in points if value is not None]
        line = " ".join("{:.1f},{:.1f}".format(*place(budget, value.mean)) for budget, value in there)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for budget, value in there:
            half = value.half_width or 0
            x, y = place(budget, value.mean)
            _, upper = place(budget, value.mean + half)
            _, lower = place(budget, value.mean - half)
            parts.append(_line(x, upper, x, lower, colour))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(left + 8 + 140 * number, top + height + 36, method, "start", colour))
    return _svg(640, top + height + 46, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str | None = None) -> str:
    style = _STYLE if colour is None else f"{_STYLE}; fill: {colour}"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'

"""Charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mllm_selector.reporting.markup import Content, Markup, element
from mllm_selector.reporting.numbers import Group, Histogram, nice_step

__all__ = ["group_scatter", "histogram", "in_three_widths", "shift", "small_histogram"]

WIDTHS = {"wide": 960, "middle": 640, "narrow": 340}
MAX_POINTS = 800


def in_three_widths(draw: Callable[[int], Markup]) -> Markup:
    """Draw a chart once for each width of window: text in a much scaled drawing would become unreadable."""
    drawings = (element("div", draw(width), class_=name) for name, width in WIDTHS.items())
    return element("div", drawings, class_="chart")


def histogram(data: Histogram, width: int) -> Markup:
    """Draw the pool's necessities with the chosen part, and below it the share chosen in each bin."""
    left, right, top, panel, gap, low, bottom = 56, 8, 10, 210, 34, 90, 40
    height = top + panel + gap + low + bottom
    x, step = _bins(data, left, width - right)
    tallest = max([*data.pool, 1])
    base = top + panel
    rates = [chosen / pool if pool else 0.0 for pool, chosen in zip(data.pool, data.chosen, strict=True)]
    overall = sum(data.chosen) / max(1, sum(data.pool))
    highest = max([*rates, overall * 1.5, 1e-9])
    low_base = height - bottom

    parts: list[Content] = _horizontal_lines(tallest, base, panel, left, width - right, _count)
    parts += _horizontal_lines(highest, low_base, low, left, width - right, _percent, steps=2)
    for index, (pool, chosen, rate) in enumerate(zip(data.pool, data.chosen, rates, strict=True)):
        title = element(
            "title", f"{_bin_name(data, index)}: {pool:,} samples, {chosen:,} chosen ({rate:.1%})"
        )
        parts.append(
            element(
                "g",
                element("title", title),
                _bar(x[index], base, step, panel * pool / tallest, "pool"),
                _bar(x[index], base, step, panel * chosen / tallest, "chosen"),
                _bar(x[index], low_base, step, low * rate / highest, "chosen"),
                # An area to point at, also where the bar is flat.
                element("rect", x=x[index], y=top, width=step, height=height - top - bottom, class_="touch"),
            )
        )
    level = low_base - low * overall / highest
    parts += [
        element("line", x1=left, x2=width - right, y1=level, y2=level, class_="mean"),
        _text(left, base + gap - 10, "chosen in each bin; dashed: in the whole pool", "start"),
        *_necessity_axis(data, x, step, low_base),
        _text(width - right, height - 4, "necessity (nats per answer token)", "end"),
    ]
    return _svg(
        parts, width, height, "Necessity of the pool with the chosen part, and share chosen in each bin"
    )


def small_histogram(data: Histogram, name: str, width: int = 250, height: int = 92) -> Markup:
    """Draw one source's necessities with the chosen part; every source has its own height scale."""
    bottom = 20
    x, step = _bins(data, 0, width)
    tallest = max([*data.pool, 1])
    base = height - bottom
    parts: list[Content] = [element("line", x1=0, x2=width, y1=base, y2=base, class_="axis")]
    for index, (pool, chosen) in enumerate(zip(data.pool, data.chosen, strict=True)):
        if pool:
            parts += [
                _bar(x[index], base, step, (base - 4) * pool / tallest, "pool"),
                _bar(x[index], base, step, (base - 4) * chosen / tallest, "chosen"),
            ]
    parts += _necessity_axis(data, x, step, base, ticks=4)
    return _svg(parts, width, height, f"Necessity of {name} with the chosen part")


def shift(before: float, after: float, limit: float, width: int = 180) -> Markup:
    """Draw a share before (ring) and after (dot) as one line of a table."""
    pad, middle = 7, 9
    scale = (width - 2 * pad) / limit
    start, end = pad + before * scale, pad + after * scale
    parts = [
        element("line", x1=pad, x2=width - pad, y1=middle, y2=middle, class_="rail"),
        element("line", x1=start, x2=end, y1=middle, y2=middle, class_="shift"),
        element("circle", cx=start, cy=middle, r=4.5, class_="before"),
        element("circle", cx=end, cy=middle, r=5.0, class_="after"),
    ]
    return _svg(parts, width, 2 * middle, f"{before:.1%} of the pool, {after:.1%} of the selection")


def group_scatter(groups: Sequence[Group], overall: float, width: int) -> Markup:
    """Draw each group by mean necessity and the share of it that was chosen; area shows its size."""
    left, right, top, bottom, height = 56, 12, 14, 42, 340
    shown = [group for group in groups if group.size and group.mean_necessity is not None]
    # Largest first, so that small circles lie on top.
    shown = sorted(shown, key=lambda group: (-(group.size or 0), group.group))[:MAX_POINTS]
    necessities = [group.mean_necessity or 0.0 for group in shown]
    rates = [group.chosen / (group.size or 1) for group in shown]
    largest = max([group.size or 0 for group in shown], default=1)
    low, high = min([*necessities, 0.0]), max([*necessities, 1e-9])
    highest = max([*rates, overall]) * 1.05 or 1.0
    radius = min(16.0, max(4.0, 110 / math.sqrt(max(1, len(shown)))))
    span, base = width - right - left - 2 * radius, height - bottom

    def at(value: float) -> float:
        return left + radius + span * (value - low) / (high - low)

    parts: list[Content] = _horizontal_lines(highest, base, base - top, left, width - right, _percent)
    tick = nice_step(high - low, max(2, int(width / 110)))
    for number in range(math.ceil(low / tick), math.floor(high / tick) + 1):
        parts.append(_text(at(number * tick), base + 18, _number(number * tick, tick), "middle"))
    level = base - (base - top) * overall / highest
    parts.append(element("line", x1=left, x2=width - right, y1=level, y2=level, class_="mean"))
    for group, necessity, rate in zip(shown, necessities, rates, strict=True):
        size = group.size or 0
        source = f", mostly {group.main_source}" if group.main_source else ""
        title = f"group {group.group}: {group.chosen:,} of {size:,} chosen ({rate:.1%})"
        title += f", mean necessity {necessity:.3f}{source}"
        parts.append(
            element(
                "circle",
                element("title", title),
                cx=at(necessity),
                cy=base - (base - top) * rate / highest,
                r=max(2.0, radius * math.sqrt(size / largest)),
                class_="group",
            )
        )
    parts.append(_text(width - right, height - 4, "mean necessity of the group", "end"))
    return _svg(parts, width, height, "Groups by mean necessity and the share of each that was chosen")


def _svg(parts: Content, width: int, height: int, label: str) -> Markup:
    return element(
        "svg",
        parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def _bar(x: float, base: float, width: float, height: float, class_: str) -> Markup | None:
    if height <= 0:
        return None
    # At least a hairline, so that few samples are not shown as none.
    height = max(height, 0.75)
    gap = min(1.0, width / 5)
    return element("rect", x=x + gap / 2, y=base - height, width=width - gap, height=height, class_=class_)


def _bins(data: Histogram, left: float, right: float) -> tuple[list[float], float]:
    """Return the left ends of the drawn bins, all of one width, and that width."""
    count = len(data.pool)
    step = (right - left) / count
    return [left + step * index for index in range(count)], step


def _has_tail(data: Histogram) -> bool:
    edges = data.edges
    return len(edges) > 2 and edges[-1] - edges[-2] > (edges[1] - edges[0]) * (1 + 1e-6)


def _bin_name(data: Histogram, index: int) -> str:
    low, high = data.edges[index], data.edges[index + 1]
    if _has_tail(data) and index == len(data.pool) - 1:
        return f"{low:.4g} and more, up to {high:.4g}"
    return f"{low:.4g} to {high:.4g}"


def _necessity_axis(
    data: Histogram, x: Sequence[float], step: float, base: float, ticks: int = 8
) -> list[Content]:
    regular = len(data.pool) - _has_tail(data)
    low, width = data.edges[0], data.edges[1] - data.edges[0]
    tick = nice_step(width * regular, ticks)
    parts: list[Content] = []
    for number in range(math.ceil(low / tick - 1e-9), math.floor((low + width * regular) / tick + 1e-9) + 1):
        at = x[0] + step * (number * tick - low) / width
        anchor = "start" if at < x[0] + 8 else "middle"
        if _has_tail(data) and at > x[-1] + step - 46:
            continue
        parts.append(_text(at, base + 15, _number(number * tick, tick), anchor))
    if _has_tail(data):
        parts.append(_text(x[-1] + step, base + 15, f"\u2265 {data.edges[-2]:.3g}", "end"))
    return parts


def _horizontal_lines(
    highest: float,
    base: float,
    height: float,
    left: float,
    right: float,
    name: Callable[[float, float], str],
    steps: int = 5,
) -> list[Content]:
    tick = nice_step(highest, steps)
    tick = max(tick, 1.0) if name is _count else tick
    parts: list[Content] = []
    for number in range(math.floor(highest / tick) + 1):
        y = base - height * number * tick / highest
        class_ = "grid" if number else "axis"
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_=class_))
        parts.append(_text(left - 8, y + 4, name(number * tick, tick), "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _count(value: float, _tick: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float, tick: float) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(tick * 100) + 1e-9))}%}"


def _number(value: float, tick: float) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(tick) + 1e-9))}f}"

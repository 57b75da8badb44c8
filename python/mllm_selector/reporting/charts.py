"""The small drawing in a row of a table, as inline SVG; the charts are Chart.js's, see ``report.js``."""

from __future__ import annotations

from mllm_selector.reporting.markup import Markup, element

__all__ = ["shift"]


def shift(before: float, after: float, limit: float, width: int = 180) -> Markup:
    """Draw a share before (ring) and after (dot) as one line of a table."""
    pad, middle = 7, 9
    scale = (width - 2 * pad) / limit
    start, end = pad + before * scale, pad + after * scale
    return element(
        "svg",
        element("line", x1=pad, x2=width - pad, y1=middle, y2=middle, class_="rail"),
        element("line", x1=start, x2=end, y1=middle, y2=middle, class_="shift"),
        element("circle", cx=start, cy=middle, r=4.5, class_="before"),
        element("circle", cx=end, cy=middle, r=5.0, class_="after"),
        viewBox=f"0 0 {width} {2 * middle}",
        width=width,
        height=2 * middle,
        role="img",
        aria_label=f"{before:.1%} before, {after:.1%} after",
    )

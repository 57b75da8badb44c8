"""Parts that several panels are made of: tables, meters, legends, charts."""

from __future__ import annotations

from mllm_selector.reporting.markup import Content, Markup, element

__all__ = ["chart", "figure", "legend", "meter", "table"]


def table(head: list[str], rows: list[list[Content]], text_columns: tuple[int, ...] = ()) -> Markup:
    """Make a table whose first column names the row and whose others are numbers, in a box that scrolls."""

    def style(index: int) -> str | None:
        return "text" if index in text_columns else None

    def cell(index: int, content: Content) -> Markup:
        if index == 0:
            return element("th", content, scope="row")
        return element("td", content, class_=style(index))

    header = element(
        "tr",
        (
            element("th", title, scope="col", class_=style(index)) if title else element("td")
            for index, title in enumerate(head)
        ),
    )
    body = (element("tr", (cell(index, content) for index, content in enumerate(row))) for row in rows)
    table = element("table", element("thead", header), element("tbody", body))
    label = f"Table: {', '.join(title for title in head if title)}"
    return element("div", table, class_="table", tabindex="0", role="region", aria_label=label)


def meter(share: float, class_: str) -> Markup:
    """Show a share as a bar, for the eye only."""
    bar = element("span", style=f"width:{max(share, 0.004):.2%}", class_=class_)
    return element("span", bar, class_="meter", aria_hidden="true")


def legend(*entries: tuple[str, str]) -> Markup:
    """Explain colours: class of the swatch, and what it stands for."""
    keys = (
        element("span", element("i", class_=class_) if class_ else None, name) for class_, name in entries
    )
    return element("span", keys, class_="legend")


def chart(kind: str, label: str, size: str, **data: str | int) -> Markup:
    """Make room for a chart that ``report.js`` draws.

    Parameters
    ----------
    kind : str
        Which drawing.
    label : str
        What it shows, for those who do not see it.
    size : str
        Class that sets its height.
    **data : str or int
        Further data attributes.
    """
    canvas = element(
        "canvas",
        role="img",
        aria_label=f"{label}. Arrow keys go through its values.",
        tabindex="0",
        data_plot=kind,
        **{f"data_{name}": value for name, value in data.items()},
    )
    return element("div", canvas, class_=f"plot {size}")


def figure(value: float | None) -> str:
    """Write a score, or a dash for none."""
    return "\u2013" if value is None else f"{value:.3f}"

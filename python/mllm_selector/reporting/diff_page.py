"""The page that shows two selections of one pool side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mllm_selector.artifacts import atomic_write, write_json
from mllm_selector.errors import UsageError
from mllm_selector.metrics import METRICS, NLL
from mllm_selector.outputs import check_output
from mllm_selector.pool import Pool
from mllm_selector.reporting.differences import MEMBERSHIPS, Difference, Selected, find_differences
from mllm_selector.reporting.document import Section, document
from mllm_selector.reporting.gallery import Gallery
from mllm_selector.reporting.histograms import Histogram
from mllm_selector.reporting.markup import Content, element
from mllm_selector.reporting.numbers import Statistics, unit_of
from mllm_selector.reporting.panels import map_panel
from mllm_selector.reporting.parts import chart, figure, legend, meter, table
from mllm_selector.reporting.script import coverage_curve, map_data

__all__ = ["render_difference", "write_difference"]

MOST_SOURCES = 40


def write_difference(first: Path, second: Path, out: Path) -> dict[str, Any]:
    """Write the page that compares two selections, and its numbers beside it as JSON.

    Parameters
    ----------
    first, second : Path
        See `find_differences`, also for the errors raised.
    out : Path
        The page; the numbers have its name with the suffix ``.json``.

    Returns
    -------
    dict
        ``both``, ``first``, ``second``: samples in both, in one alone; ``jaccard``; ``report``, the page.

    Raises
    ------
    UsageError
        If a file that is not that of an earlier page has the name of the numbers, or a file would go over
        what is read or what a run has computed.
    """
    from mllm_selector import __version__

    numbers = out.with_suffix(".json")
    if numbers.exists() and not out.exists():  # of an earlier page it would have the page beside it
        msg = (
            f"--out: the numbers would go over {numbers}, which is there already; give the page another name"
        )
        raise UsageError(msg)
    difference, pool = find_differences(first, second)
    for file in (out, numbers):
        check_output("--out", file, {"the pool itself": pool.inputs, "what is compared": [first, second]})
    page = render_difference(difference, pool, __version__, numbers.name).encode()
    write_json(numbers, difference.as_json())
    with atomic_write(out) as sink:
        sink.write(page)
    return {
        "both": difference.both,
        "first": difference.first.alone,
        "second": difference.second.alone,
        "jaccard": difference.jaccard,
        "report": str(out),
    }


def render_difference(difference: Difference, pool: Pool, version: str, numbers_name: str) -> str:
    """Write the page.

    Parameters
    ----------
    difference : Difference
        What it says.
    pool : Pool
        Where the samples of its galleries are.
    version : str
        Of this package.
    numbers_name : str
        Name of the JSON file beside the page.
    """
    gallery = Gallery(pool, METRICS[NLL].unit)
    first, second = difference.first, difference.second
    sections: list[Section] = [
        ("overlap", "Overlap", _overlap(difference)),
        ("map", "Map", _map(difference)),
        ("necessity", "Necessity", _necessity(difference)),
        ("sources", "Sources", _sources(difference)),
        ("coverage", "Coverage", _coverage(difference)),
        ("only-first", "Only the first", _only(gallery, first, difference.only_first)),
        ("only-second", "Only the second", _only(gallery, second, difference.only_second)),
        ("options", "Options", _options(difference)),
    ]
    header = [
        element("p", "mllm-selector", element("span", f" {version}"), class_="brand"),
        element("h1", "Two selections"),
        element("p", "first: ", element("b", first.name), class_="run", dir="auto"),
        element("p", "second: ", element("b", second.name), class_="run", dir="auto"),
        element("p", _lead(difference), class_="lead"),
    ]
    footer = element(
        "p",
        "The same numbers are in ",
        element("code", numbers_name),
        " beside this page. Charts are drawn by Chart.js (MIT licence), which is part of it.",
    )
    return document("Two selections", header, sections, footer, _data(difference, pool))


def _data(difference: Difference, pool: Pool) -> dict[str, Any]:
    first, second = difference.first, difference.second
    curves = [
        coverage_curve(name, tone, side.coverage.counts, side.coverage.median, side.coverage.p95, side.chosen)
        for name, tone, side in (("first", "chosen", first), ("second", "aside", second))
        if side.coverage is not None
    ]
    histogram = Histogram(difference.edges, first.histogram, second.histogram)
    return {
        "unit": unit_of(NLL),
        "histogram": {
            "edges": difference.edges,
            "tail": histogram.has_tail,
            "pool": first.histogram,
            "chosen": second.histogram,
        },
        "coverage": {"curves": curves, "marks": _marks(first, second)},
        "map": None
        if difference.map is None
        else map_data(difference.map, difference.map_items, pool) | {"memberships": MEMBERSHIPS},
    }


def _marks(first: Selected, second: Selected) -> list[dict[str, Any]]:
    if first.chosen == second.chosen:
        return [{"x": first.chosen, "text": "both selections"}]
    return [{"x": first.chosen, "text": "first"}, {"x": second.chosen, "text": "second"}]


def _lead(difference: Difference) -> str:
    first, second = difference.first, difference.second
    return (
        f"Of {difference.samples:,} samples the first chose {first.chosen:,} and the second "
        f"{second.chosen:,}. {difference.both:,} are in both: {difference.both / max(1, first.chosen):.1%} "
        f"of the first and {difference.both / max(1, second.chosen):.1%} of the second; by chance it would "
        f"be about {difference.by_chance:,.0f}."
    )


def _overlap(difference: Difference) -> Content:
    first, second = difference.first, difference.second
    either = first.alone + difference.both + second.alone
    parts = [
        ("only the first", first.alone, first.alone_necessity, "chosen"),
        ("both", difference.both, difference.both_necessity, "pool"),
        ("only the second", second.alone, second.alone_necessity, "aside"),
    ]
    flow = element(
        "ol",
        (
            element(
                "li",
                element("span", name, class_="step"),
                element("strong", f"{count:,}"),
                element("span", f"mean necessity {figure(necessity.mean)}", class_="note"),
                meter(count / max(1, either), tone),
            )
            for name, count, necessity, tone in parts
        ),
        class_="flow three",
        aria_label="What the selections have in common",
    )
    text = (
        f"Of the {either:,} samples that either chose, {difference.jaccard:.1%} are in both (Jaccard index). "
        "Necessity and embeddings are those of the first run."
    )
    if difference.rank_correlation is not None:
        text += (
            " The two runs scored the pool with different seed models; the rank correlation (Spearman) of "
            f"their necessities is {difference.rank_correlation:.3f}."
        )
    return [flow, element("p", text)]


def _map(difference: Difference) -> Content:
    if difference.map is None:
        return element("p", "Too few samples were scored to draw a map.")
    return map_panel(
        difference.map, [("membership", "who chose it"), ("necessity", "necessity"), ("source", "source")]
    )


def _necessity(difference: Difference) -> Content:
    first, second = difference.first, difference.second
    rows: list[list[Content]] = [
        [field.name.replace("p10", "10% are below").replace("p90", "90% are below"), *values]
        for field in dataclasses.fields(Statistics)
        if field.name != "scored"
        for values in [[figure(getattr(side.necessity, field.name)) for side in (first, second)]]
    ]
    keys = legend(("chosen", "first"), ("aside", "second"))
    return element(
        "div",
        element(
            "figure",
            element("figcaption", "Samples of each selection by necessity ", keys),
            chart("two", "Necessity of the two selections", "middle"),
        ),
        table(["necessity", "first", "second"], rows),
    )


def _sources(difference: Difference) -> Content:
    first, second = difference.first, difference.second
    rows: list[list[Content]] = [
        [
            element("bdi", source.source),
            f"{source.pool / max(1, difference.samples):.1%}",
            f"{source.first / max(1, first.chosen):.1%}",
            f"{source.second / max(1, second.chosen):.1%}",
            f"{source.first:,}",
            f"{source.second:,}",
            f"{source.both:,}",
        ]
        for source in difference.sources[:MOST_SOURCES]
    ]
    left_out = len(difference.sources) - len(rows)
    note = f"{left_out:,} smaller sources are in the numbers beside this page." if left_out > 0 else None
    head = ["source", "share of the pool", "of the first", "of the second", "first", "second", "both"]
    return [table(head, rows), element("p", note, class_="note") if note else None]


def _coverage(difference: Difference) -> Content:
    told = [side.coverage for side in (difference.first, difference.second) if side.coverage is not None]
    if not told:
        return element("p", "No scored sample was chosen, so nothing can be measured.")
    note = (
        f"Cosine distance of {told[0].references:,} samples, drawn uniformly from the pool, to the nearest "
        "sample of each selection: in the order in which they were chosen up to the mark, and filled up "
        "with uniform draws beyond it. The lower curve is nearer to the whole pool."
    )
    rows: list[list[Content]] = [
        [name, f"{side.chosen:,}", f"{value[0]:.4f}", f"{value[1]:.4f}"]
        for name, side in (("first", difference.first), ("second", difference.second))
        if side.coverage is not None
        for value in [side.coverage.at(side.chosen)]
    ]
    keys = legend(
        ("chosen", "first"), ("aside", "second"), ("", "\u25cf half are nearer"), ("", "\u25b2 95%")
    )
    return [
        element("p", note),
        element(
            "figure",
            element("figcaption", "Distance to the nearest chosen sample ", keys),
            chart("coverage", "Distance of the pool to each selection by number of samples", "middle"),
        ),
        table(["selection", "samples", "half are nearer", "95% are nearer"], rows),
    ]


def _only(gallery: Gallery, side: Selected, items: list[Any]) -> Content:
    note = (
        f"{side.alone:,} samples; shown are some from the highest necessity to the lowest, at even distances."
    )
    return [element("p", note), gallery.cards(items)]


def _options(difference: Difference) -> Content:
    if not difference.options:
        return element("p", "The runs name no option in which they differ.")
    rows: list[list[Content]] = [
        [f"{entry['stage']}: {entry['option']}", str(entry["first"]), str(entry["second"])]
        for entry in difference.options
    ]
    return table(["option", "first", "second"], rows, text_columns=(1, 2))

"""The panels of the report that show the pool and the selection in charts and tables."""

from __future__ import annotations

from mllm_selector.reporting import charts, words
from mllm_selector.reporting.gallery import Gallery
from mllm_selector.reporting.groups import Group
from mllm_selector.reporting.histograms import Histogram
from mllm_selector.reporting.markup import Content, element
from mllm_selector.reporting.numbers import Numbers, Source
from mllm_selector.reporting.overview import Map
from mllm_selector.reporting.parts import chart, figure, legend, table
from mllm_selector.reporting.script import MOST_GROUPS_DRAWN, drawn_groups

__all__ = ["coverage", "duplicates", "groups", "map_", "map_panel", "necessity", "sources"]

MOST_SOURCES = 20
MOST_GROUPS = 8


def map_(numbers: Numbers) -> Content:
    """Show the pool laid out flat, with samples to look at."""
    drawn = numbers.map
    if drawn is None:
        return element("p", "Too few samples were scored to draw a map.")
    choices = [("necessity", "necessity"), *((f"score:{score.name}", score.name) for score in numbers.scores)]
    if len(numbers.sources) > 1:
        choices.append(("source", "source"))
    if len({point.group for point in drawn.points if point.group is not None}) > 1:
        choices.append(("group", "group"))
    return map_panel(drawn, choices)


def map_panel(drawn: Map, choices: list[tuple[str, str]]) -> Content:
    """Show a map with a choice of what its colours mean: values for the script, and their names."""
    told = (
        "Samples with similar embeddings lie near each other: the embeddings along their two principal "
        f"axes, which hold {drawn.variance:.0%} of their variance, so what looks near may be far. "
        f"Grey tiles: how many of all {sum(drawn.counts):,} embedded samples lie there. Points: "
        f"{len(drawn.points):,} samples drawn uniformly from the pool and from what was chosen; those with a "
        "ring were chosen."
    )
    radios = [
        element(
            "label",
            element("input", type="radio", name="colour", value=value, checked=number == 0),
            title,
        )
        for number, (value, title) in enumerate(choices)
    ]
    controls = element(
        "div",
        element("fieldset", element("legend", "Colour by"), radios),
        element("label", element("input", type="checkbox", id="only-chosen"), "chosen ones only"),
        id="map-controls",
    )
    how = (
        "Point at a sample to see it, click to hold it; with the keyboard, arrow keys go from sample to "
        "sample and Escape lets go."
    )
    return [
        element("p", told),
        controls,
        element(
            "div",
            element(
                "div",
                chart("map", "Map of the pool by similarity", "tall"),
                element("ul", id="map-legend", class_="keys"),
                element("p", how, class_="note"),
            ),
            element("div", id="map-detail", class_="detail", aria_live="polite"),
            class_="map",
        ),
    ]


def necessity(numbers: Numbers) -> Content:
    """Show how necessity is spread in the pool, in the selection and in each source."""
    if not numbers.pool_necessity.scored:
        return element("p", "No sample was scored.")
    whole = element(
        "figure",
        element(
            "figcaption",
            "How much the seed model still has to learn from each sample. Low: it knows the answer already. "
            "High: it does not, or the answer is wrong. ",
            legend(("pool", "pool"), ("chosen", "chosen part")),
        ),
        chart("histogram", "Necessity of the pool with the chosen part", "middle"),
        element("p", "Share chosen in each bin; dashed: in the whole pool", class_="note over"),
        chart("rates", "Share chosen in each bin of necessity", "low"),
        _histogram_table(numbers.histogram),
    )
    shown = [source for source in numbers.sources if source.histogram is not None]
    if len(shown) < 2:
        return whole
    panels = [_panel(source, number) for number, source in enumerate(shown)]
    left_out = len(numbers.sources) - len(shown)
    title = "By source" + (f" (the largest {len(shown)} of {len(numbers.sources):,})" if left_out else "")
    note = "Each with its own height; the same necessity scale."
    return [
        whole,
        element("h3", title),
        element("p", note, class_="note"),
        element("div", panels, class_="panels"),
    ]


def _histogram_table(data: Histogram) -> Content:
    rows: list[list[Content]] = [
        [data.bin_name(index), f"{pool:,}", f"{chosen:,}", f"{chosen / pool:.1%}" if pool else ""]
        for index, (pool, chosen) in enumerate(zip(data.pool, data.chosen, strict=True))
    ]
    shown = table(["necessity", "pool", "chosen", "share chosen"], rows)
    return element("details", element("summary", "The same as a table"), shown)


def _panel(source: Source, number: int) -> Content:
    return element(
        "figure",
        element(
            "figcaption",
            element("b", source.source, dir="auto"),
            element("span", f"{source.chosen:,} of {source.pool:,}, mean {figure(source.mean_necessity)}"),
        ),
        chart("source", f"Necessity of {source.source} with the chosen part", "small", index=number),
    )


def sources(numbers: Numbers) -> Content:
    """Show the share of each source before and after."""
    shown = numbers.sources[:MOST_SOURCES]
    rest = numbers.sources[MOST_SOURCES:]
    rows = [(source.source, source) for source in shown]
    if rest:
        rows.append((f"{len(rest):,} other sources", _together(rest)))
    limit = max(max(source.pool_share, source.chosen_share) for _, source in rows)
    shown_shares = table(
        ["source", "", "share before", "after", "pool", "chosen", "mean necessity"],
        [
            [
                element("bdi", name),
                charts.shift(source.pool_share, source.chosen_share, limit),
                f"{source.pool_share:.1%}",
                f"{source.chosen_share:.1%}",
                f"{source.pool:,}",
                f"{source.chosen:,}",
                figure(source.mean_necessity),
            ]
            for name, source in rows
        ],
    )
    note = (
        "Share of each source in the pool and in the selection. A source that the seed model finds hard "
        "gains, one that it knows loses."
    )
    return [element("p", note, legend(("ring", "pool"), ("dot", "selection"))), shown_shares]


def _together(sources: list[Source]) -> Source:
    scored = [(source.mean_necessity, source.pool) for source in sources if source.mean_necessity is not None]
    weight = sum(size for _, size in scored)
    return Source(
        source="",
        pool=sum(source.pool for source in sources),
        chosen=sum(source.chosen for source in sources),
        pool_share=sum(source.pool_share for source in sources),
        chosen_share=sum(source.chosen_share for source in sources),
        mean_necessity=sum(mean * size for mean, size in scored) / weight if weight else None,
        histogram=None,
    )


def groups(numbers: Numbers) -> Content:
    """Show what each group is and how much of it was chosen."""
    told = numbers.groups
    if not told:
        return element("p", "Nothing was chosen, so there are no groups.")
    if len(told) == 1:
        return element("p", "The samples were chosen from the pool as a whole, without groups.")
    known = [group for group in told if group.mean_necessity is not None]
    known.sort(key=lambda group: (-(group.mean_necessity or 0), group.group))
    sizes = [group.size for group in told if group.size is not None]
    count = f"{len(told):,} group{'s' * (len(told) != 1)}"
    content: list[Content] = []
    drawn = drawn_groups(told)
    if numbers.groups_are_whole and sizes:
        text = f"{count} of {min(sizes):,} to {max(sizes):,} samples."
        if len(drawn) > 1:
            text += " Each circle is a group, its area the group's size; the dashed line is the whole pool."
            if len(told) > MOST_GROUPS_DRAWN:
                text += f" Shown are the {MOST_GROUPS_DRAWN} largest."
        content.append(element("p", text))
        if len(drawn) > 1:
            caption = element(
                "figcaption", "Share of each group that was chosen (upwards), by its mean necessity"
            )
            label = "Groups by mean necessity and the share of each that was chosen"
            content.append(element("figure", caption, chart("groups", label, "middle")))
    else:
        content.append(
            element("p", f"{count} in the selection; necessity and source are those of the chosen samples.")
        )
    content.append(_group_table(known))
    return content


def _group_table(known: list[Group]) -> Content:
    if len(known) <= 2 * MOST_GROUPS:
        return _group_rows("All groups by mean necessity", known)
    return [
        _group_rows(f"The {MOST_GROUPS} groups of highest mean necessity", known[:MOST_GROUPS]),
        _group_rows(f"The {MOST_GROUPS} groups of lowest mean necessity", known[-MOST_GROUPS:]),
    ]


def _group_rows(title: str, groups: list[Group]) -> Content:
    rows: list[list[Content]] = [
        [
            str(group.group),
            "" if group.size is None else f"{group.size:,}",
            f"{group.chosen:,}",
            f"{group.chosen / group.size:.1%}" if group.size else "",
            figure(group.mean_necessity),
            None
            if group.main_source is None
            else [element("bdi", group.main_source), f" ({group.main_source_share:.0%})"],
        ]
        for group in groups
    ]
    head = ["group", "size", "chosen", "share chosen", "mean necessity", "main source of the chosen"]
    return [element("h3", title), table(head, rows, text_columns=(5,))]


def coverage(numbers: Numbers) -> Content:
    """Show how near the pool is to what was chosen, and what a larger budget would change."""
    told = numbers.coverage
    if told is None:
        return element("p", "No scored sample was chosen, so nothing can be measured.")
    note = (
        f"How far the pool is from the selection: the cosine distance of {told.references:,} samples, "
        "drawn uniformly from the pool, to the nearest sample of the selection. Left of the mark, the "
        "selection's own first samples in the order in which they were chosen; right of it, the selection "
        "and samples drawn uniformly from what was not chosen. Grey: as many samples drawn uniformly from "
        "the whole pool."
    )
    rows: list[list[Content]] = [
        [
            f"{count:,}",
            f"{told.median[place]:.4f}",
            f"{told.p95[place]:.4f}",
            f"{told.random_median[place]:.4f}",
            f"{told.random_p95[place]:.4f}",
        ]
        for place, count in enumerate(told.counts)
    ]
    head = ["samples", "half are nearer", "95% are nearer", "random: half", "random: 95%"]
    keys = legend(
        ("dot", "selection"), ("ring", "random samples"), ("", "\u25cf half are nearer"), ("", "\u25b2 95%")
    )
    return [
        element("p", words.larger_budget(told, numbers.chosen)),
        element("p", note),
        element(
            "figure",
            element("figcaption", "Cosine distance to the nearest chosen sample ", keys),
            chart("coverage", "Distance of the pool to the selection by number of samples", "middle"),
            element("details", element("summary", "The same as a table"), table(head, rows)),
        ),
    ]


def duplicates(numbers: Numbers, gallery: Gallery) -> Content:
    """Show samples that are nearly the same to the seed model."""
    told = numbers.duplicates
    if told is None:
        return element("p", "No sample was scored.")
    content: list[Content] = [element("p", words.duplicates_sentence(told))]
    if not told.sets:
        return content
    content.append(
        element("p", "The largest sets found, with their first samples and the cosine to the first of them.")
    )
    for found, items in zip(told.sets, numbers.duplicate_items, strict=True):
        notes = [f"{found.count + 1:,} samples alike", *(f"cosine {value:.4f}" for value in found.cosines)]
        content.append(gallery.set_of(items, notes))
    return content

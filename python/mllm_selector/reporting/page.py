"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from importlib import resources
from typing import Any

from mllm_selector.pool import Pool
from mllm_selector.reporting import charts, words
from mllm_selector.reporting.gallery import Gallery
from mllm_selector.reporting.markup import Content, Markup, element
from mllm_selector.reporting.numbers import Group, Numbers, Reason, Source

__all__ = ["render"]

# The page may load nothing and run nothing; a browser holds it to that whatever a pool's texts say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MOST_SOURCES = 20
MOST_GROUPS = 8


def render(
    numbers: Numbers, pool: Pool, name: str, options: dict[str, dict[str, Any]], again: list[str]
) -> str:
    """Write the page.

    Parameters
    ----------
    numbers : Numbers
        What it says.
    pool : Pool
        Where the samples of its galleries are.
    name : str
        Name of the run.
    options : dict
        Options of each stage (`command.settings`).
    again : list of str
        The command and the Python call that repeat the run.
    """
    gallery = Gallery(pool)
    sections = [
        ("result", "Result", _result(numbers, options["pick"])),
        ("necessity", "Necessity", _necessity(numbers)),
        ("sources", "Sources", _sources(numbers)),
        ("groups", "Groups", _groups(numbers)),
        ("highest", "Highest necessity", _highest(numbers, gallery)),
        ("chosen", "Chosen samples", _across(numbers, gallery)),
        ("set-aside", "Set aside", _set_aside(numbers)),
        ("method", "Method", _method(numbers, options)),
        ("cost", "Time and memory", _cost(numbers)),
        ("again", "Do it again", _again(again)),
    ]
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in sections]
    style = Markup((resources.files("mllm_selector.reporting") / "style.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"Selection report: {name}"),
        element("style", style),
    )
    body = element(
        "body",
        element("a", "Skip to the result", href="#result", class_="skip"),
        element(
            "header",
            element("p", "mllm-selector", element("span", f" {numbers.mllm_selector}"), class_="brand"),
            element("h1", "Selection report"),
            element("p", name, class_="run", dir="auto"),
            element("p", words.lead(numbers), class_="lead"),
        ),
        element("nav", links, aria_label="Sections"),
        element(
            "main",
            (
                element("section", element("h2", title), content, id=anchor, tabindex="-1")
                for anchor, title, content in sections
            ),
        ),
        element(
            "footer",
            element("p", "The same numbers are in ", element("code", "report.json"), " beside this page."),
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _result(numbers: Numbers, pick: dict[str, Any]) -> Content:
    unscored = numbers.samples - numbers.pool_necessity.scored
    steps = [
        ("read", numbers.read, f"{numbers.format} records"),
        (
            "pool",
            numbers.samples,
            f"{numbers.rejected:,} set aside" if numbers.rejected else "all of them usable",
        ),
        ("scored", numbers.pool_necessity.scored, f"{unscored:,} not scored" if unscored else "every sample"),
        ("chosen", numbers.chosen, f"{numbers.chosen / max(1, numbers.samples):.1%} of the pool"),
    ]
    flow = element(
        "ol",
        (
            element(
                "li",
                element("span", step, class_="step"),
                element("strong", f"{count:,}"),
                element("span", note, class_="note"),
                _meter(count / max(1, numbers.read), "chosen" if step == "chosen" else "pool"),
            )
            for step, count, note in steps
        ),
        class_="flow",
        aria_label="From the input to the selection",
    )
    pool, chosen = numbers.pool_necessity, numbers.chosen_necessity
    rows = [
        ("mean", pool.mean, chosen.mean),
        ("10% are below", pool.p10, chosen.p10),
        ("half are below", pool.median, chosen.median),
        ("90% are below", pool.p90, chosen.p90),
        ("highest", pool.highest, chosen.highest),
    ]
    table = _table(
        ["necessity", "pool", "chosen"],
        [[name, _nats(before), _nats(after)] for name, before, after in rows],
    )
    facts = [
        words.shift_sentence(numbers.sources) if len(numbers.sources) > 1 else None,
        words.seed_sentence(numbers, pick),
        words.unscored_sentence(numbers),
    ]
    list_ = element("ul", (element("li", fact) for fact in facts if fact), class_="facts")
    return [flow, element("div", list_, table, class_="two")]


def _necessity(numbers: Numbers) -> Content:
    if not numbers.pool_necessity.scored:
        return element("p", "No sample was scored.")
    legend = _legend(("pool", "pool"), ("chosen", "chosen part"))
    whole = element(
        "figure",
        element(
            "figcaption",
            "How much the seed model still has to learn from each sample. Low: it knows the answer already. "
            "High: it does not, or the answer is wrong. ",
            legend,
        ),
        charts.in_three_widths(lambda width: charts.histogram(numbers.histogram, width)),
    )
    shown = [source for source in numbers.sources if source.histogram is not None]
    if len(shown) < 2:
        return whole
    panels = [_panel(source) for source in shown]
    left_out = len(numbers.sources) - len(shown)
    title = "By source" + (f" (the largest {len(shown)} of {len(numbers.sources):,})" if left_out else "")
    note = "Each with its own height; the same necessity scale."
    return [
        whole,
        element("h3", title),
        element("p", note, class_="note"),
        element("div", panels, class_="panels"),
    ]


def _panel(source: Source) -> Content:
    if source.histogram is None:
        return None
    mean = f"mean {_nats(source.mean_necessity)}"
    return element(
        "figure",
        element(
            "figcaption",
            element("b", source.source, dir="auto"),
            element("span", f"{source.chosen:,} of {source.pool:,}, {mean}"),
        ),
        charts.small_histogram(source.histogram, source.source),
    )


def _sources(numbers: Numbers) -> Content:
    shown = numbers.sources[:MOST_SOURCES]
    rest = numbers.sources[MOST_SOURCES:]
    rows = [(source.source, source) for source in shown]
    if rest:
        rows.append((f"{len(rest):,} other sources", _together(rest)))
    limit = max(max(source.pool_share, source.chosen_share) for _, source in rows)
    table = _table(
        ["source", "", "share before", "after", "pool", "chosen", "mean necessity"],
        [
            [
                element("bdi", name),
                charts.shift(source.pool_share, source.chosen_share, limit),
                f"{source.pool_share:.1%}",
                f"{source.chosen_share:.1%}",
                f"{source.pool:,}",
                f"{source.chosen:,}",
                _nats(source.mean_necessity),
            ]
            for name, source in rows
        ],
    )
    note = (
        "Share of each source in the pool and in the selection. A source that the seed model finds hard "
        "gains, one that it knows loses."
    )
    return [element("p", note, _legend(("ring", "pool"), ("dot", "selection"))), table]


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


def _groups(numbers: Numbers) -> Content:
    groups = numbers.groups
    if not groups:
        return element("p", "Nothing was chosen, so there are no groups.")
    known = [group for group in groups if group.mean_necessity is not None]
    known.sort(key=lambda group: (-(group.mean_necessity or 0), group.group))
    sizes = [group.size for group in groups if group.size is not None]
    count = f"{len(groups):,} group{'s' * (len(groups) != 1)}"
    content: list[Content] = []
    if numbers.groups_are_whole and sizes:
        text = f"{count} of {min(sizes):,} to {max(sizes):,} samples."
        if len(groups) > 1:
            text += " Each circle is a group, its area the group's size; the dashed line is the whole pool."
            if len(groups) > charts.MAX_POINTS:
                text += f" Shown are the {charts.MAX_POINTS} largest."
        overall = numbers.chosen / max(1, numbers.samples)
        content.append(element("p", text))
        if len(known) > 1:
            chart = charts.in_three_widths(lambda width: charts.group_scatter(known, overall, width))
            caption = element(
                "figcaption", "Share of each group that was chosen (upwards), by its mean necessity"
            )
            content.append(element("figure", caption, chart))
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
            _nats(group.mean_necessity),
            None
            if group.main_source is None
            else [element("bdi", group.main_source), f" ({group.main_source_share:.0%})"],
        ]
        for group in groups
    ]
    head = ["group", "size", "chosen", "share chosen", "mean necessity", "main source of the chosen"]
    return [element("h3", title), _table(head, rows, text_columns=(5,))]


def _highest(numbers: Numbers, gallery: Gallery) -> Content:
    note = (
        "Look at these first. A high necessity means that the seed model did not expect the answer: the "
        "sample is hard, or its answer is wrong. At the very top wrong answers are common, which is why the "
        "highest are not simply taken."
    )
    return [element("p", note), gallery.cards(numbers.highest)]


def _across(numbers: Numbers, gallery: Gallery) -> Content:
    note = "Chosen samples from the highest to the lowest necessity, at even distances."
    lowest = element(
        "details",
        element("summary", "Samples of lowest necessity: what the seed model does already"),
        gallery.cards(numbers.lowest),
    )
    return [element("p", note), gallery.cards(numbers.across), lowest if numbers.lowest else None]


def _set_aside(numbers: Numbers) -> Content:
    content: list[Content] = []
    if numbers.rejected_reasons:
        share = numbers.rejected / max(1, numbers.read)
        text = f"{numbers.rejected:,} records of the input ({share:.2%}) cannot be used. All are in "
        content += [
            element("p", text, element("code", "rejected.jsonl"), "."),
            (
                _reason(reason, words.REJECTED.get(reason.reason), numbers.rejected)
                for reason in numbers.rejected_reasons
            ),
        ]
    else:
        content.append(element("p", "Every record of the input could be used."))
    if numbers.unscored_reasons:
        total = sum(reason.count for reason in numbers.unscored_reasons)
        content += [
            element("h3", "Not scored"),
            element("p", f"{total:,} samples of the pool have no score."),
            (
                _reason(reason, words.UNSCORED.get(reason.reason), total)
                for reason in numbers.unscored_reasons
            ),
        ]
    return content


def _reason(reason: Reason, explanation: str | None, total: int) -> Content:
    examples = [
        element(
            "li",
            element(
                "bdi", str(example["id"]) if example.get("id") is not None else "without an id", class_="id"
            ),
            f" (record {example['record']:,}) "
            if "record" in example
            else f" (row {example.get('row', 0):,}) ",
            element("bdi", str(example.get("detail", ""))),
        )
        for example in reason.examples
    ]
    title = [element("b", f"{reason.count:,}"), " ", element("bdi", explanation or reason.reason)]
    code = element("code", reason.reason) if explanation else None
    return element(
        "details",
        element("summary", element("span", title, " ", code), _meter(reason.count / max(1, total), "aside")),
        element("ul", examples, class_="examples"),
        class_="reason",
        open=True,
    )


def _method(numbers: Numbers, options: dict[str, dict[str, Any]]) -> Content:
    steps = [
        element("li", element("b", title), " ", text) for title, text in words.method_steps(numbers, options)
    ]
    source = (
        "The method is that of MLLM-Selector: Necessity and Diversity-driven High-Value Data Selection for "
        "Enhanced Visual Instruction Tuning (arXiv 2503.20502). How the paper forms groups and shares the "
        "budget out among them is not public: what is described here is this package\u2019s reading of it, "
        "and other readings are options of the command. By default necessity decides only how much of the "
        "budget a group gets, because choosing single samples by it tends to collect wrong answers."
    )
    return [element("ol", steps, class_="steps"), element("p", source)]


def _cost(numbers: Numbers) -> Content:
    if not numbers.stages:
        return element("p", "The run directory does not say.")
    total = sum(stage.seconds for stage in numbers.stages)
    rows: list[list[Content]] = [
        [
            words.STAGES.get(stage.stage, stage.stage),
            words.duration(stage.seconds),
            _meter(stage.seconds / total if total else 0, "pool"),
            f"{stage.peak_mb:,.0f} MB" if stage.peak_mb is not None else "unknown",
        ]
        for stage in numbers.stages
    ]
    peaks = [stage.peak_mb for stage in numbers.stages if stage.peak_mb is not None]
    highest = f"{max(peaks):,.0f} MB" if peaks else None
    rows.append([element("b", "All"), element("b", words.duration(total)), None, element("b", highest)])
    counts = [
        element(
            "div",
            element("dt", f"{stage.stage}: {key.replace('_', ' ')}"),
            element("dd", f"{value:,}" if isinstance(value, int) else str(value)),
        )
        for stage in numbers.stages
        for key, value in stage.counts.items()
        if isinstance(value, int | float | str)
    ]
    details = element("details", element("summary", "What the stages counted"), element("dl", counts))
    return [_table(["stage", "time", "", "peak memory"], rows), details if counts else None]


def _again(again: list[str]) -> Content:
    note = "The same input, options and seed choose the same samples, with any number of threads."
    titles = ["Command", "Python"]
    return [
        element("p", note),
        (
            [element("h3", title), element("pre", element("code", text), tabindex="0")]
            for title, text in zip(titles, again, strict=True)
        ),
    ]


def _table(head: list[str], rows: list[list[Content]], text_columns: tuple[int, ...] = ()) -> Markup:
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


def _meter(share: float, class_: str) -> Markup:
    bar = element("span", style=f"width:{max(share, 0.004):.2%}", class_=class_)
    return element("span", bar, class_="meter", aria_hidden="true")


def _legend(*entries: tuple[str, str]) -> Markup:
    keys = (element("span", element("i", class_=class_), name) for class_, name in entries)
    return element("span", keys, class_="legend")


def _nats(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"

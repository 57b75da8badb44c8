"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from typing import Any

from mllm_selector.metrics import METRICS
from mllm_selector.pool import Pool
from mllm_selector.reporting import panels, words
from mllm_selector.reporting.document import Section, document
from mllm_selector.reporting.gallery import Gallery, clipped
from mllm_selector.reporting.markup import Content, element
from mllm_selector.reporting.numbers import Numbers
from mllm_selector.reporting.parts import figure, meter, table
from mllm_selector.reporting.reasons import Reason
from mllm_selector.reporting.script import chart_data

__all__ = ["render"]


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
    gallery = Gallery(pool, METRICS[numbers.metric].unit)
    sections: list[Section] = [
        ("result", "Result", _result(numbers, options["pick"])),
        ("map", "Map", panels.map_(numbers)),
        ("necessity", "Necessity", panels.necessity(numbers)),
        ("sources", "Sources", panels.sources(numbers)),
        ("groups", "Groups", panels.groups(numbers)),
        ("coverage", "Coverage", panels.coverage(numbers)),
        ("highest", "Highest", _highest(numbers, gallery)),
        ("chosen", "Chosen", _across(numbers, gallery)),
        ("duplicates", "Near-duplicates", panels.duplicates(numbers, gallery)),
        ("set-aside", "Set aside", _set_aside(numbers)),
        ("method", "Method", _method(numbers, options)),
        ("cost", "Time and cost", _cost(numbers)),
        ("again", "Do it again", _again(again)),
    ]
    header = [
        element("p", "mllm-selector", element("span", f" {numbers.mllm_selector}"), class_="brand"),
        element("h1", "Selection report"),
        element("p", name, class_="run", dir="auto"),
        element("p", words.lead(numbers), class_="lead"),
    ]
    footer = element(
        "p",
        "The same numbers are in ",
        element("code", "report.json"),
        " beside this page. Charts are drawn by Chart.js (MIT licence), which is part of it.",
    )
    return document(f"Selection report: {name}", header, sections, footer, chart_data(numbers, pool))


def _result(numbers: Numbers, pick: dict[str, Any]) -> Content:
    scored = numbers.pool_necessity.scored if numbers.drawn is None else numbers.drawn.measured
    steps = [
        ("read", numbers.read, f"{numbers.format} records"),
        (
            "pool",
            numbers.samples,
            f"{numbers.rejected:,} set aside" if numbers.rejected else "all of them usable",
        ),
        ("scored", scored, words.scored_note(numbers)),
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
                meter(count / max(1, numbers.read), "chosen" if step == "chosen" else "pool"),
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
    figures: list[list[Content]] = [[name, figure(before), figure(after)] for name, before, after in rows]
    figures += [
        [f"mean {score.name}", figure(score.pool.mean), figure(score.chosen.mean)] for score in numbers.scores
    ]
    told = table(["necessity", "pool", "chosen"], figures)
    facts = [
        words.shift_sentence(numbers.sources) if len(numbers.sources) > 1 else None,
        words.seed_sentence(numbers, pick),
        words.drawn_sentence(numbers),
        words.unscored_sentence(numbers),
    ]
    list_ = element("ul", (element("li", fact) for fact in facts if fact), class_="facts")
    return [flow, element("div", list_, told, class_="two")]


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
            element("bdi", clipped(str(example.get("detail", "")))),
            element("pre", element("code", example["text"]), tabindex="0") if "text" in example else None,
        )
        for example in reason.examples
    ]
    title = [element("b", f"{reason.count:,}"), " ", element("bdi", explanation or reason.reason)]
    code = element("code", reason.reason) if explanation else None
    return element(
        "details",
        element("summary", element("span", title, " ", code), meter(reason.count / max(1, total), "aside")),
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
    priced = numbers.stages[0].cost is not None
    rows: list[list[Content]] = [
        [
            words.STAGES.get(stage.stage, stage.stage),
            words.duration(stage.seconds),
            meter(stage.seconds / total if total else 0, "pool"),
            words.rate(stage.samples, stage.seconds),
            f"{stage.peak_mb:,.0f} MB" if stage.peak_mb is not None else "unknown",
            *([f"{stage.cost:,.2f}"] if stage.cost is not None else []),
        ]
        for stage in numbers.stages
    ]
    peaks = [stage.peak_mb for stage in numbers.stages if stage.peak_mb is not None]
    last: list[Content] = [
        "All",
        words.duration(total),
        None,
        None,
        f"{max(peaks):,.0f} MB" if peaks else None,
    ]
    if priced:
        last.append(f"{sum(stage.cost or 0 for stage in numbers.stages):,.2f}")
    rows.append([None if cell is None else element("b", cell) for cell in last])
    head = ["stage", "time", "", "samples a second", "peak memory", *(["cost"] if priced else [])]
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
    hint = None if priced else element("p", words.PRICE_HINT, class_="note")
    return [table(head, rows), hint, details if counts else None]


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

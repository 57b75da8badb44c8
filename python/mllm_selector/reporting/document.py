"""The frame of a page that needs nothing beside itself: head, navigation, sections, scripts."""

from __future__ import annotations

from importlib import resources
from typing import Any

from mllm_selector.reporting.markup import Content, Markup, element
from mllm_selector.reporting.script import data_element, policy_of, scripts

__all__ = ["Section", "document"]

Section = tuple[str, str, Content]
"""Anchor, title and content."""

SCRIPTS = ("vendor/chart.umd.js", "charts.js", "map.js", "report.js")
NO_SCRIPT = "The charts need JavaScript, which is part of this page; the tables say the same."


def document(
    title: str, header: Content, sections: list[Section], footer: Content, data: dict[str, Any]
) -> str:
    """Write a page.

    Its policy makes a browser load nothing and run only this package's scripts, whatever a pool's texts say.

    Parameters
    ----------
    title : str
        What the browser calls it.
    header : Content
        What stands above the navigation.
    sections : list of (str, str, Content)
        The sections.
    footer : Content
        What stands below them.
    data : dict
        What the charts are drawn from, as JSON values.
    """
    texts = scripts(*SCRIPTS)
    style = Markup((resources.files("mllm_selector.reporting") / "style.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=policy_of(texts)),
        element("title", title),
        element("style", style),
    )
    first = sections[0]
    body = element(
        "body",
        element("a", f"Skip to: {first[1]}", href=f"#{first[0]}", class_="skip"),
        element("header", header),
        element(
            "nav",
            (element("a", heading, href=f"#{anchor}") for anchor, heading, _ in sections),
            aria_label="Sections",
        ),
        element("noscript", element("p", NO_SCRIPT, class_="noscript")),
        element(
            "main",
            (
                element("section", element("h2", heading), content, id=anchor, tabindex="-1")
                for anchor, heading, content in sections
            ),
        ),
        element("footer", footer),
        element("p", id="spoken", class_="spoken", aria_live="polite"),
        data_element(data),
        (element("script", Markup(text)) for text in texts),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"

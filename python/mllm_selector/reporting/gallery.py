"""Galleries: samples with their images, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_selector.fetching import Fetching
from mllm_selector.pool import Pool, PoolImage, Sample
from mllm_selector.reporting.known import GalleryItem
from mllm_selector.reporting.markup import Content, Markup, element
from mllm_selector.reporting.thumbnails import Thumbnails

__all__ = ["Gallery", "clipped"]

IMAGE_BYTES = 3_600_000
MOST_IMAGES = 4
MOST_MESSAGES = 6
MOST_CHARACTERS = 400
MOST_NAME_CHARACTERS = 120
ROLES = {"system": "System", "user": "Question", "assistant": "Answer"}


class Gallery:
    """Shows samples of a pool.

    Parameters
    ----------
    pool : Pool
        Where they are. Only the images of the samples shown are opened.
    unit : str
        Unit of necessity; empty for a pure number.
    """

    def __init__(self, pool: Pool, unit: str) -> None:
        self._pool = pool
        self._unit = f" {unit}" if unit else None
        self._thumbnails = Thumbnails(IMAGE_BYTES)

    def cards(self, items: list[GalleryItem]) -> Markup:
        """Return a card for each sample."""
        if not items:
            return element("p", "There are none.", class_="note")
        return element("div", self._cards(items, [None] * len(items)), class_="cards")

    def set_of(self, items: list[GalleryItem], notes: list[str]) -> Markup:
        """Return cards that belong together, each with a note of its own."""
        return element("div", self._cards(items, notes), class_="cards set")

    def _cards(self, items: list[GalleryItem], notes: Sequence[str | None]) -> list[Markup]:
        cards = []
        with Fetching(self._pool, [item.row for item in items], MOST_IMAGES) as samples:
            for place, (item, note) in enumerate(zip(items, notes, strict=True)):
                is_full = self._thumbnails.is_full
                sample = self._pool.sample(item.row) if is_full else samples[place]
                cards.append(self._card(item, sample, note))
        return cards

    def _card(self, item: GalleryItem, sample: Sample, note: str | None) -> Markup:
        images = [
            self._image(image, f"Image {number} of {len(sample.images)} of sample {item.id}")
            for number, image in enumerate(sample.images[:MOST_IMAGES], start=1)
        ]
        if len(sample.images) > MOST_IMAGES:
            more = f"and {len(sample.images) - MOST_IMAGES:,} more images"
            images.append(element("p", more, class_="note"))
        messages = [
            element(
                "div",
                element("dt", ROLES.get(role, role)),
                element("dd", clipped(content.replace("<image>", "").strip()), dir="auto"),
                class_=role if role in ROLES else None,
            )
            for role, content in sample.messages[:MOST_MESSAGES]
        ]
        hidden = len(sample.messages) - MOST_MESSAGES
        tokens = f"{item.answer_tokens:,} answer token{'s' * (item.answer_tokens != 1)}"
        further = [f", {name} {_score(value)}" for name, value in item.scores.items()]
        flags: list[Content] = [
            element(
                "span",
                "chosen" if item.chosen else "not chosen",
                class_=f"flag {'yes' * item.chosen}".strip(),
            ),
            element("span", "seed sample", class_="flag") if item.seed else None,
            None if item.measured else element("span", "not scored: mean of its cluster", class_="flag"),
        ]
        return element(
            "article",
            element(
                "div",
                images or element("p", "text only", class_="placeholder"),
                class_="images",
            ),
            element(
                "div",
                element(
                    "p", element("b", _score(item.necessity)), self._unit, further, flags, class_="score"
                ),
                element("dl", messages),
                element("p", f"and {hidden:,} more messages", class_="note") if hidden > 0 else None,
                element("p", note, class_="note") if note else None,
                element("p", element("bdi", item.source), " \u00b7 ", tokens, class_="note"),
                element("p", clipped(item.id, MOST_NAME_CHARACTERS), class_="id", dir="auto"),
                class_="text",
            ),
        )

    def _image(self, image: PoolImage, description: str) -> Markup:
        made = self._thumbnails.make(image)
        if isinstance(made, str):
            return element("p", made, class_="placeholder", role="img", aria_label=f"{description}: {made}")
        return element(
            "img", src=made.uri, alt=description, width=made.width, height=made.height, decoding="async"
        )


def clipped(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text, or how it begins where it is long."""
    return text if len(text) <= most else text[:most].rstrip() + " \u2026"


def _score(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"

"""Galleries: samples with their images, questions and answers."""

from __future__ import annotations

from mllm_selector.pool import Pool, PoolImage
from mllm_selector.reporting.markup import Content, Markup, element
from mllm_selector.reporting.numbers import GalleryItem
from mllm_selector.reporting.thumbnails import Thumbnails

__all__ = ["Gallery"]

IMAGE_BYTES = 4_000_000
MOST_IMAGES = 4
MOST_MESSAGES = 6
MOST_CHARACTERS = 400
ROLES = {"system": "System", "user": "Question", "assistant": "Answer"}


class Gallery:
    """Shows samples of a pool.

    Parameters
    ----------
    pool : Pool
        Where they are. Only the images of the samples shown are opened.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._thumbnails = Thumbnails(IMAGE_BYTES)

    def cards(self, items: list[GalleryItem]) -> Markup:
        """Return a card for each sample."""
        if not items:
            return element("p", "There are none.", class_="note")
        return element("div", (self._card(item) for item in items), class_="cards")

    def _card(self, item: GalleryItem) -> Markup:
        sample = self._pool.sample(item.row)
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
                element("dd", _clipped(content.replace("<image>", "").strip()), dir="auto"),
                class_=role if role in ROLES else None,
            )
            for role, content in sample.messages[:MOST_MESSAGES]
        ]
        hidden = len(sample.messages) - MOST_MESSAGES
        tokens = f"{item.answer_tokens:,} answer token{'s' * (item.answer_tokens != 1)}"
        flags: list[Content] = [
            element(
                "span",
                "chosen" if item.chosen else "not chosen",
                class_=f"flag {'yes' * item.chosen}".strip(),
            ),
            element("span", "seed sample", class_="flag") if item.seed else None,
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
                element("p", element("b", f"{item.necessity:.3f}"), " nats", flags, class_="score"),
                element("dl", messages),
                element("p", f"and {hidden:,} more messages", class_="note") if hidden > 0 else None,
                element("p", element("bdi", item.source), " \u00b7 ", tokens, class_="note"),
                element("p", item.id, class_="id", dir="auto"),
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


def _clipped(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " \u2026"

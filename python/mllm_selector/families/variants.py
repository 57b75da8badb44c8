"""A sample read in another way: without its images, without its instruction, after an example.

Each variant is a conversation again, so the model's own template renders it like any other, and which of its
tokens are answer tokens is decided by the same rule (see `mllm_selector.families.chat`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mllm_selector.families.chat import EXAMPLE_ANSWER, IMAGE_MARK, Message

__all__ = ["after_example", "without_images", "without_instruction"]

# LLaVA's files put a line break between the mark and the text; it goes with the mark.
_MARK = re.compile(rf"{IMAGE_MARK}\n|\n{IMAGE_MARK}|{IMAGE_MARK}")


def without_images(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Take the image marks out of every turn, each with the line break after it, else the one before it.

    All text stays, also text that speaks of an image.
    """
    return tuple((role, _MARK.sub("", content)) for role, content in messages)


def without_instruction(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Take the text out of every user turn.

    What stays: the images (as in PreSel, arXiv 2503.07591, where the loss without the question is that of the
    answer given the image), the system turn, the answers, and what the template writes around each turn.
    """
    return tuple(
        (role, IMAGE_MARK * content.count(IMAGE_MARK) if role == "user" else content)
        for role, content in messages
    )


def after_example(messages: Sequence[Message], example: Sequence[Message]) -> tuple[Message, ...]:
    """Put another sample's turns in front, as earlier turns of the same conversation.

    The example's system turn is left out, the sample's stays first. The example's answers are shown but do
    not count as answers. Its images come before the sample's.
    """
    system = [message for message in messages[:1] if message[0] == "system"]
    shown = [
        (EXAMPLE_ANSWER if role == "assistant" else role, content)
        for role, content in example
        if role != "system"
    ]
    return (*system, *shown, *messages[len(system) :])

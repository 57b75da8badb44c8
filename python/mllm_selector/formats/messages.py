"""OpenAI's chat messages as TRL and ms-swift read them: `messages` of `role` and `content`, `images`.

A content is a text or a list of parts (``text``, ``image``, ``image_url``), whose images become marks.
"""

from __future__ import annotations

from mllm_selector.formats.text import TextFormat

__all__ = ["MESSAGES_JSON", "MESSAGES_JSON_LINES"]

MESSAGES_JSON = TextFormat("messages-json")
MESSAGES_JSON_LINES = TextFormat("messages-jsonl")

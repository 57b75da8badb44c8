"""LLaVA's own format: records with `id`, `image` and `conversations` of `from` and `value`."""

from __future__ import annotations

from mllm_selector.formats.text import TextFormat

__all__ = ["LLAVA_JSON", "LLAVA_JSON_LINES"]

LLAVA_JSON = TextFormat("llava-json")
LLAVA_JSON_LINES = TextFormat("llava-jsonl")

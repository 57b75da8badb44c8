"""ShareGPT as LLaMA-Factory reads it: `conversations` of `from` and `value`, `images`, `system`."""

from __future__ import annotations

from mllm_selector.formats.text import TextFormat

__all__ = ["SHAREGPT_JSON", "SHAREGPT_JSON_LINES"]

SHAREGPT_JSON = TextFormat("sharegpt-json")
SHAREGPT_JSON_LINES = TextFormat("sharegpt-jsonl")

"""Qwen2-VL: see `mllm_selector.families.qwen`."""

from __future__ import annotations

from typing import ClassVar

from mllm_selector.families.qwen import QwenFamily

__all__ = ["Qwen2VlFamily"]


class Qwen2VlFamily(QwenFamily):
    """`Qwen2VLForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)

"""LLaVA-NeXT (LLaVA 1.6): tiles of a picture of any resolution, see `mllm_selector.families.anyres`."""

from __future__ import annotations

from typing import ClassVar

from mllm_selector.families.anyres import AnyresFamily

__all__ = ["LlavaNextFamily"]


class LlavaNextFamily(AnyresFamily):
    """`LlavaNextForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

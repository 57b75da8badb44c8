"""Qwen3.5: the tower of Qwen3-VL without DeepStack; most text layers have a linear attention.

That is the gated delta rule (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464), which
goes through the tokens in steps, so these models do not become ONNX graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mllm_selector.families.qwen import QwenFamily
from mllm_selector.families.qwen3_vl import Qwen3VlFamily

if TYPE_CHECKING:
    from mllm_selector.families.scorer import ScorerGraph

__all__ = ["Qwen35Family"]


class Qwen35Family(Qwen3VlFamily):
    """`Qwen3_5ForConditionalGeneration` and `Qwen3_5MoeForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")

    def scorer(self, model: Any, embedding_layer: int) -> ScorerGraph:
        """Return the module that reads."""
        return QwenFamily.scorer(self, model, embedding_layer)

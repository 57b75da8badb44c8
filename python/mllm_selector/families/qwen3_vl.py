"""Qwen3-VL: as Qwen2-VL, with learned positions and features of several depths (DeepStack).

The features of earlier blocks of the vision tower are added to the states of the first text layers. They lie
beside those of the last block in each feature row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mllm_selector.families.base import Arrays
from mllm_selector.families.patches import Grid, Ints
from mllm_selector.families.qwen import QwenFamily, position_taps

if TYPE_CHECKING:
    from mllm_selector.families.scorer import ScorerGraph

__all__ = ["Qwen3VlFamily"]


class Qwen3VlFamily(QwenFamily):
    """`Qwen3VLForConditionalGeneration` and `Qwen3VLMoeForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")

    def patch_inputs(self, grids: Sequence[Grid], positions: Sequence[Ints]) -> Arrays:
        """Return taps and weights of the learned positions."""
        side = math.isqrt(self.config.vision_config.num_position_embeddings)
        each = [position_taps(*picture, side) for picture in zip(positions, grids, strict=True)]
        taps, weights = zip(*each, strict=True)
        return {"taps": np.concatenate(taps), "weights": np.concatenate(weights)}

    def scorer(self, model: Any, embedding_layer: int) -> ScorerGraph:
        """Return the module that reads."""
        from mllm_selector.families.qwen_graphs import DeepstackScorerGraph

        parts = (model.get_input_embeddings(), model.model.language_model, model.lm_head)
        return DeepstackScorerGraph(*parts, embedding_layer, len(model.model.visual.deepstack_visual_indexes))

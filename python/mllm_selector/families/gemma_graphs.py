"""The torch module of PaliGemma and Gemma 3 that becomes an ONNX graph; imported only for the export."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from mllm_selector.families.base import Graph
from mllm_selector.families.scorer import ScorerGraph

__all__ = ["GemmaScorerGraph", "gemma_scorer"]

# PaliGemma's own forward caps logits, and so the model is trained with them capped, since transformers 5.23.
_CAPS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)


class GemmaScorerGraph(ScorerGraph):
    """A scorer some of whose tokens attend to each other in both directions.

    The masks are made here: those of transformers cannot be exported, and would bring the vision tower along.

    Parameters
    ----------
    *parts : Any
        As of `ScorerGraph`.
    config : transformers.PreTrainedConfig
        Settings of the text model.
    first_position : int
        Position of a sample's first token.
    window_over_blocks : bool
        Whether sliding windows also cut tokens of one block from each other (Gemma 3), or do not (PaliGemma).
    """

    def __init__(self, *parts: Any, config: Any, first_position: int, window_over_blocks: bool) -> None:
        super().__init__(*parts)
        self.window = getattr(config, "sliding_window", None)
        self.cap = getattr(config, "final_logit_softcapping", None) if _CAPS else None
        self.first_position = first_position
        self.window_over_blocks = window_over_blocks

    def decode(self, merged: Tensor, attention_mask: Tensor, **own: Any) -> tuple[Tensor, Tensor]:
        """Run the decoder; `own` is ``blocks``, int64, shape (batch, length).

        Tokens of one block, counted from 0, attend to each other whatever their order; -1 is no block.
        """
        blocks = own["blocks"]
        query = torch.arange(merged.shape[1], device=merged.device).unsqueeze(1)
        key = query.transpose(0, 1)
        together = (blocks.unsqueeze(2) == blocks.unsqueeze(1)) & (blocks >= 0).unsqueeze(2)
        before = (key <= query).unsqueeze(0)
        kept = attention_mask.bool().unsqueeze(1)
        masks: Any = self.added_mask((before | together) & kept, merged)
        if self.window is not None:
            near = (key > query - self.window).unsqueeze(0)
            sliding = (before | together) & near if self.window_over_blocks else (before & near) | together
            masks = {"full_attention": masks, "sliding_attention": self.added_mask(sliding & kept, merged)}
        positions = key + self.first_position
        return super().decode(merged, masks, position_ids=positions)

    def logits(self, states: Tensor) -> Tensor:
        """Project hidden states to the vocabulary, capped where the model does so (PaliGemma 2)."""
        logits = super().logits(states)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def gemma_scorer(model: Any, embedding_layer: int, *, first_position: int, window_over_blocks: bool) -> Graph:
    """Describe the export of `GemmaScorerGraph` for a model."""
    module = GemmaScorerGraph(
        model.get_input_embeddings(),
        model.model.language_model,
        model.lm_head,
        embedding_layer,
        config=model.config.get_text_config(),
        first_position=first_position,
        window_over_blocks=window_over_blocks,
    )
    blocks = torch.tensor([[-1, 0, 0, -1, -1, -1, -1], [-1, 0, -1, -1, -1, -1, -1]])
    return module.graph({"blocks": blocks}, {"blocks": {0: "batch", 1: "length"}})

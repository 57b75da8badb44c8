"""The torch module of PaliGemma and Gemma 3 that becomes an ONNX graph; imported only for the export."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from mllm_selector.families.base import Graph
from mllm_selector.families.scorer import ScorerGraph

__all__ = ["GemmaScorerGraph", "SoftTokensGraph", "gemma_scorer"]

# PaliGemma's own forward caps logits, and so the model is trained with them capped, since transformers 5.23.
_CAPS = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 23)


class SoftTokensGraph(nn.Module):
    """Pictures of one size to feature rows, as Gemma 3's tower and projector compute them.

    Parameters
    ----------
    model : torch.nn.Module
        A ``Gemma3Model``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_tower
        self.projector = model.multi_modal_projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features, shape (pictures * tokens, width), of pixels, (pictures, 3, height, width)."""
        projector = self.projector
        weight = projector.mm_input_projection_weight
        states = self.tower(pixel_values=pixel_values.to(weight.dtype)).last_hidden_state
        field = states.transpose(1, 2).unflatten(2, (projector.patches_per_image,) * 2)
        pooled = projector.avg_pool(field).flatten(2).transpose(1, 2)
        features: Tensor = self._normed(pooled) @ weight
        return features.flatten(0, 1)

    def _normed(self, states: Tensor) -> Tensor:
        # With a mean in place of sum and size, the exporter would make one operator of it, half of whose
        # inputs are float32: ONNX Runtime loads that neither on the CPU in float16 nor in bfloat16.
        norm, wide = self.projector.mm_soft_emb_norm, states.float()
        mean = wide.pow(2).sum(-1, keepdim=True) / wide.shape[-1]
        normed: Tensor = wide * torch.rsqrt(mean + norm.eps) * (1 + norm.weight.float())
        return normed.to(states.dtype)


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

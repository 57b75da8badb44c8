"""The torch modules of Qwen's models that become ONNX graphs; imported only where a model is exported."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mllm_selector.families.patch_graphs import attend
from mllm_selector.families.scorer import ScorerGraph

__all__ = ["DeepstackScorerGraph", "QwenVisionGraph"]


class QwenVisionGraph(nn.Module):
    """Patches to feature rows, as the vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL compute them.

    Parameters
    ----------
    tower : torch.nn.Module
        The model's ``visual``; its blocks are used, its loop over pictures is not.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        everywhere = range(len(tower.blocks))
        # Qwen2.5-VL: the other blocks attend within windows.
        self.over_pictures = set(getattr(tower, "fullatt_block_indexes", everywhere))
        # Qwen3-VL: after these blocks come features for the first layers of the text model (DeepStack).
        self.levels = dict(
            zip(
                getattr(tower, "deepstack_visual_indexes", ()),
                getattr(tower, "deepstack_merger_list", ()),
                strict=True,
            )
        )

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        image_places: Tensor,
        image_slots: Tensor,
        window_places: Tensor | None = None,
        window_slots: Tensor | None = None,
        taps: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return features, shape (rows, width * levels).

        Parameters
        ----------
        pixel_values : Tensor, shape (rows, merged, channels, side, side)
            Patches; those of one row are merged. All frames of a patch are the same.
        patch_positions : Tensor of int64, shape (rows, merged, 2)
            Row and column of each patch in its picture.
        image_places, window_places : Tensor of int64, shape (rows, merged)
            Places of the patches in a field of pictures or windows, see `qwen.segments`.
        image_slots, window_slots : Tensor of int64, shape (segments, longest)
            The patches in that field.
        taps, weights : Tensor, shape (rows, merged, 4)
            Learned positions that each patch takes (Qwen3-VL).
        """
        embed = self.tower.patch_embed
        frames = pixel_values.flatten(0, 1).unsqueeze(2).expand(-1, -1, embed.temporal_patch_size, -1, -1)
        states = embed(frames.flatten(1))
        if taps is not None and weights is not None:
            # A product, since the exporter makes float32 of a sum in half precision.
            learned = weights.flatten(0, 1).unsqueeze(1) @ self.tower.pos_embed(taps.flatten(0, 1)).float()
            states = states + learned.squeeze(1).to(states.dtype)
        rotation = self.tower.rotary_pos_emb(states, patch_positions.flatten(0, 1))
        pictures = (image_slots, image_places)
        levels = []
        for index, block in enumerate(self.tower.blocks):
            field = pictures
            if index not in self.over_pictures and window_slots is not None and window_places is not None:
                field = (window_slots, window_places)
            attention, normed = block.attn, block.norm1(states)
            projected = attention.qkv(normed).reshape(states.shape[0], 3, attention.num_heads, -1)
            query, key, value = projected.unbind(1)
            states = states + attention.proj(attend(query, key, value, rotation, field, attention.scaling))
            states = states + block.mlp(block.norm2(states))
            if index in self.levels:
                levels.append(self.levels[index](states))
        return torch.cat([self.tower.merger(states), *levels], dim=-1)


class DeepstackScorerGraph(ScorerGraph):
    """The scorer of Qwen3-VL: feature rows hold what is read and, beside it, what early layers add.

    Meng et al., "DeepStack", arXiv 2406.04334.
    """

    def __init__(
        self, embedding: nn.Module, decoder: Any, head: nn.Module, embedding_layer: int, levels: int
    ) -> None:
        # The model's own way to add levels indexes by a mask, whose result has no fixed shape; here a level
        # is as long as the batch, zero where tokens stand. The copy leaves the model as it is.
        decoder = copy.copy(decoder)
        decoder._deepstack_process = _add
        super().__init__(embedding, decoder, head, embedding_layer)
        self.levels = levels

    def merge(self, input_ids: Tensor, image_rows: Tensor, features: Tensor) -> Tensor:
        """Put feature rows in the place of image tokens, and zeros beside the embeddings of others."""
        batch, length = input_ids.shape
        is_image = image_rows >= 0
        tokens = self.embedding(torch.where(is_image, torch.zeros_like(input_ids), input_ids))
        tokens = torch.cat([tokens, *[torch.zeros_like(tokens)] * self.levels], dim=-1)
        rows = image_rows.clamp(min=0).reshape(-1)
        images = features.index_select(0, rows).reshape(batch, length, -1)
        return torch.where(is_image.unsqueeze(-1), images, tokens)

    def decode(self, merged: Tensor, attention_mask: Tensor, **own: Any) -> tuple[Tensor, Tensor]:
        """Run the decoder with the levels apart."""
        read, *levels = merged.chunk(1 + self.levels, dim=-1)
        return super().decode(read, attention_mask, deepstack_visual_embeds=levels, **own)

    def feature_example(self, rows: int, like: Tensor) -> Tensor:
        """Return example feature rows."""
        return torch.zeros(rows, like.shape[-1] * (1 + self.levels), dtype=like.dtype)


def _add(states: Tensor, _mask: Tensor | None, level: Tensor) -> Tensor:
    return states + level

"""The torch module that sees in Mistral 3; imported only where a model is exported or run by torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mllm_selector.families.patch_graphs import attend

__all__ = ["PixtralVisionGraph"]


class PixtralVisionGraph(nn.Module):
    """Patches to feature rows, as Pixtral's tower and the projector of Mistral 3 compute them.

    Parameters
    ----------
    model : torch.nn.Module
        A ``Mistral3Model``; the layers of its tower and projector are used, its loops over pictures are not.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_tower
        self.projector = model.multi_modal_projector
        self.layer = model.config.vision_feature_layer

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, image_places: Tensor, image_slots: Tensor
    ) -> Tensor:
        """Return features, shape (rows, width); inputs as of `QwenVisionGraph`."""
        # A convolution whose steps are as wide as its kernel is a product.
        kernel = self.tower.patch_conv.weight.flatten(1)
        states = nn.functional.linear(pixel_values.flatten(0, 1).flatten(1).to(kernel.dtype), kernel)
        states = self.tower.ln_pre(states)
        rotation = self.tower.patch_positional_embedding(states, patch_positions.flatten(0, 1))
        field = (image_slots, image_places)
        layers = [states]
        for block in self.tower.transformer.layers:
            attention, normed = block.attention, block.attention_norm(states)
            query, key, value = (
                project(normed).reshape(states.shape[0], attention.num_heads, -1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            states = states + attention.o_proj(attend(query, key, value, rotation, field, attention.scaling))
            states = states + block.feed_forward(block.ffn_norm(states))
            layers.append(states)
        return self._project(self.projector.norm(layers[self.layer]), patch_positions.shape[1])

    def _project(self, states: Tensor, merged: int) -> Tensor:
        # Channels come before the patches that are merged, as of `torch.nn.functional.unfold`.
        rows = states.reshape(-1, merged, states.shape[-1]).transpose(1, 2).flatten(1)
        projector = self.projector
        hidden = projector.act(projector.linear_1(projector.patch_merger.merging_layer(rows)))
        features: Tensor = projector.linear_2(hidden)
        return features

"""The part of a model that sees, as torch modules that become ONNX graphs.

Imported only where a model is exported or run by torch: everything else in this package works without torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LlavaVisionGraph"]


class LlavaVisionGraph(nn.Module):
    """Pictures to feature rows, as `LlavaModel.get_image_features` computes them.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The whole model, of which tower and projector are used.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        layers = model.config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.drops_class_token = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features, shape (images * tokens, width), of pixels, shape (images, 3, size, size)."""
        weight = next(self.projector.parameters())
        states = self.tower(pixel_values.to(weight.dtype), output_hidden_states=True).hidden_states
        chosen = [states[layer] for layer in self.layers]
        if self.drops_class_token:
            chosen = [state[:, 1:] for state in chosen]
        features: Tensor = self.projector(torch.cat(chosen, dim=-1))
        return features.reshape(-1, features.shape[-1])

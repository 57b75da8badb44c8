"""LLaVA 1.5: a CLIP or SigLIP tower, a projector, and any decoder-only text model (Llama, Qwen2, ...).

Every picture is brought to one size and takes the same number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mllm_selector.errors import ModelError
from mllm_selector.families.base import Arrays, Family, Graph, ImageBlock
from mllm_selector.families.images import Size

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

__all__ = ["CLASS_TOKENS", "LlavaFamily", "check_tower"]

# Rows that a tower puts before those of the patches: CLIP's class token.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


def check_tower(config: Any, model: str) -> None:
    """Refuse vision towers that put other rows than a class token before those of the patches.

    Raises
    ------
    ModelError
        If the tower is not one of `CLASS_TOKENS`.
    """
    tower = config.vision_config.model_type
    if tower not in CLASS_TOKENS:
        known = ", ".join(CLASS_TOKENS)
        msg = f"{model}: LLaVA with a vision tower of type {tower!r} cannot be scored; known: {known}"
        raise ModelError(msg)


class LlavaFamily(Family):
    """`LlavaForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    one_size: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        self.image_tokens = _image_tokens(self.config)
        self._check_processor()

    @classmethod
    def check_config(cls, config: Any, model: str) -> None:
        """Refuse towers whose images differ in their number of tokens."""
        check_tower(config, model)

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        return ImageBlock(self.feature_token, (self.image_tokens,))

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (1, 3, size, size)."""
        return {"pixel_values": self.pixels(picture)}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        import torch

        from mllm_selector.families.graphs import LlavaVisionGraph, from_bytes

        size = self.config.vision_config.image_size
        graph = Graph(
            module=LlavaVisionGraph(model),
            example={"pixel_values": torch.zeros(2, 3, size, size)},
            axes={"pixel_values": {0: "images"}},
            outputs=("features",),
        )
        return from_bytes(graph, self.normalization)

    def _check_processor(self) -> None:
        """Compare the processor's picture size and number of placeholders with the model's."""
        from PIL import Image

        picture = Image.new("RGB", (64, 48))
        size = self.config.vision_config.image_size
        shape = self.prepare(picture)["pixel_values"].shape[1:]
        if shape != (3, size, size):
            msg = (
                f"{self.folder}: the image processor makes pictures of shape {shape}, the vision tower takes "
                f"{(3, size, size)}; mend size and crop_size in its processor files"
            )
            raise ModelError(msg)
        try:
            ids = self.processor(text=[self.chat.image_token], images=[[picture]])["input_ids"][0]
            placeholders = str(np.count_nonzero(np.asarray(ids) == self.config.image_token_id))
        except (TypeError, ValueError) as error:
            placeholders = f"none ({error})"
        if placeholders != str(self.image_tokens):
            msg = (
                f"{self.folder}: the processor writes {placeholders} placeholders for an image, the model "
                f"makes {self.image_tokens} features of it; mend patch_size, num_additional_image_tokens "
                "(1 for CLIP, 0 for SigLIP) and vision_feature_select_strategy in processor_config.json"
            )
            raise ModelError(msg)


def _image_tokens(config: Any) -> int:
    vision = config.vision_config
    rows = (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type]
    return int(rows - (config.vision_feature_select_strategy == "default"))

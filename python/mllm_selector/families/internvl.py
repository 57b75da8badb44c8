"""InternVL in the form of transformers: a picture in the grid of tiles nearest to its shape.

Chen et al., "InternVL 1.5", arXiv 2404.16821. Every tile has the same number of feature rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mllm_selector.families.base import Arrays, Family, Graph, ImageBlock, check_rows
from mllm_selector.families.images import Size

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["InternVlFamily"]

_IN_TILES = {"crop_to_patches": True}


class InternVlFamily(Family):
    """`InternVLForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    image_token_name: ClassVar[str] = "context_image_token"
    image_token: ClassVar[str] = "<IMG_CONTEXT>"
    causal: ClassVar[bool] = True

    @property
    def tile_rows(self) -> int:
        """Feature rows of a tile."""
        vision = self.config.vision_config
        patches = (vision.image_size[0] // vision.patch_size[0]) * (
            vision.image_size[1] // vision.patch_size[1]
        )
        return int(patches * self.config.downsample_ratio**2)

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        count = self.parts.image_processor.get_number_of_image_patches(size[1], size[0], _IN_TILES)
        tokenizer = self.parts.tokenizer
        text = f"{tokenizer.start_image_token}{self.feature_token}{tokenizer.end_image_token}"
        return ImageBlock(text, (count * self.tile_rows,))

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (tiles, 3, height, width)."""
        pixels = self.pixels(picture, **_IN_TILES)
        check_rows(len(pixels) * self.tile_rows, rows)
        return {"pixel_values": pixels}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        from mllm_selector.families.graphs import picture_graph

        return picture_graph(model, self.config.vision_config.image_size, self.normalization)

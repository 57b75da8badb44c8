"""Mistral Small 3.1 and later, Ministral 3: pictures of any size in rows of patches.

The tower is that of Pixtral (Agrawal et al., "Pixtral 12B", arXiv 2410.07073); neighbouring patches are
merged to one feature row, and a token ends each row of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import ModelError, SampleError
from mllm_selector.families.base import Arrays, Encoded, Family, ImageBlock
from mllm_selector.families.images import Size
from mllm_selector.families.patches import Grid, PatchFamily, patches
from mllm_selector.families.pixels import CHANNELS

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["Mistral3Family"]


class Mistral3Family(PatchFamily):
    """`Mistral3ForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    image_token: ClassVar[str] = "[IMG]"
    causal: ClassVar[bool] = True

    @classmethod
    def check_config(cls, config: Any, model: str) -> None:
        """Refuse other towers than Pixtral's, and features of several layers."""
        tower, layer = config.vision_config.model_type, config.vision_feature_layer
        if tower != "pixtral" or not isinstance(layer, int):
            msg = (
                f"{model}: Mistral 3 with a vision tower of type {tower!r} whose features are those of layer "
                f"{layer} cannot be scored; known: 'pixtral', one layer"
            )
            raise ModelError(msg)

    @property
    def side(self) -> int:
        """See `PatchFamily.side`."""
        return int(self.config.vision_config.patch_size)

    @property
    def merge(self) -> int:
        """See `PatchFamily.merge`."""
        return int(self.config.spatial_merge_size)

    def grid(self, size: Size) -> Grid:
        """See `PatchFamily.grid`: a picture that is too long is shrunk, then each side is rounded up."""
        unit = self.side * self.merge
        shrunk = max(*size, longest := int(self.parts.image_processor.size["longest_edge"])) / longest
        width, height = (math.ceil(math.floor(length / shrunk) / unit) * self.merge for length in size)
        return height, width

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`: a token ends each row, another one the picture."""
        rows, columns = (count // self.merge for count in self.grid(size))
        if not rows * columns:
            msg = f"image-unreadable: a picture of {size[0]} x {size[1]} pixels is shrunk to nothing"
            raise SampleError(msg)
        settings = self.parts.settings
        row = self.feature_token + settings.get("image_break_token", "[IMG_BREAK]")
        last = self.feature_token + settings.get("image_end_token", "[IMG_END]")
        return ImageBlock(row * (rows - 1) + last, (columns,) * rows, (rows, columns))

    def numbers(self, picture: Image.Image) -> NDArray[np.float32]:
        """See `PatchFamily.numbers`."""
        unit = self.side * self.merge
        (pixels,) = self.pixels(picture, patch_size={"height": unit, "width": unit})
        return patches(pixels.transpose(1, 2, 0), self.side, self.merge)

    def tower(self, model: Any) -> torch.nn.Module:
        """See `PatchFamily.tower`."""
        from mllm_selector.families.mistral3_graphs import PixtralVisionGraph

        return PixtralVisionGraph(model.model)

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`: whole pictures, those of one batch padded to one size."""
        import torch

        inputs = self.model_inputs(batch)
        if prepared:
            inputs["image_sizes"] = Family.vision_inputs(self, prepared)["grid"] * self.side
            shape = (len(prepared), CHANNELS, *inputs["image_sizes"].max(axis=0))
            inputs["pixel_values"] = np.zeros(shape, dtype=np.float32)
            for padded, (height, width), picture in zip(
                inputs["pixel_values"], inputs["image_sizes"], prepared, strict=True
            ):
                padded[:, :height, :width] = self._whole(**picture)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def _whole(self, pixel_values: NDArray[np.float32], grid: NDArray[np.int64]) -> NDArray[np.float32]:
        """Put the patches of a picture together; the reverse of `patches`."""
        rows, columns = (int(count) // self.merge for count in grid[0])
        field = pixel_values.reshape(rows, columns, self.merge, self.merge, CHANNELS, self.side, self.side)
        field = field.transpose(4, 0, 2, 5, 1, 3, 6)
        return field.reshape(CHANNELS, *(grid[0] * self.side))

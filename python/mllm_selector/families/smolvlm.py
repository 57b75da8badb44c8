"""SmolVLM and Idefics3: a picture in square tiles, and once as a whole, with marks in the text between them.

Every tile has the same size and number of feature rows. Marafioti et al., "SmolVLM", arXiv 2504.05299;
Laurencon et al., "Building and better understanding vision-language models", arXiv 2408.12637.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mllm_selector.errors import ModelError
from mllm_selector.families.base import Arrays, Encoded, Family, Graph, ImageBlock, check_rows
from mllm_selector.families.images import Size

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

__all__ = ["SmolVlmFamily", "tiles"]

LARGEST_SIDE = 4096
"""Pictures are never enlarged beyond this, the image processor's own bound."""


def tiles(size: Size, longest: int, tile: int) -> tuple[int, int]:
    """Return rows and columns of the tiles of a picture; (0, 0) if it is seen as a whole only.

    Its longer side becomes `longest`, the shorter one follows and becomes even; both are then brought up to
    multiples of `tile`.
    """
    width, height = _scaled(size, longest)
    if max(width, height) > LARGEST_SIDE:
        width, height = _scaled((width, height), LARGEST_SIDE, even=False)
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        rows = math.ceil(int(columns * tile / ratio) / tile)
    else:
        rows = math.ceil(height / tile)
        columns = math.ceil(int(rows * tile * ratio) / tile)
    return (rows, columns) if max(rows, columns) > 1 else (0, 0)


def _scaled(size: Size, longest: int, *, even: bool = True) -> Size:
    ratio = size[0] / size[1]
    shorter = int(longest / ratio) if ratio >= 1 else int(longest * ratio)
    shorter = max(shorter + shorter % 2 if even else shorter, 1)
    return (longest, shorter) if ratio >= 1 else (shorter, longest)


class SmolVlmFamily(Family):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")
    causal: ClassVar[bool] = True

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        self.tile = int(self.parts.image_processor.max_image_size["longest_edge"])
        patches, rest = divmod(self.tile, self.config.vision_config.patch_size)
        side, odd = divmod(patches, self.config.scale_factor)
        self.tile_rows = side**2
        written = self.parts.settings.get("image_seq_len", self.tile_rows)
        if rest or odd or written != self.tile_rows:
            msg = (
                f"{folder}: the processor writes {written} placeholders for a tile, the model makes "
                f"{self.tile_rows} features of it; mend image_seq_len and max_image_size in its processor "
                "files"
            )
            raise ModelError(msg)

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        rows, columns = self._tiles(size)
        around, feature = "<fake_token_around_image>", self.feature_token
        lines = [
            "".join(f"{around}<row_{row}_col_{column}>{feature}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        before = "".join(lines) + "\n" if lines else ""
        text = f"{before}{around}<global-img>{feature}{around}"
        return ImageBlock(text, (self.tile_rows,) * (rows * columns + 1))

    def _tiles(self, size: Size) -> tuple[int, int]:
        processor = self.parts.image_processor
        if not processor.do_image_splitting:
            return 0, 0
        if not processor.do_resize:
            return tiles(size, max(size), self.tile)
        return tiles(size, int(processor.size["longest_edge"]), self.tile)

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (tiles, 3, side, side)."""
        pixels = self.pixels([[picture]])[0]
        check_rows(len(pixels) * self.tile_rows, rows)
        return {"pixel_values": pixels}

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`; the model takes the tiles of all images of a sample along an axis."""
        import torch

        inputs = self.model_inputs(batch)
        counts = [sum(sample.image_tokens) // self.tile_rows for sample in batch]
        if prepared:
            pixels = self.vision_inputs(prepared)["pixel_values"]
            # Rows of zeros, which the model leaves out.
            padded = np.zeros((len(batch), max(counts), *pixels.shape[1:]), dtype=pixels.dtype)
            for row, own in enumerate(np.split(pixels, np.cumsum(counts)[:-1])):
                padded[row, : len(own)] = own
            inputs["pixel_values"] = padded
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        import torch

        from mllm_selector.families.graphs import TileVisionGraph, from_bytes

        graph = Graph(
            module=TileVisionGraph(model, self.tile),
            example={"pixel_values": torch.zeros(2, 3, self.tile, self.tile)},
            axes={"pixel_values": {0: "tiles"}},
            outputs=("features",),
        )
        return from_bytes(graph, self.normalization)

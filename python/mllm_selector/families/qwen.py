"""What Qwen's models share: patches of pictures of any size, and positions in three directions.

A picture is brought to a multiple of its patches' size and cut into patches, four of which (2 x 2) make one
feature row (Wang et al., "Qwen2-VL", arXiv 2409.12191).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector.families.base import Arrays, Encoded, Family, Graph, ImageBlock
from mllm_selector.families.images import Size
from mllm_selector.families.patches import Grid, Ints, PatchFamily
from mllm_selector.families.pixels import CHANNELS

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from mllm_selector.families.scorer import ScorerGraph

__all__ = ["QwenFamily", "position_taps", "rope_positions", "smart_size", "windows"]


def smart_size(size: Size, factor: int, smallest: int, largest: int) -> Size:
    """Return width and height that a picture is brought to.

    Both are multiples of `factor`, their product lies between `smallest` and `largest` pixels, and the aspect
    ratio is kept as well as that allows.
    """
    width, height = (round(length / factor) * factor for length in size)
    if width * height > largest:
        scale = math.sqrt(size[0] * size[1] / largest)
        width, height = (max(factor, math.floor(length / scale / factor) * factor) for length in size)
    elif width * height < smallest:
        scale = math.sqrt(smallest / (size[0] * size[1]))
        width, height = (math.ceil(length * scale / factor) * factor for length in size)
    return width, height


def rope_positions(is_image: NDArray[np.bool_], grids: Sequence[Grid]) -> Ints:
    """Return the positions of a sample's tokens in time, height and width.

    A text token stands one after what comes before it in all three; the tokens of an image stand in its grid,
    and what follows begins after the longer side of it.

    Parameters
    ----------
    is_image : ndarray of bool, shape (length,)
        Where image tokens are.
    grids : sequence of (int, int)
        Rows and columns of each image's tokens.

    Returns
    -------
    ndarray of int64, shape (3, length)
    """
    positions = np.empty((3, len(is_image)), dtype=np.int64)
    places = np.flatnonzero(is_image)
    done, following = 0, 0
    for rows, columns in grids:
        start, places = int(places[0]), places[rows * columns :]
        positions[:, done:start] = following + np.arange(start - done)
        following += start - done
        done = start + rows * columns
        positions[:, start:done] = following + np.indices((1, rows, columns)).reshape(3, -1)
        following += max(rows, columns)
    positions[:, done:] = following + np.arange(len(is_image) - done)
    return positions


def windows(grid: Grid, merge: int, side: int) -> list[Ints]:
    """Return the patches of each window of `side` x `side` merged patches; those at the edges are smaller."""
    rows, columns = grid[0] // merge, grid[1] // merge
    merged = np.arange(rows * columns).reshape(rows, columns)
    return [
        (
            merged[row : row + side, column : column + side].reshape(-1, 1) * merge**2 + np.arange(merge**2)
        ).ravel()
        for row in range(0, rows, side)
        for column in range(0, columns, side)
    ]


def position_taps(positions: Ints, grid: Grid, side: int) -> tuple[Ints, NDArray[np.float32]]:
    """Return which learned positions each patch takes, and their weights.

    A square of `side` x `side` learned positions is stretched over the picture, corners on corners, and read
    by bilinear interpolation, in float32 as PyTorch does it.

    Returns
    -------
    taps : ndarray of int64, shape (patches, 4)
        Positions in the flattened square.
    weights : ndarray of float32, shape (patches, 4)
    """
    taps, weights = [], []
    for axis, length in enumerate(grid):
        place = positions[:, axis].astype(np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
        first = np.floor(place)
        part = place - first
        taps.append(np.stack([first, np.minimum(first + 1, side - 1)], axis=-1).astype(np.int64))
        weights.append(np.stack([1 - part, part], axis=-1))
    return (
        (taps[0][:, :, None] * side + taps[1][:, None, :]).reshape(-1, 4),
        (weights[0][:, :, None] * weights[1][:, None, :]).reshape(-1, 4),
    )


class QwenFamily(PatchFamily):
    """What Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 share."""

    image_token: ClassVar[str] = "<|image_pad|>"
    causal: ClassVar[bool] = True

    @property
    def side(self) -> int:
        """See `PatchFamily.side`."""
        return int(self.parts.image_processor.patch_size)

    @property
    def merge(self) -> int:
        """See `PatchFamily.merge`."""
        return int(self.config.vision_config.spatial_merge_size)

    def grid(self, size: Size) -> Grid:
        """See `PatchFamily.grid`."""
        limits = self.parts.image_processor.size
        factor = self.side * self.merge
        width, height = smart_size(size, factor, limits["shortest_edge"], limits["longest_edge"])
        return height // self.side, width // self.side

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        rows, columns = self.grid(size)
        merged = rows // self.merge, columns // self.merge
        return ImageBlock(self.feature_token, (merged[0] * merged[1],), merged)

    def positioned(self, sample: Encoded) -> Encoded:
        """Add ``position_ids``, shape (3, length)."""
        positions = rope_positions(sample.is_image, sample.image_grids)
        return replace(sample, per_token={**super().positioned(sample).per_token, "position_ids": positions})

    def numbers(self, picture: Image.Image) -> NDArray[np.float32]:
        """See `PatchFamily.numbers`: a picture that does not move is the same in all frames of a patch."""
        frames = self.parts.image_processor.temporal_patch_size
        return self.pixels(picture).reshape(-1, CHANNELS, frames, self.side, self.side)[:, :, 0]

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`; the model finds positions by itself."""
        import torch

        inputs = self.model_inputs(batch)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.feature_token_id).astype(np.int64)
        if prepared:
            shown = Family.vision_inputs(self, prepared)
            frames = self.parts.image_processor.temporal_patch_size
            pixels = np.repeat(shown["pixel_values"][:, :, None], frames, axis=2)
            inputs["pixel_values"] = pixels.reshape(len(pixels), -1)
            inputs["image_grid_thw"] = np.insert(shown["grid"], 0, 1, axis=1)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def tower(self, model: Any) -> torch.nn.Module:
        """See `PatchFamily.tower`."""
        from mllm_selector.families.qwen_graphs import QwenVisionGraph

        return QwenVisionGraph(model.model.visual)

    def scorer_graph(self, model: Any, embedding_layer: int = -1) -> Graph:
        """See `Family.scorer_graph`."""
        import torch

        module = self.scorer(model, embedding_layer)
        example = {"position_ids": torch.zeros(3, 2, 7, dtype=torch.int64)}
        axes = {"position_ids": {1: "batch", 2: "length"}}
        return module.graph(example, axes, shares_prefixes=self.shares_prefixes)

    def scorer(self, model: Any, embedding_layer: int) -> ScorerGraph:
        """Return the module that reads."""
        from mllm_selector.families.scorer import ScorerGraph

        parts = (model.get_input_embeddings(), model.model.language_model, model.lm_head)
        return ScorerGraph(*parts, embedding_layer)

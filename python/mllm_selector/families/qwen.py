"""What Qwen's models share: patches of pictures of any size, and positions in three directions.

A picture is brought to a multiple of its patches' size and cut into patches, four of which (2 x 2) make one
feature row (Wang et al., "Qwen2-VL", arXiv 2409.12191). All that depends on sizes is computed here with
NumPy: which patches attend to which, where a patch stands in its picture, and where a token stands in its
sample.

The graph attends within *segments*, the pictures or windows of them: patches are gathered to a field of
segments of equal length and scattered back, so that memory grows with the segments' lengths, not with all
patches at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector.families.base import Arrays, Encoded, Family, Graph, ImageBlock, check_rows
from mllm_selector.families.images import Size
from mllm_selector.families.pixels import CHANNELS
from mllm_selector.families.resizing import resize

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from mllm_selector.families.scorer import ScorerGraph

__all__ = [
    "ALIGNED",
    "Grid",
    "Ints",
    "QwenFamily",
    "patches",
    "position_taps",
    "rope_positions",
    "segments",
    "smart_size",
    "vision_positions",
    "windows",
]

ALIGNED = 8
"""Of such lengths are masks that attention on CUDA takes without writing its scores to memory."""

Grid = tuple[int, int]
Ints = NDArray[np.int64]


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


def vision_positions(grid: Grid, merge: int) -> Ints:
    """Return row and column of each patch, shape (patches, 2); patches that are merged follow each other."""
    rows, columns = grid
    field = np.indices(grid).reshape(2, rows // merge, merge, columns // merge, merge)
    return field.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


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


def patches(pixels: NDArray[np.uint8], side: int, merge: int) -> NDArray[np.uint8]:
    """Cut a picture into patches, `merge` x `merge` of which follow each other.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, channels)
        Height and width are multiples of ``side * merge``.
    side : int
        Height and width of a patch.
    merge : int
        Patches that make one feature row, in each direction.

    Returns
    -------
    ndarray of uint8, shape (patches, channels, side, side)
    """
    height, width, channels = pixels.shape
    rows, columns = height // side, width // side
    field = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, channels)
    return field.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, channels, side, side)


def segments(fields: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Lay segments of patches out as a field.

    Parameters
    ----------
    fields : sequence of ndarray of int64
        Patches of each segment; every patch is in one of them.

    Returns
    -------
    slots : ndarray of int64, shape (segments, longest)
        The patch at each place of the field, -1 where there is none. The longest is rounded up to a multiple
        of `ALIGNED`.
    places : ndarray of int64, shape (patches,)
        The place of each patch in the flattened field.
    """
    longest = -(-max(map(len, fields)) // ALIGNED) * ALIGNED
    slots = np.full((len(fields), longest), -1, dtype=np.int64)
    for row, segment in enumerate(fields):
        slots[row, : len(segment)] = segment
    flat = slots.reshape(-1)
    places = np.empty(np.count_nonzero(flat >= 0), dtype=np.int64)
    places[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return slots, places


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


class QwenFamily(Family):
    """What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share.

    Attributes
    ----------
    merge : int
        Patches that make one feature row, in each direction.
    """

    image_token: ClassVar[str] = "<|image_pad|>"
    causal: ClassVar[bool] = True

    @property
    def merge(self) -> int:
        """Patches that make one feature row, in each direction."""
        return int(self.config.vision_config.spatial_merge_size)

    def grid(self, size: Size) -> Grid:
        """Return rows and columns of the patches of a picture."""
        processor = self.parts.image_processor
        limits = processor.size
        patch = int(processor.patch_size)
        width, height = smart_size(size, patch * self.merge, limits["shortest_edge"], limits["longest_edge"])
        return height // patch, width // patch

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        rows, columns = self.grid(size)
        merged = rows // self.merge, columns // self.merge
        return ImageBlock(self.feature_token, (merged[0] * merged[1],), merged)

    def positioned(self, sample: Encoded) -> Encoded:
        """Add ``position_ids``, shape (3, length)."""
        positions = rope_positions(sample.is_image, sample.image_grids)
        return replace(sample, per_token={**super().positioned(sample).per_token, "position_ids": positions})

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (patches, 3, side, side), and the grid."""
        processor = self.parts.image_processor
        grid, side = self.grid(picture.size), int(processor.patch_size)
        check_rows(math.prod(grid) // self.merge**2, rows)
        if self.normalization is None:
            # A picture that does not move is the same in all frames of a patch.
            frames = self.pixels(picture).reshape(-1, CHANNELS, processor.temporal_patch_size, side, side)
            pixels = frames[:, :, 0]
        else:
            pixels = resize(picture, grid[0] * side, grid[1] * side, processor.resample)
            pixels = patches(pixels, side, self.merge)
        return {"pixel_values": pixels, "image_grid_thw": np.array([[1, *grid]])}

    def vision_inputs(self, prepared: Sequence[Arrays]) -> Arrays:
        """See `Family.vision_inputs`: patches that are merged lie along an axis of their own."""
        inputs = super().vision_inputs(prepared)
        grids = [(int(rows), int(columns)) for _, rows, columns in inputs["image_grid_thw"]]
        positions = [vision_positions(grid, self.merge) for grid in grids]
        starts = np.cumsum([0, *(rows * columns for rows, columns in grids)])
        pictures = [np.arange(first, last) for first, last in itertools.pairwise(starts)]
        slots, places = segments(pictures)
        per_patch = {
            "pixel_values": inputs["pixel_values"],
            "patch_positions": np.concatenate(positions),
            "image_places": places,
            **self.patch_inputs(grids, positions),
        }
        unit = self.merge**2
        return {
            **{name: array.reshape(-1, unit, *array.shape[1:]) for name, array in per_patch.items()},
            "image_slots": slots,
            **self.segment_inputs(grids, starts),
        }

    def patch_inputs(self, grids: Sequence[Grid], positions: Sequence[Ints]) -> Arrays:
        """Return further inputs of the vision graph with a row for each patch."""
        return {}

    def segment_inputs(self, grids: Sequence[Grid], starts: Ints) -> Arrays:
        """Return further inputs of the vision graph."""
        return {}

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`; the model finds positions by itself."""
        import torch

        inputs = self.model_inputs(batch)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.feature_token_id).astype(np.int64)
        if prepared:
            inputs |= Family.vision_inputs(self, prepared)
            frames = self.parts.image_processor.temporal_patch_size
            pixels = np.repeat(inputs["pixel_values"][:, :, None], frames, axis=2)
            inputs["pixel_values"] = pixels.reshape(len(pixels), -1)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        import torch
        from PIL import Image

        from mllm_selector.families.graphs import from_bytes
        from mllm_selector.families.qwen_graphs import QwenVisionGraph

        pictures = [Image.new("RGB", size) for size in ((200, 300), (300, 200))]
        arrays = self.vision_inputs([self.prepare(picture) for picture in pictures])
        example = {name: torch.from_numpy(array) for name, array in arrays.items()}
        axes = {name: {0: "rows"} for name in arrays}
        axes["image_slots"] = {0: "images", 1: "longest"}
        if "window_slots" in arrays:
            axes["window_slots"] = {0: "windows", 1: "longest_window"}
        graph = Graph(QwenVisionGraph(model.model.visual), example, axes, ("features",))
        return from_bytes(graph, self.normalization)

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

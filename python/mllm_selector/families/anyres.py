"""LLaVA's pictures of any resolution: tiles and the way from their features to the rows of an image.

LLaVA-NeXT (Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024) shows a picture as a
whole and, enlarged to the grid of tiles that fits it best, in tiles. The tiles' features are laid side by
side, the part that stems from padding is cut off, and a learned `newline` row ends each line. LLaVA-OneVision
(Li et al., arXiv 2408.03326) also shrinks the features of very large pictures by bilinear interpolation.

Every row is thus a weighted sum of at most four features, and which and how much depends on the picture's
size alone: `Layout` says it, so the graph has nothing to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import ModelError
from mllm_selector.families.base import Arrays, Encoded, Family, Graph, ImageBlock, check_rows
from mllm_selector.families.images import Size
from mllm_selector.families.llava import CLASS_TOKENS, check_tower

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

__all__ = ["NEWLINE", "AnyresFamily", "Layout", "grid_of", "plain", "shrunk", "unpadded"]

NEWLINE = -1
"""Stands for the newline row among the taps of a layout."""


@dataclass(frozen=True)
class Layout:
    """How the rows of an image are made of its tiles' features.

    Attributes
    ----------
    taps : ndarray of int64, shape (rows, 4)
        Features, counted through the tiles of the image; `NEWLINE` for the newline row.
    weights : ndarray of float32, shape (rows, 4)
        Their weights.
    """

    taps: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.taps)


def grid_of(size: Size, pinpoints: Sequence[Sequence[int]], tile: int) -> tuple[int, int]:
    """Return rows and columns of the tiles that a picture is cut into.

    Of the resolutions in `pinpoints` (height, width) the one that keeps most of the picture's pixels, at
    equal pixels the smallest one.
    """
    width, height = size

    def merit(point: Sequence[int]) -> tuple[int, int]:
        scale = min(point[1] / width, point[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - point[0] * point[1]

    best = max(pinpoints, key=merit)
    return best[0] // tile, best[1] // tile


def unpadded(size: Size, rows: int, columns: int) -> tuple[slice, slice]:
    """Return the lines and columns of a field of features that do not stem from padding."""
    width, height = size
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(padding, rows - padding), slice(0, columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(padding, columns - padding)


def shrunk(field: NDArray[np.int64], rows: int, columns: int) -> Layout:
    """Resample a field of features to fewer rows and columns, as ``interpolate(mode="bilinear")`` does."""
    (top, bottom, low), (left, right, near) = _axis(field.shape[0], rows), _axis(field.shape[1], columns)
    taps = [field[y[:, None], x[None, :]] for y in (top, bottom) for x in (left, right)]
    weights = [y[:, None] * x[None, :] for y in (1 - low, low) for x in (1 - near, near)]
    return Layout(np.stack(taps, axis=-1), np.stack(weights, axis=-1))


def _axis(length: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return both neighbours of each target position and the weight of the second, in PyTorch's float32."""
    scale = np.float32(length) / np.float32(target)
    place = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(place.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), (place - first).astype(np.float32)


def plain(taps: NDArray[np.int64]) -> Layout:
    """Rows that are features as they are."""
    padded = np.zeros((*taps.shape, 4), dtype=np.int64)
    padded[..., 0] = taps
    weights = np.zeros(padded.shape, dtype=np.float32)
    weights[..., 0] = 1
    return Layout(padded, weights)


def _lines(field: Layout) -> Layout:
    """End each line of a field by the newline row, and put the lines one after the other."""
    newline = plain(np.full((len(field), 1), NEWLINE))
    taps = np.concatenate([field.taps, newline.taps], axis=1).reshape(-1, 4)
    return Layout(taps, np.concatenate([field.weights, newline.weights], axis=1).reshape(-1, 4))


class AnyresFamily(Family):
    """What LLaVA-NeXT and LLaVA-OneVision share.

    Attributes
    ----------
    side : int
        Features of a tile in each direction.
    """

    causal: ClassVar[bool] = True

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        vision = self.config.vision_config
        self.side = vision.image_size // vision.patch_size
        self._pinpoints = [list(map(int, point)) for point in self.config.image_grid_pinpoints]
        own = [list(map(int, point)) for point in self.parts.image_processor.image_grid_pinpoints]
        if own != self._pinpoints:
            msg = (
                f"{folder}: image_grid_pinpoints of the image processor are not those of config.json; "
                "mend its processor files"
            )
            raise ModelError(msg)

    @classmethod
    def check_config(cls, config: Any, model: str) -> None:
        """Refuse towers whose tiles are not a square of features."""
        check_tower(config, model)
        drops = config.vision_feature_select_strategy == "default"
        if drops != bool(CLASS_TOKENS[config.vision_config.model_type]):
            msg = (
                f"{model}: vision_feature_select_strategy {config.vision_feature_select_strategy!r} does not "
                f"go with a tower of type {config.vision_config.model_type!r}: tiles need the patches alone"
            )
            raise ModelError(msg)

    def layout(self, size: Size) -> Layout:
        """Lay out the picture as a whole and its tiles."""
        rows, columns = grid_of(size, self._pinpoints, self.config.vision_config.image_size)
        side = self.side
        tiles = np.arange(side * side, (1 + rows * columns) * side * side).reshape(rows, columns, side, side)
        field = tiles.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
        lines = _lines(self.resampled(field[unpadded(size, *field.shape)]))
        whole = plain(np.arange(side * side))
        return Layout(
            np.concatenate([whole.taps, lines.taps]), np.concatenate([whole.weights, lines.weights])
        )

    def resampled(self, field: NDArray[np.int64]) -> Layout:
        """Return the field of an image's features, shrunk where the model does so."""
        return plain(field)

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        return ImageBlock(self.feature_token, (len(self.layout(size)),))

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values`` of the tiles, their layout, and the size for the model."""
        layout = self.layout(picture.size)
        check_rows(len(layout), rows)
        return self.prepared(self.pixels(picture)[0], layout, picture.size)

    def prepared(self, pixels: NDArray[Any], layout: Layout, size: Size) -> Arrays:
        """Return the arrays of one picture."""
        return {
            "pixel_values": pixels,
            "taps": layout.taps,
            "weights": layout.weights,
            "image_sizes": np.array([[size[1], size[0]]]),
        }

    def vision_inputs(self, prepared: Sequence[Arrays]) -> Arrays:
        """See `Family.vision_inputs`: taps count through all tiles, after the newline row, which is row 0."""
        inputs = super().vision_inputs(prepared)
        del inputs["image_sizes"]
        features = [len(image["pixel_values"]) * self.side**2 for image in prepared]
        starts = np.cumsum([1, *features[:-1]])
        taps = [
            np.where(image["taps"] == NEWLINE, 0, image["taps"] + start)
            for image, start in zip(prepared, starts, strict=True)
        ]
        return inputs | {"taps": np.concatenate(taps)}

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`."""
        import torch

        inputs = self.model_inputs(batch)
        if prepared:
            both = Family.vision_inputs(self, prepared)
            inputs |= {name: both[name] for name in ("pixel_values", "image_sizes")}
            inputs |= self.further_inputs(batch)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def further_inputs(self, batch: Sequence[Encoded]) -> Arrays:
        """Return what else the unmodified model wants to know of the images of a batch."""
        return {}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        import torch

        from mllm_selector.families.graphs import AnyresVisionGraph, from_bytes

        size = self.config.vision_config.image_size
        graph = Graph(
            module=AnyresVisionGraph(model),
            example={
                "pixel_values": torch.zeros(3, 3, size, size),
                "taps": torch.zeros(5, 4, dtype=torch.int64),
                "weights": torch.zeros(5, 4),
            },
            axes={"pixel_values": {0: "tiles"}, "taps": {0: "rows"}, "weights": {0: "rows"}},
            outputs=("features",),
        )
        return from_bytes(graph, self.normalization)

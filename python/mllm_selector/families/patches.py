"""What models share that see pictures of any size as patches.

Several patches make one feature row. All that depends on sizes is computed here with NumPy: which patches
attend to which, and where a patch stands in its picture.

The graph attends within *segments*, the pictures or windows of them: patches are gathered to a field of
segments of equal length and scattered back, so that memory grows with the segments' lengths, not with all
patches at once.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector.families.base import Arrays, Family, Graph, check_rows
from mllm_selector.families.images import Size
from mllm_selector.families.resizing import resize

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["ALIGNED", "Grid", "Ints", "PatchFamily", "patches", "segments", "vision_positions"]

ALIGNED = 8
"""Of such lengths are masks that attention on CUDA takes without writing its scores to memory."""

Grid = tuple[int, int]
Ints = NDArray[np.int64]


def vision_positions(grid: Grid, merge: int) -> Ints:
    """Return row and column of each patch, shape (patches, 2); patches that are merged follow each other."""
    rows, columns = grid
    field = np.indices(grid).reshape(2, rows // merge, merge, columns // merge, merge)
    return field.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def patches(pixels: NDArray[Any], side: int, merge: int) -> NDArray[Any]:
    """Cut a picture into patches, `merge` x `merge` of which follow each other.

    Parameters
    ----------
    pixels : ndarray, shape (height, width, channels)
        Height and width are multiples of ``side * merge``.
    side : int
        Height and width of a patch.
    merge : int
        Patches that make one feature row, in each direction.

    Returns
    -------
    ndarray, shape (patches, channels, side, side)
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


class PatchFamily(Family):
    """What families share whose pictures are cut into patches.

    Attributes
    ----------
    side : int
        Height and width of a patch, in pixels.
    merge : int
        Patches that make one feature row, in each direction.
    """

    @property
    @abstractmethod
    def side(self) -> int:
        """Height and width of a patch, in pixels."""

    @property
    @abstractmethod
    def merge(self) -> int:
        """Patches that make one feature row, in each direction."""

    @abstractmethod
    def grid(self, size: Size) -> Grid:
        """Return rows and columns of the patches of a picture."""

    @abstractmethod
    def numbers(self, picture: Image.Image) -> NDArray[np.float32]:
        """Return the patches of a picture as the image processor makes them, as of `patches`."""

    @abstractmethod
    def tower(self, model: Any) -> torch.nn.Module:
        """Return the module that sees; it takes `vision_inputs`, pixels as numbers."""

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (patches, 3, side, side), and the ``grid``."""
        grid = self.grid(picture.size)
        check_rows(math.prod(grid) // self.merge**2, rows)
        if self.normalization is None:
            return {"pixel_values": self.numbers(picture), "grid": np.array([grid])}
        height, width = (count * self.side for count in grid)
        pixels = resize(picture, height, width, self.parts.image_processor.resample)
        return {"pixel_values": patches(pixels, self.side, self.merge), "grid": np.array([grid])}

    def vision_inputs(self, prepared: Sequence[Arrays]) -> Arrays:
        """See `Family.vision_inputs`: patches that are merged lie along an axis of their own."""
        inputs = super().vision_inputs(prepared)
        grids = [(int(rows), int(columns)) for rows, columns in inputs["grid"]]
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

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        import torch
        from PIL import Image

        from mllm_selector.families.graphs import from_bytes

        pictures = [Image.new("RGB", size) for size in ((200, 300), (300, 200))]
        arrays = self.vision_inputs([self.prepare(picture) for picture in pictures])
        example = {name: torch.from_numpy(array) for name, array in arrays.items()}
        axes = {name: {0: "rows"} for name in arrays}
        for name in arrays:
            if name.endswith("_slots"):
                kind = name.removesuffix("_slots")
                axes[name] = {0: f"{kind}s", 1: f"longest_{kind}"}
        return from_bytes(Graph(self.tower(model), example, axes, ("features",)), self.normalization)

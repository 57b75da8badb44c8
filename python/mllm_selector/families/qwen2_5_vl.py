"""Qwen2.5-VL: as Qwen2-VL, but most blocks of the vision tower attend within windows.

Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mllm_selector.families.base import Arrays
from mllm_selector.families.patches import Grid, Ints, segments
from mllm_selector.families.qwen import QwenFamily, windows

__all__ = ["Qwen25VlFamily"]


class Qwen25VlFamily(QwenFamily):
    """`Qwen2_5_VLForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def _windows(self, grids: Sequence[Grid], starts: Ints) -> tuple[Ints, Ints]:
        vision = self.config.vision_config
        side = vision.window_size // self.merge // vision.patch_size
        return segments(
            [
                start + window
                for grid, start in zip(grids, starts, strict=False)
                for window in windows(grid, self.merge, side)
            ]
        )

    def segment_inputs(self, grids: Sequence[Grid], starts: Ints) -> Arrays:
        """Return the windows."""
        slots, places = self._windows(grids, starts)
        return {"window_slots": slots, "window_places": places.reshape(-1, self.merge**2)}

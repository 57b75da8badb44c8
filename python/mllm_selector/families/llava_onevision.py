"""LLaVA-OneVision: as LLaVA-NeXT, but very large pictures are shrunk, and several are not cut into tiles.

A picture that is alone in its sample is seen in tiles; one of several is padded to a square and seen once. So
the same picture has other features in another sample, and its number of feature rows says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import ModelError
from mllm_selector.families.anyres import NEWLINE, AnyresFamily, Layout, plain, shrunk
from mllm_selector.families.base import Arrays, Encoded, ImageBlock
from mllm_selector.families.images import Size

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LlavaOnevisionFamily"]

_PREFIX = "anyres_max_"


class LlavaOnevisionFamily(AnyresFamily):
    """`LlavaOnevisionForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)

    @classmethod
    def check_config(cls, config: Any, model: str) -> None:
        """Refuse other ways than ``anyres_max_N`` to treat large pictures."""
        super().check_config(config, model)
        ratio = config.vision_aspect_ratio
        if not (ratio.startswith(_PREFIX) and ratio.removeprefix(_PREFIX).isdecimal()):
            msg = f"{model}: vision_aspect_ratio {ratio!r} is not known; known: {_PREFIX}9 and other numbers"
            raise ModelError(msg)

    def resampled(self, field: NDArray[np.int64]) -> Layout:
        """Shrink a field that has more than a tenth too many features in each direction."""
        rows, columns = field.shape
        largest = int(self.config.vision_aspect_ratio.removeprefix(_PREFIX))
        excess = math.sqrt(rows * columns / (largest * self.side**2))
        if excess <= 1.1:
            return plain(field)
        return shrunk(field, int(rows // excess), int(columns // excess))

    @property
    def _once(self) -> Layout:
        """The layout of a picture that is seen once."""
        return plain(np.append(np.arange(self.side**2), NEWLINE))

    def image_blocks(self, sizes: Sequence[Size]) -> list[ImageBlock]:
        """See `Family.image_blocks`."""
        if len(sizes) == 1:
            return super().image_blocks(sizes)
        return [ImageBlock(self.feature_token, (len(self._once),))] * len(sizes)

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`."""
        if rows != len(self._once):
            return super().prepare(picture, rows)
        # The processor sees once what comes in a list of several.
        pair = self.pixels([[picture, picture]])
        return self.prepared(pair[0], self._once, picture.size)

    def further_inputs(self, batch: Sequence[Encoded]) -> Arrays:
        """Return how many images each sample has."""
        return {"batch_num_images": np.array([len(each.image_tokens) for each in batch if each.image_tokens])}

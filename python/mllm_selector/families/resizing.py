"""Resizing by the Rust core, which gives the bytes that Pillow gives in a fraction of the time."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as pillow_version

from mllm_selector import _internal

__all__ = ["resize", "resized", "use_core"]

_INTERPOLATIONS = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.LANCZOS: "lanczos",
}
_CHOOSES_AXIS = int(pillow_version.split(".")[0]) >= 13


def use_core(processor: Any) -> None:
    """Have an image processor resize RGB pictures by the core in place of Pillow.

    To what size, and what is done before and after, stay its own. Where the installed Pillow gives other
    bytes than the core, it does the work itself.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
        Only those in their Pillow variant are changed.
    """
    from transformers.image_processing_backends import PilBackend

    if isinstance(processor, PilBackend) and _is_pillows():
        own = type(processor)
        # Between its class, which decides on sizes, and the one that resizes.
        processor.__class__ = type(own.__name__, (own, _core_backend()), {})


@functools.cache
def _core_backend() -> type:
    from transformers.image_processing_backends import PilBackend
    from transformers.image_transforms import get_resize_output_image_size

    class CoreBackend(PilBackend):  # type: ignore[misc]  # transformers has no types
        """Resizes by the core where it can."""

        def resize(self, image: Any, size: Any, resample: Any = None, **options: Any) -> Any:
            """See ``PilBackend.resize``: bytes, shape (channels, height, width)."""
            if image.dtype != np.uint8 or len(image) != 3 or resample not in _INTERPOLATIONS or options:
                return super().resize(image, size, resample, **options)
            if size.height and size.width:
                target = size.height, size.width
            elif size.shortest_edge and not size.longest_edge:
                target = get_resize_output_image_size(
                    image, size.shortest_edge, default_to_square=False, input_data_format="channels_first"
                )
            else:
                return super().resize(image, size, resample)
            return np.moveaxis(resized(np.moveaxis(image, 0, -1), *target, resample), -1, 0)

    return CoreBackend


def resize(picture: Image.Image, height: int, width: int, resample: int) -> NDArray[np.uint8]:
    """Resize an RGB picture with Pillow's bytes, by the core where it has them.

    Parameters
    ----------
    picture : PIL.Image.Image
        The picture.
    height, width : int
        What it is brought to.
    resample : PIL.Image.Resampling
        Any of Pillow's.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
    """
    if resample in _INTERPOLATIONS and _is_pillows():
        return resized(np.asarray(picture), height, width, resample)
    return np.asarray(picture.resize((width, height), resample))


def resized(pixels: NDArray[np.uint8], height: int, width: int, resample: int) -> NDArray[np.uint8]:
    """Resize a picture, as ``PIL.Image.Image.resize`` does.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        The picture.
    height, width : int
        What it is brought to.
    resample : PIL.Image.Resampling
        ``BILINEAR``, ``BICUBIC`` or ``LANCZOS``.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
    """
    interpolation = _INTERPOLATIONS[Image.Resampling(resample)]
    old_height, old_width, _ = pixels.shape
    # In this order Pillow goes along the axes; the widths came first always before Pillow 13.
    shapes = [(old_height, width, 3), (height, width, 3)]
    if _CHOOSES_AXIS and old_height - height > max(2 * (old_width - width), 0):
        shapes[0] = height, old_width, 3
    for shape in shapes:
        if shape != pixels.shape:
            out = np.empty(shape, dtype=np.uint8)
            _internal.resample(np.ascontiguousarray(pixels), out, interpolation)
            pixels = out
    return pixels


@functools.cache
def _is_pillows() -> bool:
    """Say whether the core gives the bytes of the installed Pillow, by pictures that shrink and grow."""
    draw = np.random.default_rng(0)
    sides = [(90, 60), (40, 75)]
    for (old_height, height), (old_width, width) in itertools.product(sides, repeat=2):
        pixels = draw.integers(0, 256, (old_height, old_width, 3), dtype=np.uint8)
        for resample in _INTERPOLATIONS:
            pillows = np.asarray(Image.fromarray(pixels).resize((width, height), resample))
            if not np.array_equal(resized(pixels, height, width, resample), pillows):
                return False
    return True

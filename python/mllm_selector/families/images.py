"""Opening the images of a sample."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

from mllm_selector.errors import SampleError

__all__ = ["MAX_ASPECT", "MAX_PIXELS", "load_image"]

MAX_PIXELS = 89_478_485
"""Larger images are refused: 256 MB as RGB, Pillow's own bound against decompression bombs."""

MAX_ASPECT = 200
"""Narrower images are refused: brought to a fixed shorter side, they would fill the memory."""


def load_image(image: Path | bytes, name: str | None = None) -> Image.Image:
    """Open an image as an RGB picture, upright (EXIF orientation applied, as transformers does).

    Parameters
    ----------
    image : Path or bytes
        A file, or the encoded image itself.
    name : str, optional
        What the image is called in the error; by default its path or size.

    Raises
    ------
    SampleError
        ``image-unreadable`` if it is missing, no image, cut off, larger than `MAX_PIXELS` or narrower
        than `MAX_ASPECT`.
    """
    if name is None:
        name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as file:
            width, height = file.size
            if width * height > MAX_PIXELS:
                msg = f"{width} x {height} pixels are more than {MAX_PIXELS:,}"
                raise ValueError(msg)
            if max(width, height) > MAX_ASPECT * min(width, height):
                msg = f"{width} x {height} pixels are narrower than 1:{MAX_ASPECT}"
                raise ValueError(msg)
            return ImageOps.exif_transpose(file).convert("RGB")
    # Pillow's decoders raise whatever the damage leads them to (OSError, ValueError, SyntaxError,
    # struct.error, IndexError, DecompressionBombError ...); all mean the same here.
    except Exception as error:
        # An OSError's own text repeats the path.
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        msg = f"image-unreadable: {name}: {why}"
        raise SampleError(msg) from error

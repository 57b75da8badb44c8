"""Opening the images of a sample."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mllm_selector.errors import SampleError, StoreError
from mllm_selector.pool import ImageRange, PoolImage, StoredImage

__all__ = ["MAX_ASPECT", "MAX_PIXELS", "Size", "image_size", "load_image"]

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_PIXELS = 89_478_485
"""Larger images are refused: 256 MB as RGB, Pillow's own bound against decompression bombs."""

MAX_ASPECT = 200
"""Narrower images are refused: brought to a fixed shorter side, they would fill the memory."""

HEAD_BYTES = 1 << 16
"""So much of an image in a store is fetched for its size; few have longer headers."""


def load_image(image: PoolImage, name: str | None = None) -> Image.Image:
    """Open an image as an RGB picture, upright (EXIF orientation applied, as transformers does).

    Parameters
    ----------
    image : Path, bytes, ImageRange or StoredImage
        A file, the encoded image itself, or where it stands in a larger file or in a store.
    name : str, optional
        What the image is called in the error; by default its path or size.

    Raises
    ------
    SampleError
        ``image-unreadable`` if it is missing, no image, cut off, larger than `MAX_PIXELS` or narrower
        than `MAX_ASPECT`.
    StoreError
        If its store cannot be asked.
    """
    with _opened(image, name) as file:
        picture = ImageOps.exif_transpose(file)
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def image_size(image: PoolImage, name: str | None = None) -> Size:
    """Read the size of the picture that `load_image` gives, from the header alone (TIFF: by decoding it).

    Raises
    ------
    SampleError
        As `load_image`, but for damage after the header.
    StoreError
        If its store cannot be asked.
    """
    if isinstance(image, StoredImage):
        # Whatever the beginning alone leads to is judged again by the whole image.
        with suppress(FileNotFoundError, SampleError):
            return _size(image.read(HEAD_BYTES), name)
    return _size(image, name)


def _size(image: PoolImage, name: str | None) -> Size:
    with _opened(image, name) as file:
        if file.format == "TIFF":  # whose size is already upright, but for some orientations and versions
            return ImageOps.exif_transpose(file).size
        # The method of PNG files would decode the picture, since the format allows EXIF after it.
        orientation = Image.Image.getexif(file).get(ExifTags.Base.Orientation)
        width, height = file.size
        return (height, width) if orientation in _ON_THE_SIDE else (width, height)


# EXIF orientations that swap width and height.
_ON_THE_SIDE = (5, 6, 7, 8)


@contextmanager
def _opened(image: PoolImage, name: str | None) -> Iterator[Image.Image]:
    """Open an image, and make one kind of error of all that its content leads to inside the block."""
    try:
        if isinstance(image, Path) and image.exists() and not image.is_file():
            msg = "it is no regular file"  # a FIFO would be waited for, a device has no end
            raise ValueError(msg)
        content = image.read() if isinstance(image, ImageRange | StoredImage) else image
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            width, height = file.size
            if width * height > MAX_PIXELS:
                msg = f"{width} x {height} pixels are more than {MAX_PIXELS:,}"
                raise ValueError(msg)
            if max(width, height) > MAX_ASPECT * min(width, height):
                msg = f"{width} x {height} pixels are narrower than 1:{MAX_ASPECT}"
                raise ValueError(msg)
            yield file
    except (MemoryError, StoreError):  # say nothing of the image
        raise
    except UnidentifiedImageError as error:  # whose own text ends in an address or a path
        msg = f"image-unreadable: {name or _name(image)}: cannot identify image file"
        raise SampleError(msg) from error
    # Pillow's decoders raise whatever the damage leads them to (OSError, ValueError, SyntaxError,
    # struct.error, IndexError, DecompressionBombError ...); all mean the same here.
    except Exception as error:
        # An OSError's own text repeats the path.
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        msg = f"image-unreadable: {name or _name(image)}: {why}"
        raise SampleError(msg) from error


def _name(image: PoolImage) -> str:
    if isinstance(image, ImageRange):
        return f"{image.file}: {image.name}"
    return f"{len(image)} bytes" if isinstance(image, bytes) else str(image)

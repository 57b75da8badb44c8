"""Small copies of images, carried inside the page."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image

from mllm_selector.errors import StoreError
from mllm_selector.pool import ImageRange, PoolImage, StoredImage

__all__ = ["Thumbnail", "Thumbnails"]

MOST_PIXELS = 50_000_000
MOST_COLOURS = 1024
LEFT_OUT = "image left out to keep the page small"


@dataclass(frozen=True)
class Thumbnail:
    """A small copy as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


class Thumbnails:
    """Makes small copies until they take up too many bytes in all.

    Parameters
    ----------
    byte_limit : int
        Bytes of encoded images that the page may carry.
    longest_side : int
        Most pixels of a side.
    quality : int
        Of JPEG, from 1 to 95.
    """

    def __init__(self, byte_limit: int, longest_side: int = 400, quality: int = 80) -> None:
        self._left = byte_limit
        self._longest_side = longest_side
        self._quality = quality

    @property
    def is_full(self) -> bool:
        """Say whether there is no room for another copy, so that images need not be fetched."""
        return not self._left

    def make(self, image: PoolImage) -> Thumbnail | str:
        """Return a small copy of an image, or in words why there is none."""
        if self.is_full:
            return LEFT_OUT
        try:
            small = _shrink(image, self._longest_side)
        except StoreError:  # says nothing of the image
            raise
        except FileNotFoundError:
            return "image file not found"
        except Exception as error:
            # Pillow's decoders raise many kinds of error; one damaged file must not stop the report.
            return f"image cannot be read ({type(error).__name__})"
        mime, data = _encode(small, self._quality)
        if len(data) > self._left:
            self._left = 0
            return LEFT_OUT
        self._left -= len(data)
        uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        return Thumbnail(uri, small.width, small.height)


def _shrink(source: PoolImage, longest_side: int) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images; they are refused below, by size.
        warnings.simplefilter("ignore")
        content = source.read() if isinstance(source, ImageRange | StoredImage) else source
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.width * image.height > MOST_PIXELS:
                msg = f"{image.width} x {image.height} pixels"
                raise ValueError(msg)
            image.draft("RGB", (2 * longest_side, 2 * longest_side))
            small = image.convert("RGBA")
    small.thumbnail((longest_side, longest_side))
    white = Image.new("RGBA", small.size, "white")
    return Image.alpha_composite(white, small).convert("RGB")


def _encode(image: Image.Image, quality: int) -> tuple[str, bytes]:
    """Encode drawings, which have few colours, as PNG and photographs as JPEG."""
    buffer = io.BytesIO()
    if image.getcolors(MOST_COLOURS) is not None:
        image.save(buffer, "PNG", optimize=True)
        return "image/png", buffer.getvalue()
    image.save(buffer, "JPEG", quality=quality)
    return "image/jpeg", buffer.getvalue()

"""Small copies of images, carried inside the page."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

__all__ = ["Thumbnail", "Thumbnails"]

LONGEST_SIDE = 400
MOST_PIXELS = 50_000_000


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
    """

    def __init__(self, byte_limit: int) -> None:
        self._left = byte_limit

    def make(self, image: Path | bytes) -> Thumbnail | str:
        """Return a small copy of an image, or in words why there is none."""
        try:
            small = _shrink(image)
        except FileNotFoundError:
            return "image file not found"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError) as error:
            # What Pillow raises for a damaged file depends on the format.
            return f"image cannot be read ({type(error).__name__})"
        mime, data = _encode(small)
        if len(data) > self._left:
            return "image left out to keep the page small"
        self._left -= len(data)
        uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        return Thumbnail(uri, small.width, small.height)


def _shrink(source: Path | bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MOST_PIXELS:
                msg = f"{image.width} x {image.height} pixels"
                raise ValueError(msg)
            image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
            small = image.convert("RGBA")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    white = Image.new("RGBA", small.size, "white")
    return Image.alpha_composite(white, small).convert("RGB")


def _encode(image: Image.Image) -> tuple[str, bytes]:
    """Encode as JPEG or PNG, whichever is smaller: photographs and drawings differ."""
    encoded = []
    for mime, settings in (("image/jpeg", {"quality": 80}), ("image/png", {"optimize": True})):
        buffer = io.BytesIO()
        image.save(buffer, mime.removeprefix("image/"), **settings)
        encoded.append((mime, buffer.getvalue()))
    return min(encoded, key=lambda entry: len(entry[1]))

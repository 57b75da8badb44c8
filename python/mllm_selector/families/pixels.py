"""Pictures travel as bytes, and the vision graph makes numbers of them.

What is left to the device is the last that an image processor does to a picture: it rescales and normalises.
So a quarter of the memory that float32 takes is written, read and sent, with the same numbers in the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHANNELS", "Normalization", "normalization"]

CHANNELS = 3
"""Of a picture, which is RGB."""


@dataclass(frozen=True)
class Normalization:
    """How a byte becomes a number, in float32: ``(byte / divisor - mean) / deviation``.

    Attributes
    ----------
    divisor : numpy.float32
        255 in most models.
    mean, deviation : ndarray of float32, shape (channels, 1, 1)
        Of each channel.
    """

    divisor: np.float32
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def numbers(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the numbers of a picture, shape (..., channels, height, width)."""
        return (pixels.astype(np.float32) / self.divisor - self.mean) / self.deviation


def normalization(processor: Any) -> Normalization | None:
    """Find out what an image processor makes of bytes, by its own methods.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
        Rescales and normalises after all that it does to bytes.

    Returns
    -------
    Normalization or None
        None where another number would come out for any byte, or where it is not known that the processor
        works so: only those in their Pillow variant that do both are.
    """
    is_plain = all(
        getattr(processor, name, False) for name in ("do_rescale", "do_normalize", "rescale_factor")
    )
    if not is_plain or getattr(processor, "backend", None) != "pil":
        return None
    mean, deviation = (
        np.broadcast_to(np.asarray(values, dtype=np.float32), CHANNELS).reshape(-1, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    found = Normalization(np.float32(1 / processor.rescale_factor), mean, deviation)
    every = np.tile(np.arange(256, dtype=np.uint8), (CHANNELS, 1, 1))
    rescaled = processor.rescale(every, processor.rescale_factor)
    own = processor.normalize(rescaled, processor.image_mean, processor.image_std)
    return found if np.array_equal(found.numbers(every), own) else None

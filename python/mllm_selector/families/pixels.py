"""Pixel values from a table: what rescaling and normalising make of a byte is computed once for each byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["use_tables"]


def use_tables(processor: Any) -> None:
    """Have an image processor look up pixel values where it would compute them.

    Resizing, cropping, padding and cutting into tiles stay its own. The values are those that its own methods
    give, bit for bit: they make the tables. Processors that work otherwise are left as they are.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
        In its Pillow variant it calls ``rescale`` and then ``normalize`` with each picture or tile, uint8,
        shape (channels, height, width). Callers must leave its ``do_rescale`` and ``do_normalize``.
    """
    is_plain = all(
        getattr(processor, name, False) for name in ("do_rescale", "do_normalize", "rescale_factor")
    )
    if is_plain and getattr(processor, "backend", None) == "pil":
        tables = _Tables(processor)
        processor.rescale, processor.normalize = tables.rescale, tables.normalize


class _Tables:
    """Stands in for two methods of an image processor; several threads may call it."""

    def __init__(self, processor: Any) -> None:
        self._rescale, self._normalize = processor.rescale, processor.normalize
        self._scale = processor.rescale_factor
        self._known: dict[bytes, NDArray[Any]] = {}

    def rescale(self, image: NDArray[Any], scale: float, **options: Any) -> NDArray[Any]:
        """Leave bytes to `normalize`."""
        if image.dtype == np.uint8 and scale == self._scale:
            return image
        scaled: NDArray[Any] = self._rescale(image, scale, **options)
        return scaled

    def normalize(self, image: NDArray[Any], mean: Any, std: Any, **options: Any) -> NDArray[Any]:
        """Look bytes up; what is not bytes has been rescaled."""
        if image.dtype != np.uint8:
            normalized: NDArray[Any] = self._normalize(image, mean, std, **options)
            return normalized
        table = self._table(len(image), mean, std)
        values = np.empty(image.shape, dtype=table.dtype)
        for row, channel, out in zip(table, image, values, strict=True):
            # No byte is out of bounds; "clip" spares a copy (numpy.take).
            np.take(row, channel, out=out, mode="clip")
        return values

    def _table(self, channels: int, mean: Any, std: Any) -> NDArray[Any]:
        key = np.array([channels, *np.ravel(mean), *np.ravel(std)]).tobytes()
        if key not in self._known:
            bytes_ = np.tile(np.arange(256, dtype=np.uint8), (channels, 1, 1))
            self._known[key] = self._normalize(self._rescale(bytes_, self._scale), mean, std)[:, 0]
        return self._known[key]

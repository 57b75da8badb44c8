"""LLaVA's own format: records with `id`, `image` and `conversations`, as one JSON array or as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import IngestOptions

__all__ = ["LlavaJson", "LlavaJsonLines"]

_HEAD_BYTES = 1 << 16


class _Llava:
    """What both forms share: the reader and the writer, which know the form by its name."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    first_byte: ClassVar[bytes]

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Look at the first byte that is neither white space nor part of a byte order mark."""
        return all(self._begins(path) for path in paths)

    def _begins(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        return head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").startswith(self.first_byte)

    def ingest(
        self, options: IngestOptions, out: Path, rejected: Path, on_bytes: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Read a pool into `out`, set bad records aside in `rejected`, and return the counts."""
        return _internal.ingest(
            [(entry.path, entry.source) for entry in options.pool.inputs],
            self.name,
            out,
            rejected,
            images=options.images,
            check_images=options.check_images,
            max_image_pixels=options.max_image_pixels,
            source=options.source,
            threads=options.threads,
            progress=on_bytes,
        )

    def write_subset(self, pool: Path, rows: NDArray[np.uint64], inputs: Sequence[Path], out: Path) -> None:
        """Copy the records of `rows`, in that order, from the pool's `inputs` to `out`."""
        _internal.write_subset(pool, rows, inputs, out)


class LlavaJson(_Llava):
    """One JSON array of records."""

    name = "llava-json"
    suffix = ".json"
    first_byte = b"["


class LlavaJsonLines(_Llava):
    """A record a line."""

    name = "llava-jsonl"
    suffix = ".jsonl"
    first_byte = b"{"

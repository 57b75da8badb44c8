"""The checked pool: `pool.arrow`, memory-mapped, with rows as samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import open_arrow
from mllm_selector.config import Inputs
from mllm_selector.errors import PoolError
from mllm_selector.rundir import RunDirectory

__all__ = ["POOL_SCHEMA", "POOL_VERSION", "ImageRange", "Pool", "PoolImage", "Sample"]

POOL_VERSION = "2"

POOL_SCHEMA = pa.schema(
    [
        pa.field("id", pa.large_utf8(), nullable=False),
        pa.field("source", pa.large_utf8(), nullable=False),
        pa.field(
            "messages",
            pa.large_list(
                pa.field(
                    "item",
                    pa.struct(
                        [
                            pa.field("role", pa.utf8(), nullable=False),
                            pa.field("content", pa.large_utf8(), nullable=False),
                        ]
                    ),
                    nullable=False,
                )
            ),
            nullable=False,
        ),
        pa.field(
            "images",
            pa.large_list(
                pa.field(
                    "item",
                    pa.struct(
                        [
                            pa.field("path", pa.large_utf8()),
                            pa.field("bytes", pa.large_binary()),
                            pa.field("offset", pa.uint64()),
                            pa.field("length", pa.uint64()),
                        ]
                    ),
                    nullable=False,
                )
            ),
            nullable=False,
        ),
        pa.field("file", pa.uint32(), nullable=False),
        pa.field("offset", pa.uint64(), nullable=False),
        pa.field("length", pa.uint64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ImageRange:
    """An encoded image that is a part of a larger file, such as a member of a tar file.

    Attributes
    ----------
    file : Path
        The input of the pool that holds it.
    offset, length : int
        Where it stands there, in bytes.
    name : str
        What it is called there.
    """

    file: Path
    offset: int
    length: int
    name: str

    def read(self) -> bytes:
        """Return the encoded image.

        Raises
        ------
        OSError
            If the file cannot be read or ends before the image does.
        """
        with self.file.open("rb") as file:
            content = os.pread(file.fileno(), self.length, self.offset)
        if len(content) < self.length:
            msg = f"{self.file} ends inside the image {self.name}; it has changed since it was ingested"
            raise OSError(msg)
        return content


PoolImage: TypeAlias = Path | bytes | ImageRange
"""An image file, an encoded image, or where one stands in a larger file."""


@dataclass(frozen=True)
class Sample:
    """One sample of the pool.

    Attributes
    ----------
    row : int
        Its position in the pool.
    id : str
        The record's id.
    source : str
        The data set that it came from.
    messages : tuple of (str, str)
        Role (``system``, ``user`` or ``assistant``) and content of each turn, ``<image>`` marks included.
    images : tuple of Path, bytes or ImageRange
        In the order of the marks; encoded bytes where the pool carries the images itself.
    """

    row: int
    id: str
    source: str
    messages: tuple[tuple[str, str], ...]
    images: tuple[PoolImage, ...]


class Pool:
    r"""A memory-mapped pool; nothing is read before it is asked for.

    Parameters
    ----------
    table : pyarrow.Table
        A table of `POOL_SCHEMA`.
    images : Path, optional
        Folder that the image paths are relative to; without it, samples carry the relative paths.
    path : Path, optional
        The file, for error messages.
    inputs : sequence of Path, optional
        Where the pool's inputs lie now, in its order; by default where they lay when it was made.

    Raises
    ------
    PoolError
        If the table is of another schema.

    Examples
    --------
    >>> with RunDirectory(Path("run")) as run:  # doctest: +SKIP
    ...     pool = Pool.of(run)
    >>> len(pool), pool.sample(0).messages[0]  # doctest: +SKIP
    (665298, ('user', '<image>\nWhat is shown?'))
    """

    def __init__(
        self,
        table: pa.Table,
        images: Path | None = None,
        path: Path | None = None,
        inputs: Sequence[Path] | None = None,
    ) -> None:
        self._path = path
        _check_schema(table.schema, path)
        self.table = table
        self.images = images
        listed = json.loads(table.schema.metadata.get(b"mllm_selector.inputs", b"[]"))
        self._inputs = [Path(entry["path"]) for entry in listed] if inputs is None else list(inputs)
        self._batches: list[pa.RecordBatch] = [batch for batch in table.to_batches() if len(batch)]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self._checked_batches: set[int] = set()
        self._checked_columns: set[str] = set()

    @classmethod
    def open(cls, path: Path, images: Path | None = None, inputs: Sequence[Path] | None = None) -> Self:
        """Map a pool file.

        Parameters
        ----------
        path : Path
            The ``pool.arrow`` that ingest wrote.
        images : Path, optional
            Folder that its image paths are relative to.
        inputs : sequence of Path, optional
            Where the pool's inputs lie now, in its order; by default where they lay when it was made.

        Raises
        ------
        RunDirectoryError
            If the file is missing.
        PoolError
            If it is not a whole pool file.
        """
        return cls(open_arrow(path), images, path, inputs)

    @classmethod
    def of(cls, run: RunDirectory) -> Self:
        """Map the pool of a run directory, with the images folder and the inputs that it was read with.

        Raises
        ------
        RunDirectoryError
            If ingest has not finished there.
        PoolError
            If its pool file is not whole.
        """
        options = run.need("ingest").options
        images, inputs = options.get("images"), options.get("pool")
        return cls.open(
            run.pool,
            None if images is None else Path(images),
            None if inputs is None else Inputs.parse(inputs).paths,
        )

    @property
    def format(self) -> str:
        """Format of the input that the pool was read from."""
        return str(self.table.schema.metadata[b"mllm_selector.format"].decode())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self._batches)):
            start = int(self._starts[index])
            for position, record in enumerate(self._batch(index).to_pylist()):
                yield self._as_sample(start + position, record)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the pool in order as record batches of at most 8,192 rows, backed by the mapped file."""
        for index in range(len(self._batches)):
            yield self._batch(index)

    def sample(self, row: int) -> Sample:
        """Return one sample.

        Raises
        ------
        IndexError
            If `row` is not in ``[0, len(pool))``.
        """
        if not 0 <= row < len(self):
            msg = f"row {row} is not in a pool of {len(self)} samples"
            raise IndexError(msg)
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        records = self._batch(index).slice(int(row - self._starts[index]), 1).to_pylist()
        return self._as_sample(int(row), records[0])

    def ids(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[str]:
        """Return the ids of some rows, in the order given."""
        taken: list[str] = self._column("id").take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return taken

    def sources(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return the source of every sample.

        Returns
        -------
        codes : ndarray of int32, shape (n,)
            Index of each sample's source in `names`.
        names : list of str
            The sources in the order in which the pool first shows them.
        """
        encoded = self._column("source").combine_chunks().dictionary_encode()
        codes: NDArray[np.int32] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        return codes, encoded.dictionary.to_pylist()

    def _batch(self, index: int) -> pa.RecordBatch:
        """Return a batch, checked once so that no lying offset in a damaged file is followed."""
        if index not in self._checked_batches:
            self._check(self._batches[index], f"batch {index}")
            self._checked_batches.add(index)
        return self._batches[index]

    def _column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, checked in the same way."""
        if name not in self._checked_columns:
            self._check(self.table[name], f"column '{name}'")
            self._checked_columns.add(name)
        return self.table[name]

    def _check(self, part: pa.RecordBatch | pa.ChunkedArray, name: str) -> None:
        try:
            part.validate(full=True)
        except pa.ArrowInvalid as error:
            msg = f"{self._path}: {name} is damaged ({error}); delete the file and ingest again"
            raise PoolError(msg) from error

    def _as_sample(self, row: int, record: dict[str, Any]) -> Sample:
        return Sample(
            row=row,
            id=record["id"],
            source=record["source"],
            messages=tuple((message["role"], message["content"]) for message in record["messages"]),
            images=tuple(self._image(image, record["file"]) for image in record["images"]),
        )

    def _image(self, image: dict[str, Any], file: int) -> PoolImage:
        if image["bytes"] is not None:
            return bytes(image["bytes"])
        if image["offset"] is not None:
            return ImageRange(self._inputs[file], image["offset"], image["length"], image["path"] or "image")
        path = Path(image["path"])
        return path if self.images is None else self.images / path


def _check_schema(schema: pa.Schema, path: Path | None) -> None:
    metadata = schema.metadata or {}
    version = metadata.get(b"mllm_selector.pool_version", b"").decode(errors="replace")
    if version != POOL_VERSION or b"mllm_selector.format" not in metadata:
        msg = (
            f"{path} is not a pool of version {POOL_VERSION} (it says {version or 'nothing'}); "
            "run 'mllm-selector ingest' to make one"
        )
        raise PoolError(msg)
    if not schema.equals(POOL_SCHEMA):
        wrong = [field.name for field in POOL_SCHEMA if field not in list(schema)]
        what = f"missing or of another type: {', '.join(wrong)}" if wrong else "it has extra ones"
        msg = f"{path} does not have the columns of a pool ({what}); delete the file and ingest again"
        raise PoolError(msg)

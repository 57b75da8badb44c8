"""The checked pool: `pool.arrow`, memory-mapped, with rows as samples."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import ImageFolder, Inputs
from mllm_selector.errors import PoolError, RunDirectoryError, UsageError
from mllm_selector.rundir import RunDirectory
from mllm_selector.stores import ImageStore

__all__ = ["POOL_SCHEMA", "POOL_VERSION", "ImageRange", "Pool", "PoolImage", "Sample", "StoredImage"]

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


_ROWS_AT_ONCE = 1024


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
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            content = file.read(self.length)
        if len(content) < self.length:
            msg = f"{self.file} ends inside the image {self.name}; it has changed since it was ingested"
            raise OSError(msg)
        return content


@dataclass(frozen=True)
class StoredImage:
    """An encoded image in a store.

    Attributes
    ----------
    store : ImageStore
        The images folder.
    path : str
        Where it is in the folder.
    """

    store: ImageStore
    path: str

    def read(self, most: int | None = None) -> bytes:
        """Return the encoded image, or so many bytes of its beginning; see `ImageStore.read`."""
        return self.store.read(self.path, most)

    def __str__(self) -> str:
        return f"{self.store.url}/{self.path}"


PoolImage: TypeAlias = Path | bytes | ImageRange | StoredImage
"""An image file, an encoded image, or where one stands in a larger file or in a store."""


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
    images : tuple of Path, bytes, ImageRange or StoredImage
        In the order of the marks; encoded bytes where the pool carries the images itself.
    """

    row: int
    id: str
    source: str
    messages: tuple[tuple[str, str], ...]
    images: tuple[PoolImage, ...]


class Pool:
    r"""A memory-mapped pool; nothing is read before it is asked for.

    `open` reads the headers of the file's batches; a row costs what belongs to it, a column that column.
    Whatever the file says of lengths and places is checked before it is followed. Any Arrow consumer takes
    a pool as it is.

    Attributes
    ----------
    path : Path
        The file.
    images : Path, ImageStore or None
        Folder that the image paths are relative to, if known.

    Examples
    --------
    >>> pool = Pool.open("run/pool.arrow")  # doctest: +SKIP
    >>> len(pool), pool[0].messages[0]  # doctest: +SKIP
    (665298, ('user', '<image>\nWhat is shown?'))
    >>> pool.column("offset").to_numpy()  # doctest: +SKIP
    >>> polars.DataFrame(pool)  # doctest: +SKIP
    """

    def __init__(
        self,
        file: _internal.PoolFile,
        path: Path,
        images: Path | ImageStore | None,
        inputs: Sequence[Path] | None,
    ) -> None:
        self.path = path
        self.images = images
        self._file = file
        self._inputs = self._listed_inputs() if inputs is None else list(inputs)

    @classmethod
    def open(
        cls,
        path: str | Path,
        images: str | Path | ImageFolder | None = None,
        inputs: Sequence[Path] | None = None,
    ) -> Self:
        """Map a pool file.

        Parameters
        ----------
        path : str or Path
            The ``pool.arrow`` that ingest wrote.
        images : str, Path or ImageFolder, optional
            Folder that its image paths are relative to, or its URL; without it, samples carry the relative
            paths.
        inputs : sequence of Path, optional
            Where the pool's inputs lie now, in its order; by default where they lay when it was made.

        Raises
        ------
        RunDirectoryError
            If the file is missing.
        PoolError
            If it is not a whole pool file.
        """
        path = Path(path)
        try:
            file = _internal.PoolFile(path)
        except FileNotFoundError:
            msg = f"{path} is missing; run the stage that writes it again"
            raise RunDirectoryError(msg) from None
        folder = ImageFolder() if images is None else ImageFolder.parse(images)
        place = folder.path if folder.url is None else ImageStore(folder.url)
        return cls(file, path, place, inputs)

    @classmethod
    def of(cls, run: RunDirectory | str | Path) -> Self:
        """Map the pool of a run directory, with the images folder and the inputs that it was read with.

        Parameters
        ----------
        run : RunDirectory, str or Path
            The run directory, or its path.

        Raises
        ------
        RunDirectoryError
            If ingest has not finished there.
        PoolError
            If its pool file is not whole.
        """
        if not isinstance(run, RunDirectory):
            run = RunDirectory(Path(run))
            run.load()
        options = run.need("ingest").options
        inputs = options.get("pool")
        return cls.open(
            run.pool, options.get("images"), None if inputs is None else Inputs.parse(inputs).paths
        )

    @property
    def inputs(self) -> list[Path]:
        """Where the inputs lie that the pool was read from, in its order."""
        return self._inputs

    @property
    def format(self) -> str:
        """Format of the input that the pool was read from."""
        return self._file.metadata("mllm_selector.format") or ""

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, row: int) -> Sample:
        """Return one sample; a negative row counts from the end.

        Raises
        ------
        IndexError
            If there is no such row.
        PoolError
            If the file is damaged where the row stands.
        """
        index = operator.index(row)
        return self.sample(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.rows(range(start, min(start + _ROWS_AT_ONCE, len(self))))

    def sample(self, row: int) -> Sample:
        """Return one sample.

        Raises
        ------
        IndexError
            If `row` is not in ``[0, len(pool))``.
        PoolError
            If the file is damaged where the row stands.
        """
        self._check_row(row)
        return self._as_sample(int(row), self._file.row(row))

    def rows(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[Sample]:
        """Return some samples, in the order given.

        Parameters
        ----------
        rows : sequence of int, shape (k,)
            Rows of the pool, in any order, repeated ones too.

        Returns
        -------
        list of Sample, length k

        Raises
        ------
        IndexError
            If one is not in ``[0, len(pool))``.
        PoolError
            If the file is damaged where one stands.
        """
        wanted = self._as_rows(rows)
        return [
            self._as_sample(row, fields)
            for row, fields in zip(wanted.tolist(), self._file.rows(wanted), strict=True)
        ]

    def ids(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[str]:
        """Return the ids of some rows, in the order given; the errors are those of `rows`."""
        return self._file.ids(self._as_rows(rows))

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, backed by the mapped file.

        Parameters
        ----------
        name : str
            ``id``, ``source``, ``messages``, ``images``, ``file``, ``offset`` or ``length``.

        Returns
        -------
        pyarrow.ChunkedArray
            A chunk a batch; `to_numpy` of a chunk of ``file``, ``offset`` or ``length`` copies nothing.

        Raises
        ------
        UsageError
            If there is no such column.
        PoolError
            If the column is damaged anywhere.
        """
        return self._read([name]).column(name)

    @property
    def table(self) -> pa.Table:
        """All columns, backed by the mapped file; each access checks all of it."""
        return self._read(None)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the pool in order as record batches, backed by the mapped file.

        Parameters
        ----------
        columns : sequence of str, optional
            Which; all by default.

        Yields
        ------
        pyarrow.RecordBatch
            At most 8,192 rows, checked.

        Raises
        ------
        PoolError
            If a batch is damaged.
        """
        reader = pa.RecordBatchReader.from_stream(self._file.select(columns))
        while True:
            try:
                yield reader.read_next_batch()
            except StopIteration:
                return
            except pa.ArrowInvalid as error:
                raise PoolError(str(error)) from error

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Export all columns as an Arrow stream (Arrow PyCapsule interface), in the pool's own schema."""
        return self._file.select().__arrow_c_stream__(requested_schema)

    def sources(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return the source of every sample.

        Returns
        -------
        codes : ndarray of int32, shape (n,)
            Index of each sample's source in `names`.
        names : list of str
            The sources in the order in which the pool first shows them.
        """
        encoded = self.column("source").combine_chunks().dictionary_encode()
        codes: NDArray[np.int32] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        return codes, encoded.dictionary.to_pylist()

    def source_counts(self) -> dict[str, int]:
        """Return the number of samples of each source, in the order in which the pool first shows them."""
        codes, names = self.sources()
        return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))

    def _read(self, columns: list[str] | None) -> pa.Table:
        reader = pa.RecordBatchReader.from_stream(self._file.select(columns))
        try:
            return reader.read_all()
        except pa.ArrowInvalid as error:
            raise PoolError(str(error)) from error

    def _as_rows(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
        given = np.asarray(rows, dtype=np.int64 if len(rows) == 0 else None)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            msg = f"rows: need a list or array of whole numbers, not {given.dtype} of shape {given.shape}"
            raise UsageError(msg)
        if given.size:
            self._check_row(int(given.min()))
            self._check_row(int(given.max()))
        return np.ascontiguousarray(given, dtype=np.uint64)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            msg = f"row {row} is not in a pool of {len(self)} samples"
            raise IndexError(msg)

    def _as_sample(self, row: int, fields: _internal._PoolRow) -> Sample:
        sample_id, source, messages, images, file = fields
        return Sample(row, sample_id, source, messages, tuple(self._image(*image, file) for image in images))

    def _image(
        self, path: str | None, content: bytes | None, place: tuple[int, int] | None, file: int
    ) -> PoolImage:
        if content is not None:
            return content
        if place is not None:
            return ImageRange(self._input(file), *place, path or "image")
        if isinstance(self.images, ImageStore):
            return StoredImage(self.images, str(PurePosixPath(path or "")))
        relative = Path(path or "")
        return relative if self.images is None else self.images / relative

    def _input(self, file: int) -> Path:
        if file >= len(self._inputs):
            msg = f"{self.path} names input {file} of {len(self._inputs)}; delete the file and ingest again"
            raise PoolError(msg)
        return self._inputs[file]

    def _listed_inputs(self) -> list[Path]:
        text = self._file.metadata("mllm_selector.inputs") or "[]"
        try:
            return [Path(entry["path"]) for entry in json.loads(text)]
        except (ValueError, TypeError, KeyError) as error:
            msg = f"{self.path} does not list its inputs ({error}); delete the file and ingest again"
            raise PoolError(msg) from error

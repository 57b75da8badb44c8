"""Images that are not files of this machine: their folder is named by a URL.

S3, Google Cloud Storage, Azure and HDFS are read by pyarrow, everything else by fsspec. Credentials are those
that these find by themselves, in the environment or in their own files.
"""

from __future__ import annotations

import errno
import os
import posixpath
import time
from collections.abc import Callable
from functools import cached_property
from typing import Protocol, TypeVar
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.fs

from mllm_selector.errors import MissingPackageError, MllmSelectorError, StoreError, UsageError

__all__ = ["REQUESTS", "ImageStore"]

REQUESTS = 16
"""Images that are worth asking for side by side: what a store takes is the time until its answer comes."""

PAUSES = (0.5, 1, 2)
"""Seconds before a failed request is made again. What answers last fails the command."""

OF_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of `pyarrow.fs.FileSystem.from_uri` that pyarrow reads by itself."""

T = TypeVar("T")


class ImageStore:
    """A folder of images in a store. Its methods may be called from several threads at a time.

    Parameters
    ----------
    url : str
        Its address, such as ``s3://bucket/images``. Nothing is opened before it is needed.

    Attributes
    ----------
    url : str
        The address without parameters, and without a slash at its end.
    """

    def __init__(self, url: str) -> None:
        self.url = url.partition("?")[0].rstrip("/")
        self._given = url

    def read(self, path: str, most: int | None = None) -> bytes:
        """Return an image.

        Parameters
        ----------
        path : str
            Below the folder, with slashes; ``..`` does not lead above it.
        most : int, optional
            The bytes wanted from its beginning; by default all.

        Raises
        ------
        FileNotFoundError
            If the store says that it is not there.
        StoreError
            If the store could not be asked, several times.
        UsageError, MissingPackageError
            If the address cannot be used.
        """
        key = posixpath.normpath("/" + path).lstrip("/")
        try:
            if key:
                return self._insist(path, lambda: self._files.read(key, most))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            pass
        # In the words of a file that is missing on this machine.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def open(self) -> None:
        """Open what reads the store, so that an address which cannot be used is found early.

        Raises
        ------
        StoreError, UsageError, MissingPackageError
            As `read`.
        """
        self._insist("", lambda: self._files)

    @cached_property
    def _files(self) -> _Files:
        scheme = self._given.partition("://")[0]
        try:
            return _OfArrow(self._given) if scheme in OF_ARROW else _OfFsspec(self._given)
        except ImportError as error:
            msg = f"--images {self._given}: {error}; addresses of http need 'mllm-selector[http]'"
            raise MissingPackageError(msg) from error
        except (pa.ArrowNotImplementedError, ValueError) as error:  # ArrowInvalid is a ValueError
            msg = (
                f"--images {self._given}: {error}; name a folder of this machine, or a URL that "
                "pyarrow.fs.FileSystem.from_uri or fsspec takes, such as s3://bucket/images"
            )
            raise UsageError(msg) from error

    def _insist(self, path: str, ask: Callable[[], T]) -> T:
        """Ask, again after a while if it fails: a lost connection says nothing of the image."""
        for pause in (*PAUSES, None):
            try:
                return ask()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise
            except (MemoryError, MllmSelectorError):
                raise
            except Exception as error:  # each library and each store has its own
                if pause is None:
                    why = str(error).strip().split("\n", 1)[0] or repr(error)
                    msg = (
                        f"{self.url}/{path} cannot be read, after {len(PAUSES) + 1} tries: "
                        f"{type(error).__name__}: {why}. What is finished is kept: look at the "
                        "connection and the credentials, then run the same command again"
                    )
                    raise StoreError(msg) from error
            time.sleep(pause)
        raise AssertionError


class _Files(Protocol):
    """What reads the files of one store."""

    def read(self, key: str, most: int | None) -> bytes:
        """Return a file of the folder, or its first bytes."""


class _OfArrow:
    """Reads by pyarrow's own file systems."""

    def __init__(self, url: str) -> None:
        self._system, root = pa.fs.FileSystem.from_uri(url)
        self._root = root.rstrip("/")

    def read(self, key: str, most: int | None) -> bytes:
        """See `_Files.read`."""
        with self._system.open_input_file(f"{self._root}/{key}") as file:
            content: bytes = file.read(most)
            return content


class _OfFsspec:
    """Reads by a file system of fsspec."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._is_web = url.startswith(("http://", "https://"))
        if self._is_web and urlsplit(url).query:
            msg = "an address of http that image paths are put behind has no '?'"
            raise ValueError(msg)
        self._system, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")

    def read(self, key: str, most: int | None) -> bytes:
        """See `_Files.read`; all of the file is fetched in any case."""
        # What these stand for in an address must not lead anywhere else.
        key = quote(key) if self._is_web else key
        # Not by `open` or `info`, which take a lost connection for a file that is not there (its issue 873).
        content: bytes = self._system.cat_file(f"{self._root}/{key}" if self._root else key)
        return content[:most]

"""Where a pool and its images are, from text or Python."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from mllm_selector.errors import UsageError

__all__ = ["ImageFolder", "Input", "Inputs"]


@dataclass(frozen=True)
class Input:
    """One file or folder of a pool.

    Attributes
    ----------
    path : Path
        Where it is.
    source : str or None
        The source of all of its samples; None leaves it to the records and ``--source``.
    """

    path: Path
    source: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.source is None else f"{self.source}={self.path}"


@dataclass(frozen=True)
class ImageFolder:
    """Where image paths start: a folder of this machine, or one elsewhere.

    Attributes
    ----------
    path : Path or None
        The folder of this machine.
    url : str or None
        The address of the one elsewhere.

    Examples
    --------
    >>> str(ImageFolder.parse("s3://bucket/images?region=eu-central-1"))
    's3://bucket/images?region=eu-central-1'
    >>> str(ImageFolder.parse("file:///data/images"))
    '/data/images'
    """

    path: Path | None = None
    url: str | None = None

    @classmethod
    def parse(cls, given: str | Path | ImageFolder, name: str = "images") -> Self:
        """Read a path or a URL; one of the scheme ``file`` is a path.

        Raises
        ------
        UsageError
            If a URL holds a secret, which would be written into the run directory.
        """
        if isinstance(given, ImageFolder):
            return cls(given.path, given.url)
        if isinstance(given, Path) or "://" not in given:
            return cls(path=Path(given))
        if given.startswith("file://"):
            return cls(path=Path(unquote(urlsplit(given).path)))
        if _SECRET.search(given):
            msg = (
                f"{name}: {given.partition('://')[0]}://...: an address with a password or key would be "
                "written into the run directory; leave it out, and give it where the store's own tools look, "
                "such as in the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
            raise UsageError(msg)
        return cls(url=given)

    def __str__(self) -> str:
        return self.url or str(self.path)


# A password before a host, or a parameter that is named like one.
_SECRET = re.compile(r"://[^/@?]*:[^/@?]*@|[?&][^=&]*(secret|key|token|password)[^=&]*=", re.IGNORECASE)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a pool, in the order in which their samples stand in it.

    Examples
    --------
    >>> [str(input) for input in Inputs.parse(["ocr=text.jsonl", "rest.jsonl"])]
    ['ocr=text.jsonl', 'rest.jsonl']
    """

    inputs: tuple[Input, ...]

    @classmethod
    def parse(cls, given: Any, name: str = "pool") -> Self:
        """Read a path, a list of paths, or a mapping of source names to a path or several.

        Parameters
        ----------
        given : str, Path, Input, Inputs, iterable or mapping
            A text may be a path, a pattern such as ``data/*.jsonl`` (its files in the order of their names),
            or either after a source name and ``=``. What is there under the whole text is a path.
        name : str
            The option's name, for the error message.

        Raises
        ------
        UsageError
            If there is none, a pattern matches nothing, or a path comes twice.
        """
        inputs = tuple(_inputs(given, name))
        if not inputs:
            msg = f"{name}: there is no input; name the pool's file, or several"
            raise UsageError(msg)
        for index, entry in enumerate(inputs):
            if any(entry.path == earlier.path for earlier in inputs[:index]):
                msg = f"{name}: {entry.path} is given twice; its samples would be too, so name it once"
                raise UsageError(msg)
        return cls(inputs)

    @property
    def paths(self) -> list[Path]:
        """The paths alone."""
        return [entry.path for entry in self.inputs]

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs))


def _inputs(given: Any, name: str) -> Iterable[Input]:
    if isinstance(given, Inputs):
        return given.inputs
    if isinstance(given, Input):
        return [given]
    if isinstance(given, Mapping):
        return [
            Input(entry.path, str(source))
            for source, paths in given.items()
            for entry in _inputs(paths, name)
        ]
    if isinstance(given, str):
        return _named_inputs(given, name)
    if isinstance(given, Path):
        return [Input(path) for path in _expanded(str(given), name)]
    if isinstance(given, Iterable):
        return [entry for each in given for entry in _listed(each, name)]
    msg = f"{name}: {given!r} is no path; give a path, a list of paths, or a mapping of source names to paths"
    raise UsageError(msg)


def _listed(given: Any, name: str) -> Iterable[Input]:
    if isinstance(given, Mapping):  # as the manifest has it
        return [Input(Path(given["path"]), given["source"])]
    return _inputs(given, name)


def _named_inputs(text: str, name: str) -> list[Input]:
    source, equals, path = text.partition("=")
    # A path may hold an equals sign, but a name holds no separator.
    if not equals or not source or "/" in source or Path(text).exists():
        return [Input(path) for path in _expanded(text, name)]
    return [Input(each, source) for each in _expanded(path, name)]


def _expanded(pattern: str, name: str) -> list[Path]:
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [Path(pattern)]
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        msg = f"{name}: nothing matches {pattern}; check the folder and the pattern"
        raise UsageError(msg)
    return found

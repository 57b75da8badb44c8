"""Where files that a user names may be written: over nothing that was computed, and nothing that is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mllm_selector.errors import UsageError
from mllm_selector.rundir import RunDirectory

__all__ = ["check_output"]

_OF_COMPARISONS = ("settings.json", "trainings", "trainings.jsonl", "comparison.json")
"""What `compare` leaves in its run directory."""


def check_output(option: str, path: Path, read: Mapping[str, Iterable[Path]]) -> None:
    """Check that a file which is to be written goes over no input and over no file of any run directory.

    `subset.*` of a run directory may be written over: it is what ``--out`` copies.

    Parameters
    ----------
    option : str
        What named the file, for the error message.
    path : Path
        The file, or the folder that a subset is.
    read : mapping of str to paths
        What is read, by what it is in words.

    Raises
    ------
    UsageError
        If it does.
    """
    place = path.parent.resolve() / path.name
    for what, paths in read.items():
        inputs = [each.resolve() for each in paths]
        if any(path.resolve() in (each, *each.parents) for each in inputs):
            raise _refusal(option, path, f"is {what}")
    for folder in place.parents:
        run = RunDirectory(folder)
        name = place.relative_to(folder).parts[0]
        if run.is_there() and name in (*(own.name for own in run.own), *_OF_COMPARISONS):
            raise _refusal(option, path, f"is a part of the run directory {folder}")


def _refusal(option: str, path: Path, why: str) -> UsageError:
    return UsageError(f"{option}: {path} {why} and would be overwritten; name another file")

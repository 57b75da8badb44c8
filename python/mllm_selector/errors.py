"""The errors of this package, under one base class.

Every message says what is wrong, where (file, record, column), what is allowed, and how to go on.
"""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "ExportError",
    "MissingPackageError",
    "MllmSelectorError",
    "ModelError",
    "PoolError",
    "RunDirectoryError",
    "SampleError",
    "ScoreError",
    "StoreError",
    "UsageError",
    "WriteError",
]


class MllmSelectorError(Exception):
    """Base of all errors of this package.

    Attributes
    ----------
    exit_code : int
        What the command line returns: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1


class UsageError(MllmSelectorError, ValueError):
    """An option, argument or combination of them that cannot work."""

    exit_code = 2


class PoolError(MllmSelectorError, ValueError):
    """A pool, or a file made from it, that cannot be read as one."""


class ModelError(MllmSelectorError, ValueError):
    """A model directory that cannot be loaded, trained or scored with."""


class SampleError(MllmSelectorError, ValueError):
    """One sample that a model cannot be trained on or scored with; it is set aside with this text as reason.

    The text begins with a code and a colon (``image-unreadable: ...``), so that samples are counted by code.
    """


class ExportError(MllmSelectorError):
    """An ONNX graph that could not be made or does not agree with torch."""


class DeviceMemoryError(Exception):
    """The device has no memory for what was asked; smaller batches may fit. Never reaches the user."""


class ScoreError(MllmSelectorError):
    """Scoring that cannot go on."""


class ClusterError(MllmSelectorError):
    """A Ray cluster that has given up, or work that ends the process of every worker which takes it."""


class StoreError(MllmSelectorError):
    """A store of images that could not be asked, several times: it says nothing of the images."""


class RunDirectoryError(MllmSelectorError):
    """A run directory that is locked, damaged or lacks what a stage needs."""


class WriteError(MllmSelectorError, OSError):
    """A file or folder that could not be written: no space, no permission, a faulty disk.

    Parameters
    ----------
    path : str or Path
        What was being written.
    cause : BaseException
        What the system or a library said.
    """

    def __init__(self, path: object, cause: BaseException) -> None:
        reason = getattr(cause, "strerror", None) or str(cause).strip().split("\n", 1)[0] or repr(cause)
        super().__init__(
            f"{path} cannot be written: {reason}. Make room or mend the permissions, then run the same "
            "command again: what is finished is kept"
        )


class MissingPackageError(MllmSelectorError, ImportError):
    """A package of an optional extra is not installed."""

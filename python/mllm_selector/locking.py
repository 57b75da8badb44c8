"""The lock of a run directory: one process at a time, and who it is."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from portalocker import AlreadyLocked, LockException, LockFlags, lock

from mllm_selector.errors import RunDirectoryError

__all__ = ["RunLock", "locked"]

_ALONE = LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING
_SHARED = LockFlags.SHARED | LockFlags.NON_BLOCKING


class RunLock:
    """An exclusive lock (`flock` on POSIX) on a file that says who holds it.

    The kernel releases it when its holder dies, so a killed run leaves no stale lock.

    Parameters
    ----------
    path : Path
        The lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the lock and write into the file who has it.

        Raises
        ------
        RunDirectoryError
            If another process holds it, or the file system has no locks.
        """
        file = self.path.open("a+")
        try:
            _lock(file, _ALONE)
            if not self.path.exists() or self.path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                raise AlreadyLocked  # its holder removed it between our open and our lock
        except AlreadyLocked:
            file.close()
            msg = f"{self.path.parent} is in use by {self.holder()}; wait for it, or use another --run-dir"
            raise RunDirectoryError(msg) from None
        file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": now, "command": _command()}
        file.write(json.dumps(owner))
        file.flush()
        self._file = file

    def share(self) -> None:
        """Keep others from taking the lock; any number of processes can do so at a time.

        Raises
        ------
        RunDirectoryError
            If another process has taken it, or the file system has no locks.
        """
        file = self.path.open("a+")
        try:
            _lock(file, _SHARED)
        except AlreadyLocked:
            file.close()
            msg = f"{self.path.parent} is in use by {self.holder()}; wait for it, or use another --run-dir"
            raise RunDirectoryError(msg) from None
        self._file = file

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def is_taken(self) -> bool:
        """Say whether some process holds the lock, without taking or writing it."""
        try:
            with self.path.open("r") as file:
                _lock(file, _SHARED)
        except FileNotFoundError:
            return False
        except AlreadyLocked:
            return True
        return False

    def holder(self) -> str:
        """Describe the process that wrote the file last: number, host, age and command."""
        try:
            owner = json.loads(self.path.read_text())
            started = datetime.fromisoformat(owner["started"])
            who = f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
            return f"{who}{_age(started)} as '{owner['command']}'"
        except (OSError, ValueError, KeyError, TypeError):
            return "process unknown"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it; the kernel releases it when its holder dies.

    Raises
    ------
    RunDirectoryError
        If the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _lock(file, LockFlags.EXCLUSIVE)
        yield


def _lock(file: IO[str], flags: LockFlags) -> None:
    try:
        lock(file, flags)
    except AlreadyLocked:
        raise
    except LockException as error:
        file.close()
        msg = f"{file.name} cannot be locked ({error}); use a --run-dir on a file system with locks"
        raise RunDirectoryError(msg) from error


def _age(started: datetime) -> str:
    minutes = int((datetime.now(UTC) - started).total_seconds() // 60)
    if minutes < 0:  # another clock, or one that was set back
        return ""
    return f" ({minutes // 60} h {minutes % 60} min ago)"


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])

"""Checksums of the files that count, in the form that `b3sum --check` reads: hash, two spaces, path.

A line is appended when a file has got its final name. A file without a line is whole nevertheless, since it
was renamed when it was: a kill came between. Of several lines for a path the last one counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mllm_selector import _internal
from mllm_selector.artifacts import atomic_write, sync

__all__ = ["Checksums", "Damage"]

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class Damage:
    """A file that is not what it was when it was written.

    Attributes
    ----------
    path : Path
        The file.
    what : str
        What is wrong with it, to be read after its name.
    """

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


class Checksums:
    """The checksums of the files below a folder.

    Parameters
    ----------
    path : Path
        The list; its paths are relative to its folder. It need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.parent
        self._hashes = _read(path)
        # Files that this object has hashed, as they were then: they are not read again while they stay so.
        self._seen: dict[str, tuple[int, ...]] = {}
        self._cut_off = not _ends_whole(path)

    def add(self, file: Path) -> None:
        """Append the checksum of a file that has its final name and is flushed to the disk."""
        name = self._name(file)
        self._hashes[name] = self._hash(file)
        is_new = not self.path.exists()
        with self.path.open("ab") as lines:
            lines.write((b"\n" if self._cut_off else b"") + _line(name, self._hashes[name]))
            lines.flush()
            os.fsync(lines.fileno())
        self._cut_off = False
        if is_new:
            sync(self._folder)

    def note(self, file: Path, digest: str) -> None:
        """Take the checksum of a file from who hashed it while it was written, for `seal` to write down."""
        self._hashes[self._name(file)] = digest
        self._seen[self._name(file)] = _state(file)

    def seal(self, paths: Iterable[Path]) -> None:
        """Write the checksums of all files at or below some paths, in place of those that they had.

        Paths outside of the folder are left out.
        """
        for path in paths:
            if not path.is_relative_to(self._folder):
                continue
            known = {name: self._hashes.pop(name) for name in self._listed(path)}
            for file in _files(path, but=self.path):
                name = self._name(file)
                self._hashes[name] = known[name] if self._is_seen(file) else self._hash(file)
        with atomic_write(self.path) as lines:
            lines.writelines(_line(name, digest) for name, digest in sorted(self._hashes.items()))
        self._cut_off = False

    def damages(self, paths: Iterable[Path]) -> list[Damage]:
        """Find what is missing or changed at or below some paths.

        Files are read once by this object. Those outside of its folder must only be there.
        """
        found = []
        for path in paths:
            if not path.exists():
                found.append(Damage(path, "is missing"))
            elif path.is_relative_to(self._folder):
                checks = (self._damage(name) for name in self._listed(path))
                found += [damage for damage in checks if damage is not None]
        return found

    def is_known(self, file: Path) -> bool:
        """Say whether there is a checksum of a file."""
        return self._name(file) in self._hashes

    def _damage(self, name: str) -> Damage | None:
        file = self._folder / name
        try:
            if self._is_seen(file) or self._hash(file) == self._hashes[name]:
                return None
        except FileNotFoundError:
            return Damage(file, "is missing")
        except OSError as error:
            return Damage(file, f"cannot be read ({error})")
        del self._seen[name]
        return Damage(file, f"is damaged: its checksum is not the one in {self.path.name}")

    def _hash(self, file: Path) -> str:
        state = _state(file)
        digest: str = _internal.hash_file(str(file))
        self._seen[self._name(file)] = state
        return digest

    def _is_seen(self, file: Path) -> bool:
        return self._seen.get(self._name(file)) == _state(file)

    def _listed(self, path: Path) -> list[str]:
        name = self._name(path)
        if not path.is_dir():
            return [name] if name in self._hashes else []
        below = "" if path == self._folder else f"{name}/"
        return sorted(listed for listed in self._hashes if listed.startswith(below))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def _files(path: Path, but: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and file != but)
    return [path]


def _ends_whole(path: Path) -> bool:
    content = path.read_bytes() if path.exists() else b""
    return not content or content.endswith(b"\n")


def _state(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _line(name: str, digest: str) -> bytes:
    return f"{digest}  {name}\n".encode()


def _read(path: Path) -> dict[str, str]:
    """Return the checksums by path, without lines that are none, as a power cut leaves them."""
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return {}
    matches = (_LINE.fullmatch(line) for line in lines)
    return {match[2]: match[1] for match in matches if match}

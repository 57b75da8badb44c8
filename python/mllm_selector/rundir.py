"""The run directory: where its files are, who holds it, and what its manifest says is done."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from mllm_selector import _internal
from mllm_selector.artifacts import write_json
from mllm_selector.config import Inputs
from mllm_selector.errors import RunDirectoryError, UsageError

__all__ = ["RunDirectory", "StageRecord", "fingerprint", "fingerprint_inputs", "read_manifest", "stage_key"]

MANIFEST_VERSION = 1


@dataclass
class StageRecord:
    """What the manifest says of one stage.

    Attributes
    ----------
    state : str
        ``running`` (started, perhaps killed) or ``done``.
    key : str
        Hash of everything that decides the stage's output (see `stage_key`).
    options, inputs : dict
        The options and input fingerprints behind the key, for people and for error messages.
    counts : dict
        What the stage reports: numbers of samples, files, tokens.
    seconds : float
        Wall time, summed over interrupted runs that got as far as finishing the stage.
    peak_mb : float or None
        Peak resident memory during the stage, in MB; None where the system does not tell.
    """

    state: str
    key: str
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float | None = None


class RunDirectory:
    """A run directory held by this process.

    Parameters
    ----------
    path : Path
        The folder; made if it is not there.

    Raises
    ------
    RunDirectoryError
        If another process holds it, or its manifest cannot be read.
    UsageError
        If the folder holds files but no manifest: it is somebody else's.

    Examples
    --------
    >>> with RunDirectory(Path("run")) as run:  # doctest: +SKIP
    ...     run.pool
    PosixPath('run/pool.arrow')
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.stages: dict[str, StageRecord] = {}
        self._lock: IO[str] | None = None

    # Files, in the order in which the stages write them.

    @property
    def manifest(self) -> Path:
        """Versions, options, fingerprints, state, times and counts of every stage."""
        return self.path / "manifest.json"

    @property
    def pool(self) -> Path:
        """The checked pool (ingest)."""
        return self.path / "pool.arrow"

    @property
    def rejected(self) -> Path:
        """Samples set aside while reading, one JSON object a line (ingest)."""
        return self.path / "rejected.jsonl"

    @property
    def seed(self) -> Path:
        """Folder of the seed subset, adapter, checkpoints and log (seed)."""
        return self.path / "seed"

    @property
    def seed_rows(self) -> Path:
        """Pool rows of the seed subset, ascending (seed)."""
        return self.seed / "indices.arrow"

    @property
    def seed_model(self) -> Path:
        """The merged seed model, a Hugging Face model directory (seed)."""
        return self.seed / "model"

    @property
    def onnx(self) -> Path:
        """Folder of the scoring graphs and their check (export)."""
        return self.path / "onnx"

    @property
    def scores(self) -> Path:
        """Folder of the score parts (score)."""
        return self.path / "scores"

    def score_part(self, index: int) -> Path:
        """One of the score parts (score)."""
        return self.scores / f"part-{index:05d}.arrow"

    def example_part(self, index: int) -> Path:
        """One of the parts of the sweep in which each sample has an example in front (score)."""
        return self.scores / f"example-{index:05d}.arrow"

    @property
    def selection(self) -> Path:
        """The chosen rows with order, group and necessity (pick)."""
        return self.path / "selection.arrow"

    @property
    def subset_stem(self) -> Path:
        """The chosen records in the pool's format, less the suffix, which is the pool's (pick)."""
        return self.path / "subset"

    @property
    def report(self) -> Path:
        """The page (report)."""
        return self.path / "report.html"

    @property
    def report_numbers(self) -> Path:
        """The page's numbers (report)."""
        return self.path / "report.json"

    # Lock and manifest.

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.is_dir():
            msg = f"--run-dir: {self.path} is a file; name a folder"
            raise UsageError(msg)
        if self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours():
            msg = f"--run-dir: {self.path} holds files of something else; name a new or empty folder"
            raise UsageError(msg)
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self.stages = read_manifest(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        if not any(record.state == "done" for record in self.stages.values()):
            self._remove_if_bare()
        self._lock.close()
        self._lock = None

    def _remove_if_bare(self) -> None:
        """Leave no trace of a run that came to nothing."""
        if {entry.name for entry in self.path.iterdir()} <= {"lock", "manifest.json"}:
            self.manifest.unlink(missing_ok=True)
            (self.path / "lock").unlink()
            self.path.rmdir()

    def save(self) -> None:
        """Write the manifest."""
        from mllm_selector import __version__

        stages = {name: vars(record) for name, record in self.stages.items()}
        write_json(
            self.manifest, {"version": MANIFEST_VERSION, "mllm_selector": __version__, "stages": stages}
        )

    def need(self, stage: str) -> StageRecord:
        """Return a finished stage's record.

        Raises
        ------
        RunDirectoryError
            If the stage has not been finished in this run directory.
        """
        record = self.stages.get(stage)
        if record is None or record.state != "done":
            msg = f"{self.path}: stage '{stage}' is not done; run 'mllm-selector {stage}' or 'select' first"
            raise RunDirectoryError(msg)
        return record

    def _is_ours(self) -> bool:
        return self.manifest.exists() or (self.path / "lock").exists()

    def _take_lock(self) -> None:
        # flock is released by the kernel when the holder dies, so a killed run leaves no stale lock.
        path = self.path / "lock"
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                raise BlockingIOError  # its holder removed it between our open and our lock
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            msg = f"{self.path} is in use by {holder}; wait for it, or use another --run-dir"
            raise RunDirectoryError(msg) from None
        lock.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}")
        lock.flush()
        self._lock = lock


def read_manifest(folder: Path) -> dict[str, StageRecord]:
    """Return what the manifest of a run directory says of each stage; nothing if there is none.

    Raises
    ------
    RunDirectoryError
        If it cannot be read, or is of another version.
    """
    manifest = folder / "manifest.json"
    try:
        text = manifest.read_text()
    except FileNotFoundError:
        return {}
    try:
        content = json.loads(text)
        version = content["version"]
        stages = {name: StageRecord(**record) for name, record in content["stages"].items()}
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{manifest} cannot be read ({error}); use another --run-dir"
        raise RunDirectoryError(msg) from error
    if version != MANIFEST_VERSION:
        msg = (
            f"{manifest} has version {version}, this package reads {MANIFEST_VERSION}; "
            "use another --run-dir or the version of mllm-selector that made it"
        )
        raise RunDirectoryError(msg)
    return stages


def fingerprint(path: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Identify a file, or the files of a folder, by content.

    Parameters
    ----------
    path : Path
        A file, or a folder whose direct files are hashed.
    known : dict, optional
        An earlier fingerprint: a file of unchanged size and modification time is not read again.

    Returns
    -------
    dict
        ``hash`` (BLAKE3, hexadecimal), ``size`` in bytes, ``mtime_ns``; for a folder over its files.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        size = sum(entry[1] for entry in state)
        mtime = max((entry[2] for entry in state), default=0)
    else:
        files = [path]
        size, mtime = path.stat().st_size, path.stat().st_mtime_ns
    if known is not None and (known.get("size"), known.get("mtime_ns")) == (size, mtime):
        return known
    if path.is_dir():
        hashes = "".join(f"{file.name}:{_internal.hash_file(str(file))}\n" for file in files)
        digest = hashlib.sha256(hashes.encode()).hexdigest()
    else:
        digest = _internal.hash_file(str(path))
    return {"hash": digest, "size": size, "mtime_ns": mtime}


def fingerprint_inputs(inputs: Inputs, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Identify the inputs of a pool by their content and the sources given to them.

    Parameters
    ----------
    inputs : Inputs
        The files or folders, in order.
    known : dict, optional
        An earlier fingerprint of the same inputs: unchanged files are not read again.

    Returns
    -------
    dict
        ``hash`` (SHA-256, hexadecimal) over all, and ``files``: the `fingerprint` of each.
    """
    before = known["files"] if known is not None else []
    if len(before) != len(inputs.inputs):
        before = [None] * len(inputs.inputs)
    files = [fingerprint(entry.path, old) for entry, old in zip(inputs.inputs, before, strict=True)]
    content = [(entry.source, file["hash"]) for entry, file in zip(inputs.inputs, files, strict=True)]
    return {"hash": hashlib.sha256(json.dumps(content).encode()).hexdigest(), "files": files}


def stage_key(stage: str, options: dict[str, Any], inputs: dict[str, Any]) -> str:
    """Hash everything that decides a stage's output."""
    content = {"stage": stage, "version": MANIFEST_VERSION, "options": options, "inputs": inputs}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""The run directory: where its files are, which of them count, what identifies what they are made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mllm_selector import _internal
from mllm_selector.checksums import Checksums
from mllm_selector.config import Inputs
from mllm_selector.errors import RunDirectoryError, UsageError
from mllm_selector.locking import RunLock
from mllm_selector.manifest import (
    MANIFEST_VERSION,
    StageRecord,
    load_manifest,
    remove_record,
    write_manifest,
    write_record,
)

__all__ = [
    "RunDirectory",
    "StageRecord",
    "fingerprint",
    "fingerprint_inputs",
    "of_files",
    "read_manifest",
    "stage_key",
    "state_of_inputs",
]


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
        If the path is a file, or the folder holds files but no manifest: it is somebody else's.

    Examples
    --------
    >>> with RunDirectory(Path("run")) as run:  # doctest: +SKIP
    ...     run.pool
    PosixPath('run/pool.arrow')
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            msg = f"{path} is a file and no run directory; name the folder that was given as --run-dir"
            raise UsageError(msg)
        self.lock = RunLock(self.path / "lock")
        self.stages: dict[str, StageRecord] = {}
        self.checksums = Checksums(self.path / "checksums.b3")
        self.manifest_problem: str | None = None

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
    def ingest_parts(self) -> Path:
        """Folder of what a Ray cluster has read of the inputs, until the pool is made of it (ingest)."""
        return self.path / "ingest"

    @property
    def seed(self) -> Path:
        """Folder of the seed subset, adapter, checkpoints and log (seed)."""
        return self.path / "seed"

    @property
    def seed_rows(self) -> Path:
        """Pool rows of the seed subset, ascending (seed)."""
        return self.seed / "indices.arrow"

    @property
    def seed_plan(self) -> Path:
        """What an unfinished training trains on (seed)."""
        return self.seed / "plan.json"

    @property
    def seed_checkpoints(self) -> Path:
        """Folder of the checkpoints of an unfinished training (seed)."""
        return self.seed / "checkpoints"

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

    @property
    def batches(self) -> Path:
        """How much is computed together, once that has been found (score)."""
        return self.path / "batches.json"

    @property
    def shards(self) -> Path:
        """Folder of the parts that processes with ``--shard`` have scored, until they are merged (score)."""
        return self.path / "shards"

    def score_part(self, index: int) -> Path:
        """One of the score parts (score)."""
        return self.scores / f"part-{index:05d}.arrow"

    def example_part(self, index: int) -> Path:
        """One of the parts of the sweep in which each sample has an example in front (score)."""
        return self.scores / f"example-{index:05d}.arrow"

    def embedding_part(self, index: int) -> Path:
        """One of the parts with input embeddings, where only some samples are scored (score)."""
        return self.scores / f"embedding-{index:05d}.arrow"

    @property
    def clusters(self) -> Path:
        """The cluster of each sample and which were drawn, where only some samples are scored (score)."""
        return self.scores / "clusters.arrow"

    @property
    def projection(self) -> Path:
        """The matrix that embeddings are projected with, where they are (score)."""
        return self.path / "projection.arrow"

    @property
    def examples(self) -> Path:
        """The sample that is each one's example, where a metric needs one (score)."""
        return self.scores / "examples.arrow"

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

    @property
    def own(self) -> list[Path]:
        """Every file and folder above, and those that say what they are; not the subset."""
        return [
            *(self.pool, self.rejected, self.ingest_parts, self.seed, self.onnx),
            *(self.scores, self.batches, self.shards, self.projection),
            *(self.selection, self.report, self.report_numbers),
            *(self.manifest, self.path / "records", self.checksums.path, self.lock.path),
        ]

    # Lock and manifest.

    def __enter__(self) -> Self:
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        try:
            self.load()
            for leftover in self.leftovers():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.lock.held:
            return
        if not any(record.state == "done" for record in self.stages.values()):
            self._remove_if_bare()
        self.lock.release()

    def _remove_if_bare(self) -> None:
        """Leave no trace of a run that came to nothing."""
        if {entry.name for entry in self.path.iterdir()} <= {"lock", "manifest.json"}:
            self.manifest.unlink(missing_ok=True)
            self.lock.path.unlink()
            self.path.rmdir()

    def check_free(self) -> None:
        """Raise `UsageError` if the folder holds files of something else."""
        if self.path.is_dir() and any(self.path.iterdir()) and not self.is_there():
            msg = f"--run-dir: {self.path} holds files of something else; name a new or empty folder"
            raise UsageError(msg)

    def load(self) -> None:
        """Read what is done and the checksums; needs no lock, and writes nothing.

        Raises
        ------
        RunDirectoryError
            If the manifest cannot be read, nor made again from the stages' records.
        """
        self.stages, self.manifest_problem = load_manifest(self.path)
        self.checksums = Checksums(self.checksums.path)

    def leftovers(self) -> list[Path]:
        """Find temporary files and folders that a killed run left behind."""
        folders = (self.path, self.ingest_parts, self.seed, self.scores, self.path / "records")
        return sorted(path for folder in folders for path in folder.glob(".*.tmp"))

    def save(self) -> None:
        """Write the manifest."""
        write_manifest(self.path, self.stages)

    def begin(self, stage: str, record: StageRecord) -> None:
        """Enter a stage as running: from now on its files may change."""
        remove_record(self.path, stage)
        self.stages[stage] = record
        self.save()

    def commit(self, stage: str, record: StageRecord) -> None:
        """Enter a stage as done: its files are whole and have their checksums."""
        self.stages[stage] = record
        write_record(self.path, stage, record)
        self.save()

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

    def is_there(self) -> bool:
        """Say whether the folder is a run directory."""
        return self.manifest.exists() or self.lock.path.exists() or (self.path / "records").is_dir()


def read_manifest(folder: Path) -> dict[str, StageRecord]:
    """Return what a run directory says of each stage; nothing if there is no run.

    Raises
    ------
    RunDirectoryError
        If that cannot be read, or is of another version.
    """
    return load_manifest(folder)[0]


def fingerprint(path: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Identify a file, or the files of a folder, by content.

    Parameters
    ----------
    path : Path
        A file, or a folder whose direct files are hashed.
    known : dict, optional
        An earlier fingerprint: files whose sizes and times of change are the same are not read again.

    Returns
    -------
    dict
        ``hash`` (BLAKE3, hexadecimal; of a folder, SHA-256 over those of its files), ``size`` in bytes, and
        ``state``, a hash of names, sizes and times.
    """
    files = _files(path)
    state = _state(files)
    if known is not None and known.get("state") == state["state"] and "hash" in known:
        return known
    if path.is_dir():
        hashes = "".join(f"{file.name}:{_internal.hash_file(str(file))}\n" for file in files)
        digest = hashlib.sha256(hashes.encode()).hexdigest()
    else:
        digest = _internal.hash_file(str(path))
    return {"hash": digest, **state}


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def _state(files: list[Path]) -> dict[str, Any]:
    stats = [file.stat() for file in files]
    # The time of the last change of the inode (ctime) cannot be set back, unlike that of the content.
    states = [
        (file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for file, stat in zip(files, stats, strict=True)
    ]
    state = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return {"size": sum(stat.st_size for stat in stats), "state": state}


def state_of_inputs(inputs: Inputs) -> list[dict[str, Any]]:
    """Return the `fingerprint` of each input but its hash: nothing is read."""
    return [_state(_files(entry.path)) for entry in inputs.inputs]


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
    return of_files(
        inputs, [fingerprint(each.path, old) for each, old in zip(inputs.inputs, before, strict=True)]
    )


def of_files(inputs: Inputs, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the `fingerprint` of each input together, as `fingerprint_inputs` does."""
    content = [(entry.source, file["hash"]) for entry, file in zip(inputs.inputs, files, strict=True)]
    return {"hash": hashlib.sha256(json.dumps(content).encode()).hexdigest(), "files": files}


def stage_key(stage: str, options: dict[str, Any], inputs: dict[str, Any]) -> str:
    """Hash everything that decides a stage's output."""
    content = {"stage": stage, "version": MANIFEST_VERSION, "options": options, "inputs": inputs}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

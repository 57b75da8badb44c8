"""Scoring by several processes: a folder for each, and the parts put together when all are done.

A process with ``--shard I/N`` writes nothing but its folder ``shards/I-of-N``, so any number of them share a
run directory, or have copies of it whose folders are brought together later. Which parts are whose is decided
by their numbers alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm_selector.checksums import Checksums
from mllm_selector.errors import RunDirectoryError
from mllm_selector.locking import RunLock
from mllm_selector.rundir import RunDirectory
from mllm_selector.values import Shard

__all__ = ["CHECKSUMS", "DONE", "gather_parts", "held_shard"]

CHECKSUMS = "checksums.b3"
"""Checksums of a shard's parts, in its folder."""

DONE = "done.json"
"""What a shard's process reports when all its parts are scored, in its folder."""


@contextmanager
def held_shard(run: RunDirectory, shard: Shard) -> Iterator[Path]:
    """Hold a shard's folder, and keep commands for the whole run out meanwhile.

    Yields
    ------
    Path
        The folder for the shard's parts.

    Raises
    ------
    RunDirectoryError
        If another process has this shard or the whole run directory, or the work is shared out otherwise.
    """
    folder = run.shards / f"{shard.number}-of-{shard.count}"
    whole, own = RunLock(run.lock.path), RunLock(folder / "lock")
    whole.share()
    try:
        others = {path.name for path in run.shards.glob("*-of-*")}
        others -= {f"{number}-of-{shard.count}" for number in range(1, shard.count + 1)}
        if others:
            msg = (
                f"--shard {shard}: {run.shards} has {min(others)}; give the same number of shards, or delete "
                "that folder to share the work out anew"
            )
            raise RunDirectoryError(msg)
        folder.mkdir(parents=True, exist_ok=True)
        own.take()
        yield folder
    finally:
        own.release()
        whole.release()


def gather_parts(run: RunDirectory, parts: Sequence[Path]) -> list[dict[str, Any]]:
    """Move the parts of all shards to their places in the scores folder.

    A move is a rename; a merge that is killed goes on when it is started again.

    Parameters
    ----------
    run : RunDirectory
        Is held by this process, so no shard is being scored.
    parts : sequence of Path
        Where all parts of the pool belong.

    Returns
    -------
    list of dict
        What the shards' processes reported.

    Raises
    ------
    RunDirectoryError
        If parts are missing.
    """
    found = {path.name: path for path in sorted(run.shards.glob("*-of-*/*-*.arrow"))}
    missing = [index for index, part in enumerate(parts) if not part.exists() and part.name not in found]
    if missing:
        counts = {path.name.partition("-of-")[2] for path in run.shards.glob("*-of-*")}
        count = int(counts.pop()) if len(counts) == 1 else 1
        shards = sorted({index % count + 1 for index in missing})
        again = ", ".join(f"--shard {number}/{count}" for number in shards)
        msg = (
            f"{len(missing)} of {len(parts)} score parts are missing (the first: {parts[missing[0]].name}); "
            f"run 'mllm-selector score' with {again} and merge again"
        )
        raise RunDirectoryError(msg)
    run.scores.mkdir(exist_ok=True)
    for part in parts:
        if part.exists():
            continue
        path = found[part.name]
        for damage in Checksums(path.with_name(CHECKSUMS)).damages([path]):
            msg = f"{damage}; delete it, run its shard again and merge again"
            raise RunDirectoryError(msg)
        path.replace(part)
        run.checksums.add(part)
    reports = [json.loads(path.read_text()) for path in run.shards.glob(f"*-of-*/{DONE}")]
    return sorted(reports, key=lambda report: int(report["shard"].partition("/")[0]))

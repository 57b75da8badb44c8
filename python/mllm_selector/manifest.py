"""What a run directory says of its stages: `manifest.json`, and a record of every finished stage beside it.

A stage is done from the moment its record, `records/NAME.json`, has its name. The manifest repeats them and
also says what is running, so it can be made again from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm_selector.artifacts import sync, write_json
from mllm_selector.errors import RunDirectoryError

__all__ = ["StageRecord", "load_manifest", "remove_record", "write_manifest", "write_record"]

MANIFEST_VERSION = 1
ORDER = ("ingest", "seed", "export", "score", "pick", "report")


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


def load_manifest(folder: Path) -> tuple[dict[str, StageRecord], str | None]:
    """Return what a run directory says of each stage, and what is wrong with its manifest, if anything.

    Raises
    ------
    RunDirectoryError
        If it is of another version, or damaged, and there are no records to make it again from.
    """
    records = _read_records(folder)
    problem = None
    try:
        stages = _parse(folder / "manifest.json")
    except FileNotFoundError:
        stages = {}
        problem = "is missing" if records else None
    except RunDirectoryError:
        if not records:
            raise
        stages, problem = {}, "is damaged"
    # Of a stage that is done by both, the record is the later word.
    stages |= records
    in_order = sorted(stages, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return {name: stages[name] for name in in_order}, problem


def write_manifest(folder: Path, stages: dict[str, StageRecord]) -> None:
    """Write ``manifest.json``."""
    content = {"stages": {name: vars(record) for name, record in stages.items()}}
    write_json(folder / "manifest.json", _head() | content)


def write_record(folder: Path, name: str, record: StageRecord) -> None:
    """Write the record of a finished stage, which makes it count."""
    write_json(_records(folder) / f"{name}.json", _head() | {"stages": {name: vars(record)}})


def remove_record(folder: Path, name: str) -> None:
    """Remove the record of a stage that is about to write its files anew."""
    path = _records(folder) / f"{name}.json"
    if path.exists():
        path.unlink()
        sync(path.parent)


def _head() -> dict[str, Any]:
    from mllm_selector import __version__

    return {"version": MANIFEST_VERSION, "mllm_selector": __version__}


def _records(folder: Path) -> Path:
    return folder / "records"


def _read_records(folder: Path) -> dict[str, StageRecord]:
    records: dict[str, StageRecord] = {}
    for path in sorted(_records(folder).glob("*.json")):
        try:
            records |= {name: record for name, record in _parse(path).items() if name == path.stem}
        except RunDirectoryError:
            continue  # what the manifest says of this stage has to do
    return records


def _parse(path: Path) -> dict[str, StageRecord]:
    text = path.read_bytes()
    try:
        content = json.loads(text)
        version = content["version"]
        stages = {name: StageRecord(**record) for name, record in content["stages"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} cannot be read ({error}); use another --run-dir"
        raise RunDirectoryError(msg) from error
    if version != MANIFEST_VERSION:
        msg = (
            f"{path} has version {version}, this package reads {MANIFEST_VERSION}; "
            "use another --run-dir or the version of mllm-selector that made it"
        )
        raise RunDirectoryError(msg)
    return stages

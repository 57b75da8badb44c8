"""What a run directory holds, what of it is damaged, and what the next command will do."""

from __future__ import annotations

from pathlib import Path

from mllm_selector import pipeline
from mllm_selector.checksums import Damage
from mllm_selector.config import IngestOptions
from mllm_selector.errors import MllmSelectorError, RunDirectoryError, UsageError
from mllm_selector.formats.parts import read_before
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.workflow import STAGES

__all__ = ["inspect"]

MOST_INPUTS = 20
"""Inputs of a pool that are named one by one."""


def inspect(path: Path) -> tuple[str, bool]:
    """Describe a run directory; every file that counts is read, and nothing is written.

    Parameters
    ----------
    path : Path
        The run directory.

    Returns
    -------
    text : str
        The description, in lines.
    healthy : bool
        Whether nothing is damaged.

    Raises
    ------
    UsageError
        If there is no run directory.
    """
    run = RunDirectory(path)
    if not run.manifest.exists() and not run.lock.path.exists():
        msg = f"{path} is no run directory; name the folder that was given as --run-dir"
        raise UsageError(msg)
    lines = [f"run directory    {path}", f"in use           {_user(run)}"]
    try:
        run.load()
    except RunDirectoryError as error:
        return "\n".join([*lines, f"manifest         damaged: {error}"]), False
    if run.manifest_problem is not None:
        lines.append(f"manifest         {run.manifest_problem}; the next command makes it again")
    lines += [f"left over        {leftover}; the next command removes it" for leftover in run.leftovers()]
    healthy = run.manifest_problem is None
    plan, is_next = [], True
    for name in STAGES:
        record = run.stages.get(name)
        damages = _damages(run, name, record)
        if name == "ingest" and record is not None and record.state != "done" and run.ingest_parts.is_dir():
            state, coming = _ingest_on_ray(run, record)
        else:
            state, coming = _state(run, name, record), _next(run, name, record, damages, is_next)
        lines.append(f"{name:<16} {state}")
        lines += [f"{'':<16} {damage}" for damage in damages]
        healthy = healthy and not damages
        plan.append(f"{name:<16} {coming}")
        is_next = is_next and record is not None and record.state == "done" and not damages
    lines += ["", "the same 'select' command again:", *plan]
    return "\n".join(lines), healthy


def _user(run: RunDirectory) -> str:
    if run.lock.is_taken():
        return f"by {run.lock.holder()}"
    return f"by nobody; last by {run.lock.holder()}" if run.lock.path.exists() else "by nobody"


def _damages(run: RunDirectory, name: str, record: StageRecord | None) -> list[Damage]:
    """Check the files of a finished stage, or the finished pieces of another."""
    if record is None:
        return []
    stage = STAGES[name]
    try:
        paths = stage.outputs(run) if record.state == "done" else stage.partial(run)
    except (RunDirectoryError, KeyError) as error:
        return [Damage(run.manifest, f"lacks what belongs to '{name}' ({error})")]
    return run.checksums.damages(paths)


def _state(run: RunDirectory, name: str, record: StageRecord | None) -> str:
    if record is None:
        return "not begun"
    pieces = len(STAGES[name].partial(run))
    if record.state != "done":
        return "begun, not done" + (f"; {pieces} finished {_piece(name, pieces)}" if pieces else "")
    counts = ", ".join(f"{what} {value:,}" for what, value in record.counts.items() if type(value) is int)
    return f"done in {record.seconds:,.1f} s" + (f"; {counts}" if counts else "")


def _ingest_on_ray(run: RunDirectory, record: StageRecord) -> tuple[str, str]:
    """Say which inputs an unfinished ingest on Ray has read, and how it goes on."""
    try:
        options = pipeline.build_options(record.options, ["ingest"])["ingest"]
        assert isinstance(options, IngestOptions)
        read = read_before(run, options)
    except (OSError, MllmSelectorError) as error:
        return f"begun on Ray, not done; its inputs cannot be looked at: {error}", "runs"
    total = len(options.pool.inputs)
    state = f"begun on Ray, not done; {len(read):,} of {total:,} inputs are read"
    names = [str(path) for path in read[:MOST_INPUTS]]
    if len(read) > MOST_INPUTS:
        names.append(f"and {len(read) - MOST_INPUTS:,} more")
    return (
        "".join([state, *(f"\n{'':<16}   {name}" for name in names)]),
        f"reads the other {total - len(read):,} inputs, with --ray; without it, all of them",
    )


def _next(
    run: RunDirectory, name: str, record: StageRecord | None, damages: list[Damage], is_next: bool
) -> str:
    pieces = len(STAGES[name].partial(run))
    if record is not None and record.state == "done" and not damages:
        return "nothing, it is done"
    if name == "score" and damages and record is not None and record.state == "done":
        return f"scores {len(damages)} of its parts again"
    if damages and record is not None and record.state == "done":
        return "runs again, because of the damage"
    if pieces and record is not None:
        return f"goes on from {pieces - len(damages)} {_piece(name, pieces)}"
    return "runs" if is_next else "runs after that"


def _piece(name: str, count: int) -> str:
    return ("checkpoint" if name == "seed" else "part") + "s" * (count != 1)

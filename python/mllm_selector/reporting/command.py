"""How to do a run again: the command and the call, made from the manifest."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from mllm_selector.config import (
    ExportOptions,
    IngestOptions,
    Inputs,
    PickOptions,
    ScoreOptions,
    SeedOptions,
    cli_name,
)
from mllm_selector.rundir import StageRecord

__all__ = ["as_call", "as_command", "settings"]

CLASSES = {
    "ingest": IngestOptions,
    "seed": SeedOptions,
    "export": ExportOptions,
    "score": ScoreOptions,
    "pick": PickOptions,
}


def settings(stages: dict[str, StageRecord]) -> dict[str, dict[str, Any]]:
    """Return every option of every stage: the manifest's, and the defaults of those that it does not name."""
    return {
        stage: {
            field.name: stages[stage].options.get(field.name, field.default)
            if stage in stages
            else field.default
            for field in dataclasses.fields(class_)
        }
        for stage, class_ in CLASSES.items()
    }


def as_command(stages: dict[str, StageRecord], run_dir: Path) -> str:
    """Return the command line that repeats a run into another run directory."""
    options = _options(stages)
    inputs = [shlex.quote(str(entry)) for entry in Inputs.parse(options.pop("pool", "POOL")).inputs]
    parts = [" ".join(["mllm-selector select", *inputs])]
    for name, value in options.items():
        if isinstance(value, dict):
            parts += [f"{cli_name(name)} {shlex.quote(f'{key}={amount}')}" for key, amount in value.items()]
            continue
        if isinstance(value, list):
            parts += [f"{cli_name(name)} {shlex.quote(str(each))}" for each in value]
            continue
        parts.append(cli_name(name) if value is True else f"{cli_name(name)} {shlex.quote(str(value))}")
    parts.append(f"--run-dir {shlex.quote(f'{run_dir}-again')}")
    return " \\\n    ".join(parts)


def as_call(stages: dict[str, StageRecord], run_dir: Path) -> str:
    """Return the Python call that does the same."""
    options = _options(stages)
    inputs = [str(entry) for entry in Inputs.parse(options.pop("pool", "POOL")).inputs]
    lines = [f"    {inputs if len(inputs) > 1 else inputs[0]!r},"]
    lines += [f"    {name}={value!r}," for name, value in options.items()]
    lines.append(f"    run_dir={f'{run_dir}-again'!r},")
    return "\n".join(["import mllm_selector", "", "selection = mllm_selector.select(", *lines, ")"])


def _options(stages: dict[str, StageRecord]) -> dict[str, Any]:
    """Return the options that were not left at their defaults, each once."""
    return {
        field.name: record.options[field.name]
        for record, class_ in (
            (stages[stage], class_) for stage, class_ in CLASSES.items() if stage in stages
        )
        for field in dataclasses.fields(class_)
        if record.options.get(field.name) not in (None, field.default)
    }

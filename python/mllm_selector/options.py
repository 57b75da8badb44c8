"""How the options of a stage or the parameters of a method are declared, checked and written as JSON."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_selector.errors import UsageError
from mllm_selector.inputs import ImageFolder, Inputs
from mllm_selector.metrics import Metrics
from mllm_selector.values import (
    Amount,
    AutoCount,
    Columns,
    Files,
    Limits,
    Settings,
    Shard,
)

__all__ = ["StageOptions", "cli_name", "option"]


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 - argparse's own word
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    matters: bool = True,
    of_method: bool = False,
) -> Any:
    """Declare one option of a stage.

    Parameters
    ----------
    default : object
        Value when the user gives none; without it the option is required.
    help : str
        One sentence for ``--help``.
    metavar : str, optional
        Name of the value in ``--help``.
    choices : tuple of str, optional
        The allowed values.
    matters : bool
        False for options that cannot change the result (threads, workers): a finished stage stays
        valid when they change.
    of_method : bool
        True for options that only some selection methods use: see `mllm_selector.methods.base.Method.uses`.
    """
    metadata = {
        "help": help,
        "metavar": metavar,
        "choices": choices,
        "matters": matters,
        "of_method": of_method,
    }
    return dataclasses.field(default=default, metadata=metadata)


def cli_name(name: str) -> str:
    """Write a field name the way the command line shows it."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What the options of every stage share: choices are checked, and they can be written as JSON."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _converted(self.shown(field.name), getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            choices = field.metadata["choices"]
            if choices and value is not None and value not in choices:
                msg = f"{self.shown(field.name)}: {value!r} is not one of {', '.join(choices)}"
                raise UsageError(msg)
        self.check()

    def check(self) -> None:
        """Check what is special to one stage."""

    @staticmethod
    def shown(name: str) -> str:
        """Write a field name the way the command line shows it."""
        return cli_name(name)

    def at_least(self, name: str, low: float, *, above: bool = False) -> None:
        """Check that a number, if there is one, is not below a bound, or above it."""
        value = getattr(self, name)
        if value is None or (value > low if above else value >= low):
            return
        bound = f"above {low:g}" if above else f"at least {low:g}"
        msg = f"{self.shown(name)}: {value} is too small; it must be {bound}"
        raise UsageError(msg)

    def as_json(self, *, only_that_matter: bool = False) -> dict[str, Any]:
        """Return the options as JSON values, on request only those that can change the result."""
        return {
            field.name: _as_json(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata["matters"] or not only_that_matter
        }


def _converted(shown: str, value: Any, hint: Any) -> Any:
    """Bring a value from Python or a config file to the declared type."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    if kind is Inputs:
        return Inputs.parse(value, shown.removeprefix("--"))
    if kind is Amount and isinstance(value, str | int | float | Amount):
        return Amount.parse(value, shown)
    if kind is AutoCount and isinstance(value, str | int | AutoCount) and not isinstance(value, bool):
        return AutoCount.parse(value, shown)
    if kind is Shard and isinstance(value, str | Shard):
        return Shard.parse(value, shown)
    if kind is Limits and isinstance(value, Limits | Mapping | list | tuple):
        limits = Limits.parse(value, shown)
        return limits if limits.amounts else None
    if kind is Columns and isinstance(value, Columns | Mapping | str | list | tuple):
        return Columns.parse(value, shown)
    if kind is Metrics and isinstance(value, Metrics | str | list | tuple):
        return Metrics.parse(value, shown)
    if kind is Settings and isinstance(value, Settings | Mapping | list | tuple):
        settings = Settings.parse(value, shown)
        return settings if settings.values else None
    if kind is Files and isinstance(value, Files | str | Path | list | tuple):
        files = Files.parse(value, shown)
        return files if files.paths else None
    if kind is ImageFolder and isinstance(value, str | Path | ImageFolder):
        return ImageFolder.parse(value, shown)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is (typing.get_origin(kind) or kind):
        return value
    words = {
        str: "text",
        Limits: "mapping of names to counts or shares",
        Columns: "mapping of kinds to columns",
        Metrics: "list of names",
        Settings: "mapping of names to values",
        Files: "list of paths",
        ImageFolder: "path or URL",
        Amount: "count or share",
        AutoCount: "whole number or auto",
        Shard: "text such as 2/8",
    }
    msg = f"{shown}: {value!r} is not of type {words.get(kind, getattr(kind, '__name__', kind))}"
    raise UsageError(msg)


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())  # a later command may run in another folder
    if isinstance(value, ImageFolder):
        return value.url or _as_json(value.path)
    if isinstance(value, Inputs):
        return [{"path": str(entry.path.absolute()), "source": entry.source} for entry in value.inputs]
    if isinstance(value, Columns):
        return dict(value.names)
    if isinstance(value, Settings):
        return dict(value.values)
    if isinstance(value, Files):
        return [str(path.absolute()) for path in value.paths]
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Limits):
        return {source: str(amount) for source, amount in value.amounts.items()}
    return str(value) if isinstance(value, Amount | AutoCount | Metrics | Shard) else value

"""What is compared: methods with their options, budgets, seeds, and how the model is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mllm_selector import methods
from mllm_selector.config import Amount, PickOptions
from mllm_selector.errors import UsageError

__all__ = ["FULL", "RANDOM", "CompareOptions", "MethodChoice", "read_budgets", "read_methods"]

RANDOM = "random"
FULL = "full pool"


@dataclass(frozen=True)
class MethodChoice:
    """A selection method with its options.

    Attributes
    ----------
    label : str
        As the user wrote it, such as ``grouped:within=top``.
    options : dict
        Options of `PickOptions` besides budget and seed.
    """

    label: str
    options: Mapping[str, Any] = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME[:OPTION=VALUE]...``; an option is one of `pick`, or a parameter of the method.

        Raises
        ------
        UsageError
            If there is no such method or option, or a value cannot work.
        """
        name, *settings = text.split(":")
        kinds = {each.name: each for each in dataclasses.fields(PickOptions) if each.metadata["of_method"]}
        options: dict[str, Any] = {"method": name}
        param: dict[str, str] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                msg = f"--method {text}: {setting!r} is not OPTION=VALUE, such as grouped:within=top"
                raise UsageError(msg)
            field_name = key.replace("-", "_")
            if field_name in kinds:
                options[field_name] = _number(value)
            else:
                param[key] = value
        choice = cls(text, options | ({"param": param} if param else {}))
        methods.prepare(choice.pick_options(Amount.parse("1%"), 0))
        return choice

    def pick_options(self, budget: Amount, seed: int, **more: Any) -> PickOptions:
        """Return the options of the pick stage."""
        return PickOptions(budget=budget, seed=seed, **self.options, **more)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, on what, and where it is kept.

    Attributes
    ----------
    run : Path
        Run directory whose pool is scored.
    run_dir : Path
        Folder for everything that the comparison computes.
    held_out : tuple of Path
        Samples to judge the trained models on, in any format of a pool.
    held_out_images : str or Path, optional
        Folder that their image paths are relative to.
    methods : tuple of MethodChoice
        The methods; ``random`` is always compared too.
    budgets : tuple of Amount
        Budgets; ``100%`` is the full pool, trained on once a seed.
    seeds : int
        Trainings of each method and budget, with seeds from 0.
    steps : int, optional
        Optimiser steps of every training; by default each makes ``--seed-epochs`` passes over its subset.
    scores : tuple of Path
        Files of more scores that methods need.
    training : dict
        Options of the seed stage by name; the others are those of the run's own seed stage.
    """

    run: Path
    run_dir: Path
    held_out: tuple[Path, ...]
    held_out_images: str | Path | None = None
    methods: tuple[MethodChoice, ...] = (MethodChoice("grouped", {"method": "grouped"}),)
    budgets: tuple[Amount, ...] = (Amount.parse("5%"), Amount.parse("15%"), Amount.parse("100%"))
    seeds: int = 5
    steps: int | None = None
    scores: tuple[Path, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("--seeds", self.seeds), ("--steps", self.steps)):
            if value is not None and value < 1:
                msg = f"{name}: {value} is too small; it must be at least 1"
                raise UsageError(msg)
        if self.run.resolve() == self.run_dir.resolve():
            msg = f"--run-dir: {self.run_dir} is the run itself; name another folder for the comparison"
            raise UsageError(msg)
        labels = [choice.label for choice in self.methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            msg = f"--method: {twice[0]} is given twice"
            raise UsageError(msg)

    @property
    def choices(self) -> list[MethodChoice]:
        """The methods, ``random`` first."""
        others = [choice for choice in self.methods if choice.label != RANDOM]
        return [MethodChoice(RANDOM, {"method": "random"}), *others]


def read_methods(texts: Iterable[str]) -> tuple[MethodChoice, ...]:
    """Read the methods of a command line."""
    return tuple(MethodChoice.parse(text) for text in texts)


def read_budgets(text: str) -> tuple[Amount, ...]:
    """Read budgets with commas between them, each once."""
    return tuple(dict.fromkeys(Amount.parse(part.strip(), "--budgets") for part in text.split(",")))


def _number(value: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value

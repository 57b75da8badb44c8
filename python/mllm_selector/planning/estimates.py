"""From rates to the plan of a run: arithmetic only, nothing is measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mllm_selector.planning.rates import Rate, Rates

__all__ = ["Break", "Plan", "StagePlan", "Work", "estimate"]

ON_DEVICES = ("score",)
"""Stages whose work is shared out among devices, all but what they take however much there is."""

# Up to here a rate is called measured: it is that of about as much work.
SAME = 1.05


@dataclass(frozen=True)
class Work:
    """How much there is to do.

    Attributes
    ----------
    samples, chosen : int
        Samples of the pool, and of the selection.
    trained : int
        Samples seen while the seed model is trained; 0 if it is not.
    readings : int
        Forward passes for each sample in scoring.
    devices : int
        Devices that score side by side.
    states : mapping of str to str
        What becomes of each stage: ``runs``, ``goes on`` or ``done``.
    to_score : int
        Samples that are not scored yet.
    compared : float
        Products that the figures of the report take; 0 where the size of embeddings is not known.
    """

    samples: int
    chosen: int
    trained: int
    readings: int
    devices: int
    states: Mapping[str, str]
    to_score: int
    compared: float


@dataclass(frozen=True)
class StagePlan:
    """What a stage would do and take; None where that is not known.

    Attributes
    ----------
    stage : str
        Its name.
    state : str
        ``runs``, ``goes on`` or ``done``.
    seconds : float or None
        From its start to its end.
    device_seconds : float or None
        Of all devices together.
    memory_mb : float or None
        Peak resident memory of the process.
    mapped_mb : float
        Mapped files that it reads besides; the system keeps as much of them in memory as there is room for.
    disk_bytes : float or None
        What it leaves on the disk.
    how : str
        ``measured`` (as much work as is planned), ``extrapolated`` from less or more, ``done before``, or
        ``not known``.
    basis : str
        What the figures come from, or why there are none.
    """

    stage: str
    state: str
    seconds: float | None
    device_seconds: float | None
    memory_mb: float | None
    mapped_mb: float
    disk_bytes: float | None
    how: str
    basis: str


@dataclass(frozen=True)
class Break:
    """Selection against training on everything, in seconds of all devices together.

    Attributes
    ----------
    epoch : float
        One epoch of the seed stage's training over the whole pool.
    chosen_epoch : float
        One over the selection.
    selection : float
        What the selection takes, all its stages.
    epochs : float or None
        Epochs from which on the selection is cheaper; None if it never is.
    """

    epoch: float
    chosen_epoch: float
    selection: float
    epochs: float | None


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes
    ----------
    samples : int
        Samples of the pool.
    samples_are_counted : bool
        False if their number is itself an estimate.
    chosen : int
        Samples of the selection.
    devices : int
        Devices that score.
    stages : list of StagePlan
        In order.
    notes : list of str
        What else is to be known.
    break_even : Break or None
        Against training on everything, if all rates are known.
    free_bytes : int or None
        Room on the disk of the run directory.
    """

    samples: int
    samples_are_counted: bool
    chosen: int
    devices: int
    stages: list[StagePlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    break_even: Break | None = None
    free_bytes: int | None = None

    @property
    def seconds(self) -> float:
        """Sum over the stages whose time is known."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        """Sum over the stages of which that is known."""
        return sum(stage.disk_bytes or 0.0 for stage in self.stages)

    @property
    def is_whole(self) -> bool:
        """Whether the time of every stage is known."""
        return all(stage.seconds is not None for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return dataclasses.asdict(self) | {
            "seconds": self.seconds,
            "disk_bytes": self.disk_bytes,
            "is_whole": self.is_whole,
        }


def estimate(work: Work, rates: Rates) -> list[StagePlan]:
    """Say what each stage takes.

    Parameters
    ----------
    work : Work
        How much there is to do.
    rates : Rates
        What a unit of it takes.
    """
    return [_stage(stage, state, work, rates) for stage, state in work.states.items()]


def break_even(work: Work, rates: Rates) -> Break | None:
    """Compare a selection with training on everything; None if a rate that this needs is not known.

    Both are trained like the seed model, and a selection made anew is counted, whatever is done already.
    """
    seed = rates.stages.get("seed")
    anew = dataclasses.replace(work, states=dict.fromkeys(work.states, "runs"), to_score=work.samples)
    stages = estimate(anew, rates)
    if seed is None or not work.trained or any(stage.device_seconds is None for stage in stages):
        return None
    selection = sum(stage.device_seconds or 0.0 for stage in stages)
    per_sample = seed.seconds / seed.units
    epoch, chosen = per_sample * work.samples, per_sample * work.chosen
    saved = epoch - chosen
    return Break(epoch, chosen, selection, selection / saved if saved > 0 else None)


def _stage(stage: str, state: str, work: Work, rates: Rates) -> StagePlan:
    rate = rates.stages.get(stage)
    if state == "done":
        return StagePlan(stage, state, 0.0, 0.0, None, 0.0, 0.0, "done before", "it is finished")
    of_stage = {"seed": work.trained, "score": work.to_score, "export": 1, "report": work.compared}
    units = of_stage.get(stage, work.samples)
    if stage == "seed" and not work.trained:
        return StagePlan(stage, state, 0.0, 0.0, None, 0.0, 0.0, "measured", "nothing is trained")
    if rate is None:
        why = rates.unknown.get(stage, "there is no record of it")
        disk = _disk(stage, None, units, work, rates)
        return StagePlan(stage, state, None, None, None, 0.0, disk, "not known", why)
    passes = work.readings / rates.readings if stage == "score" else 1.0
    shared = (rate.seconds_for(units) - rate.fixed) * passes
    devices = work.devices if stage in ON_DEVICES else 1
    return StagePlan(
        stage,
        state,
        rate.fixed + shared / devices,
        rate.fixed + shared,
        rate.memory_for(work.samples if stage in ("ingest", "pick") else rate.units),
        rate.mapped * units,
        _disk(stage, rate, units, work, rates),
        _how(rate, units, passes, devices),
        rate.basis,
    )


def _disk(stage: str, rate: Rate | None, units: float, work: Work, rates: Rates) -> float | None:
    if stage == "pick":  # the chosen records as they are in the input
        return None if rates.input_bytes is None else rates.input_bytes * work.chosen
    if rate is None:
        return rates.export_bytes if stage == "export" else None
    return rate.disk_for(units)


def _how(rate: Rate, units: float, passes: float, devices: int) -> str:
    is_same = max(units, rate.units) <= SAME * min(units, rate.units)
    is_the_work = is_same and passes == 1 and devices == 1 and not rate.made_up
    return "measured" if is_the_work else "extrapolated"

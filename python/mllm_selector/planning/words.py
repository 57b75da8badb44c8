"""A plan in words, for a terminal of 80 columns."""

from __future__ import annotations

import textwrap

from mllm_selector.planning.estimates import Break, Plan, StagePlan

__all__ = ["told"]

_DOES = {
    "ingest": "read and check the pool",
    "seed": "train the seed model",
    "export": "make scoring graphs and check them",
    "score": "score the samples",
    "pick": "choose and write the subset",
    "report": "write the report",
}
WIDTH = 80
HOUR = 3600.0


def told(plan: Plan) -> str:
    """Write a plan as text."""
    about = "" if plan.samples_are_counted else "about "
    lines = [f"{about}{plan.samples:,} samples, {plan.chosen:,} to be chosen", ""]
    device = " device time" if plan.devices > 1 else ""
    lines.append(f"{'stage':<8}{'time':>10}{device}{'memory':>10}{'disk':>10}  how")
    for stage in plan.stages:
        lines += _row(stage, with_devices=plan.devices > 1)
    at_least = "" if plan.is_whole else "at least "
    lines += ["", f"in all {at_least}{duration(plan.seconds)}, {size(plan.disk_bytes)} on the disk"]
    if plan.free_bytes is not None:
        lines[-1] += f" ({size(plan.free_bytes)} are free)"
    if plan.break_even is not None:
        lines += ["", *_against(plan.break_even)]
    for note in plan.notes:
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _row(stage: StagePlan, *, with_devices: bool) -> list[str]:
    if stage.state == "done":
        return [f"{stage.stage:<8}{'':>{42 if with_devices else 30}}  done before"]
    memory = "?" if stage.memory_mb is None else size(stage.memory_mb * 1e6)
    if stage.memory_mb is None and stage.how != "not known":
        memory = ""
    devices = f"{_or_unknown(stage.device_seconds)}" if with_devices else ""
    disk = "?" if stage.disk_bytes is None else size(stage.disk_bytes)
    row = f"{stage.stage:<8}{_or_unknown(stage.seconds):>10}{devices:>{12 if with_devices else 0}}"
    does = _DOES[stage.stage] + (", from where it stopped" if stage.state == "goes on" else "")
    mapped = ""
    if stage.mapped_mb > (stage.memory_mb or 0.0):
        mapped = f"; reads {size(stage.mapped_mb * 1e6)} of mapped files, which may stay on the disk"
    return [
        f"{row}{memory:>10}{disk:>10}  {stage.how}",
        *textwrap.wrap(f"{does}: {stage.basis}{mapped}", WIDTH, initial_indent="  ", subsequent_indent="  "),
    ]


def _against(found: Break) -> list[str]:
    text = (
        f"An epoch of such training takes {duration(found.epoch)} on the whole pool and "
        f"{duration(found.chosen_epoch)} on the selection, which takes {duration(found.selection)} to make"
    )
    if found.epochs is None:
        text += "; it saves nothing."
    else:
        text += f": it pays from {found.epochs:.2f} epochs on (seconds of all devices together)."
    return textwrap.wrap(text, WIDTH)


def _or_unknown(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR:,.1f} h"


def size(count: float) -> str:
    """Write bytes in the unit that suits them."""
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:,.1f} {unit}"
    return f"{count:.0f} B"

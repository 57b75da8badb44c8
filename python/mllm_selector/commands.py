"""What each command does: arguments to options, options to the pipeline, results to the terminal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import shtab

from mllm_selector import arguments, comparison, demo, doctor, inspection, pipeline, planning
from mllm_selector.config import SeedOptions, cli_name
from mllm_selector.errors import UsageError
from mllm_selector.progress import JsonProgress, Progress, SilentProgress, for_stream
from mllm_selector.reporting.diff_page import write_difference
from mllm_selector.rundir import RunDirectory
from mllm_selector.selection import Selection
from mllm_selector.workflow import STAGES

__all__ = ["run"]


def run(words: Sequence[str] | None = None) -> int:
    """Do what the arguments say; by default those of the process.

    Returns
    -------
    int
        The exit code, where nothing is raised.
    """
    given = arguments.parser().parse_args(words)
    try:
        return _COMMANDS.get(given.command, _run_stages)(given)
    except UsageError as error:
        raise UsageError(_as_typed(str(error))) from error


def _as_typed(text: str) -> str:
    """Name options as they are typed where a message begins with an argument's name in Python."""
    options = {field.name for stage in STAGES.values() for field in dataclasses.fields(stage.options)}
    names = "|".join(options - {"pool"})
    return re.sub(rf"(?:^|(?<=: ))({names})(?=: )", lambda found: cli_name(found[0]), text)


def _progress(given: argparse.Namespace) -> Progress:
    if hasattr(given, "quiet"):
        return SilentProgress()
    return JsonProgress(sys.stderr) if hasattr(given, "json") else for_stream()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        options = tomllib.loads(path.read_text())
    except OSError as error:
        msg = f"--config: {path} cannot be read ({error.strerror}); name a TOML file of options"
        raise UsageError(msg) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"--config: {path} is not TOML: {error}"
        raise UsageError(msg) from None
    return {name.replace("-", "_"): value for name, value in options.items()}


def _named(given: argparse.Namespace) -> dict[str, Any]:
    """Return the options of stages that were given, those of the config file among them."""
    named = vars(given).copy()
    for name in ("command", "json", "quiet", "run_dir", "stages", "samples", "gpus", "rates"):
        named.pop(name, None)
    config = _read_config(named.pop("config")) if "config" in named else {}
    return config | named


def _plan(given: argparse.Namespace) -> int:
    named = _named(given)
    if not named.get("pool"):
        named.pop("pool", None)
    plan = planning.look(
        named,
        run_dir=getattr(given, "run_dir", None),
        samples=getattr(given, "samples", None),
        devices=getattr(given, "gpus", 1),
        rates_of=getattr(given, "rates", None),
        progress=_progress(given),
    )
    print(json.dumps(plan.as_json()) if hasattr(given, "json") else planning.told(plan))
    return 0


def _run_stages(given: argparse.Namespace) -> int:
    stages: list[str] = given.stages
    run_dir: Path = given.run_dir
    options = pipeline.build_options(_named(given), stages)
    pipeline.run_stages(run_dir, options, _progress(given))
    if "pick" in stages:
        _tell(Selection.load(run_dir), getattr(given, "out", None), as_json=hasattr(given, "json"))
    return 0


def _tell(selection: Selection, out: Path | None = None, *, as_json: bool) -> None:
    summary = selection.summary()
    if as_json:
        print(json.dumps(summary))
        return
    for stage in summary["stages"]:
        memory = f"{stage['peak_mb']:8,.0f} MB" if stage["peak_mb"] is not None else ""
        print(f"{stage['stage']:<7} {stage['seconds']:9,.1f} s {memory}")
    print(
        f"{summary['chosen']:,} of {summary['samples']:,} samples chosen; set aside: "
        f"{summary['rejected']:,} when read, {summary['unscored']:,} when scored"
    )
    print(f"subset  {summary['subset']}")
    if out is not None:
        print(f"copy    {out}")
    print(f"report  {summary['report']}")


def _doctor(given: argparse.Namespace) -> int:
    run_dir: Path | None = given.run_dir
    text, healthy = doctor.examine() if run_dir is None else inspection.inspect(run_dir)
    print(text)
    return 0 if healthy else 1


def _diff(given: argparse.Namespace) -> int:
    out: Path = getattr(given, "out", Path("diff.html"))
    if out.suffix == ".json":
        msg = f"--out: {out} is where the numbers would go; name the page, such as {out.with_suffix('.html')}"
        raise UsageError(msg)
    told = write_difference(given.first, given.second, out)
    if hasattr(given, "json"):
        print(json.dumps(told))
        return 0
    print(
        f"{told['both']:,} samples in both, {told['first']:,} only in the first, {told['second']:,} only in"
    )
    print(f"the second; Jaccard index {told['jaccard']:.3f}")
    print(f"report  {told['report']}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    named = vars(given)
    options: dict[str, Any] = {
        name: named[name] for name in ("run", "run_dir", "held_out_images", "seeds", "steps") if name in named
    }
    if "method" in named:
        options["methods"] = comparison.read_methods(given.method)
    if "budgets" in named:
        options["budgets"] = comparison.read_budgets(given.budgets)
    of_training = {field.name for field in dataclasses.fields(SeedOptions)}
    result = comparison.compare(
        comparison.CompareOptions(
            held_out=tuple(given.held_out),
            scores=tuple(named.get("scores", ())),
            training={name: value for name, value in named.items() if name in of_training},
            **options,
        ),
        _progress(given),
    )
    print(json.dumps(result) if hasattr(given, "json") else comparison.as_text(result))
    return 0


def _completion(given: argparse.Namespace) -> int:
    print(shtab.complete(arguments.parser(), given.shell))
    return 0


def _demo(given: argparse.Namespace) -> int:
    run_dir: Path = given.run_dir
    progress = _progress(given)
    with RunDirectory(run_dir):
        options = demo.prepare(run_dir, getattr(given, "model", None), progress)
    pipeline.run_stages(run_dir, pipeline.build_options(options, list(STAGES)), progress)
    _tell(Selection.load(run_dir), as_json=hasattr(given, "json"))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "diff": _diff,
    "compare": _compare,
    "completion": _completion,
    "doctor": _doctor,
    "demo": _demo,
}
"""The others run stages."""

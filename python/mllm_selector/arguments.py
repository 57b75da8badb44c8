"""What the command line understands: commands, their options and the examples in their help."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import shtab

from mllm_selector import __version__, methods
from mllm_selector.config import (
    Amount,
    AutoCount,
    Columns,
    Files,
    ImageFolder,
    Limits,
    Metrics,
    SeedOptions,
    Settings,
    Shard,
    StageOptions,
    cli_name,
)
from mllm_selector.workflow import STAGES

__all__ = ["parser"]

_ABOUT = {
    "select": "the whole method: read the pool, make the seed model, score, choose, write subset and report",
    "ingest": "read and check the pool; bad samples are set aside in rejected.jsonl with a reason",
    "seed": "draw the seed subset and fine-tune the pretrained model on it (LoRA), giving the seed model",
    "export": "turn the seed model into ONNX scoring graphs and check them against torch",
    "score": "score the necessity of every sample of the pool",
    "pick": "choose the subset from the scores; takes seconds, so try other budgets and methods",
    "report": "write the page that shows what was chosen",
}

# A longer list of choices would run out of the usage lines.
_LONGEST_CHOICES = 40

_EXAMPLES = {
    "select": """\
        mllm-selector select pool.json --images images/ --budget 10% \\
            --model llava-hf/llava-1.5-7b-hf --run-dir run --out subset.json
        mllm-selector select pool.jsonl --images images/ --seed-model tuned/ \\
            --budget 50000 --run-dir run""",
    "ingest": """\
        mllm-selector ingest pool.json --images images/ --run-dir run
        mllm-selector ingest ocr=ocr.jsonl chat='chats/*.jsonl' --images images/ \\
            --run-dir run
        mllm-selector ingest dialogues.jsonl.gz --images images/ \\
            --columns messages=dialogue,images=pics --run-dir run""",
    "seed": """\
        mllm-selector seed --model llava-hf/llava-1.5-7b-hf --seed-size 2% \\
            --run-dir run""",
    "export": "mllm-selector export --precision float16 --run-dir run",
    "score": """\
        mllm-selector score --device cuda --run-dir run
        mllm-selector score --shard 2/8 --run-dir run
        mllm-selector score --merge --run-dir run
        mllm-selector score --ray auto --ray-gpus 1 --run-dir run""",
    "pick": """\
        mllm-selector pick --budget 5% --run-dir run --out subset-5.json
        mllm-selector pick --budget 20000 --groups source --within k-center \\
            --run-dir run
        mllm-selector pick --budget 10% --source-floor '*=500' \\
            --source-ceiling ocr=20% --run-dir run
        mllm-selector pick --budget 10% --method deita \\
            --param score=necessity,quality --scores judge.csv --run-dir run""",
    "report": "mllm-selector report --run-dir run",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser; what it gives back has the command's name as ``command``."""
    whole = argparse.ArgumentParser(
        prog="mllm-selector",
        description="Pick, from a visual-instruction-tuning pool, the part worth training on "
        "(MLLM-Selector, arXiv 2503.20502).",
        epilog="'mllm-selector COMMAND --help' shows the options and examples of a command.",
    )
    whole.add_argument("--version", action="version", version=f"mllm-selector {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for name, about in _ABOUT.items():
        stages = list(STAGES) if name == "select" else [name]
        command = _command(commands, name, about, _EXAMPLES[name])
        for stage in stages:
            _add_options(command, stage, STAGES[stage].options, set_of_names=_names(command))
        if "pick" in stages:
            told = textwrap.indent(methods.described(), "  ")
            command.epilog = (
                f"methods (--method) and their parameters (--param NAME=VALUE):\n{told}\n\n{command.epilog}"
            )
        _add_common(command)
        command.set_defaults(stages=stages)
    _add_plan(commands)
    _add_diff(commands)
    _add_compare(commands)
    _add_completion(commands)
    checks = _command(
        commands,
        "doctor",
        "show versions, devices, what is missing and how to get it; or what a run directory holds",
        "mllm-selector doctor\nmllm-selector doctor run",
    )
    checks.add_argument(
        "run_dir",
        nargs="?",
        default=None,  # Python 3.11 would take the parser's argparse.SUPPRESS for a value
        type=Path,
        metavar="RUN",
        help="Look at this run directory: what is done, what is damaged, what the next command does. "
        "Every file is read; nothing is written.",
    )
    shown = _command(
        commands,
        "demo",
        "run the whole method on a small model and a shipped sample of real statements",
        "mllm-selector demo --run-dir demo-run",
    )
    shown.add_argument("--model", metavar="MODEL", help="Use this model instead of the one made by code.")
    _add_common(shown, has_options=False)
    return whole


def _add_plan(commands: Any) -> None:
    planned = _command(
        commands,
        "plan",
        "say what 'select' with these arguments would do: time, memory and disk of each stage",
        """\
        mllm-selector plan pool.json --images images/ --budget 10% \\
            --model llava-1.5-7b-hf/ --run-dir run
        mllm-selector plan --samples 1e8 --gpus 64 --rates run --budget 1%""",
    )
    group = planned.add_argument_group("plan options")
    group.add_argument(
        "--samples", type=_count, metavar="N", help="Plan for a pool of N samples; then POOL can be left out."
    )
    group.add_argument("--gpus", type=_count, metavar="N", help="Devices that score side by side. Default 1.")
    group.add_argument(
        "--rates",
        type=Path,
        metavar="RUN",
        help="Take what a stage takes from the records of this run directory, where --run-dir has none.",
    )
    for stage, about in STAGES.items():
        _add_options(planned, stage, about.options, set_of_names=_names(planned), pool="*")
    _add_common(planned, needs_run=False)


def _count(text: str) -> int:
    """Read a whole number, also as 1e8."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (1 <= number < math.inf and number.is_integer()):
        msg = f"{text} is not a whole number from 1 up"
        raise argparse.ArgumentTypeError(msg)
    return int(number)


def _add_diff(commands: Any) -> None:
    compared = _command(
        commands,
        "diff",
        "show two selections of one pool side by side: overlap, what only one chose, sources, coverage",
        """\
        mllm-selector diff run other-run --out two.html
        cp run/selection.arrow before.arrow
        mllm-selector pick --budget 5% --within k-center --run-dir run
        mllm-selector diff before.arrow run""",
    )
    text = "A run directory, or a selection.arrow kept from an earlier pick in the other one."
    compared.add_argument("first", type=Path, metavar="FIRST", help=text)
    compared.add_argument("second", type=Path, metavar="SECOND", help="The same.")
    compared.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="The page; its numbers go beside it as .json. Default diff.html.",
    )
    compared.add_argument("--json", action="store_true", help="The result as a JSON line.")


def _add_compare(commands: Any) -> None:
    compared = _command(
        commands,
        "compare",
        "train a model on the subsets of several methods and judge each on held-out samples",
        """\
        mllm-selector compare run --held-out test.json --held-out-images images/ \\
            --budgets 1%,5%,100% --run-dir comparison
        mllm-selector compare run --held-out test.json --seeds 3 --steps 500 \\
            --method grouped --method grouped:within=top \\
            --method deita:score=necessity,quality:threshold=0.95 \\
            --scores judge.csv --run-dir comparison""",
    )
    compared.add_argument(
        "run", type=Path, metavar="RUN", help="Run directory whose pool is scored (by select or score)."
    )
    group = compared.add_argument_group("compare options")
    held_out = group.add_argument(
        "--held-out",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="Samples to judge on, in any format of a pool; results are told for each of their sources.",
    )
    held_out.complete = shtab.FILE  # type: ignore[attr-defined]
    group.add_argument(
        "--held-out-images", metavar="DIR", help="Folder that their image paths are relative to, or its URL."
    )
    group.add_argument(
        "--method",
        action="append",
        metavar="METHOD",
        help="A method, with options of pick or parameters of its own behind colons: NAME:OPTION=VALUE:... "
        "May be given several times; random is always compared. Default grouped.",
    )
    group.add_argument(
        "--budgets",
        metavar="N|P%,...",
        help="Budgets with commas; 100%% is the full pool. Default 5%%,15%%,100%%.",
    )
    group.add_argument(
        "--seeds", type=int, metavar="N", help="Trainings of each, with seeds from 0. Default 5."
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="Optimiser steps of every training; default --seed-epochs passes over its subset.",
    )
    scores = group.add_argument(
        "--scores",
        type=Path,
        action="append",
        metavar="FILE",
        help="More scores for methods that need them, as in pick. May be given several times.",
    )
    scores.complete = shtab.FILE  # type: ignore[attr-defined]
    of_draws = {"seed_model", "seed_size", "seed"}
    _add_options(compared, "training", SeedOptions, _names(compared) | of_draws, default="as in RUN")
    out = compared.add_argument_group("run options")
    out.add_argument(
        "--run-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="Folder of the comparison; the same command goes on where it stopped, and takes more methods, "
        "budgets and seeds.",
    )
    out.add_argument("--json", action="store_true", help="Events and the result as JSON lines.")
    out.add_argument("--quiet", action="store_true", help="No progress.")


def _add_completion(commands: Any) -> None:
    shown = _command(
        commands,
        "completion",
        "print the script that lets a shell complete commands and options",
        """\
        eval "$(mllm-selector completion bash)"     # in ~/.bashrc
        mllm-selector completion zsh > ~/.zfunc/_mllm-selector""",
    )
    shown.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="Which shell.")


def _command(commands: Any, name: str, about: str, example: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=textwrap.fill(f"{about[0].upper()}{about[1:]}.", width=_columns()),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(example), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    command.set_defaults(command=name)
    return command


def _columns() -> int:
    """Return what argparse wraps its own texts to; it leaves descriptions with examples alone."""
    return shutil.get_terminal_size().columns - 2


def _names(command: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in command._actions}


def _add_options(
    command: argparse.ArgumentParser,
    stage: str,
    options: type[StageOptions],
    set_of_names: set[str],
    pool: str = "+",
    default: str | None = None,
) -> None:
    """Add a stage's options, those of an earlier stage's name left out: they are shared.

    `default` is what help says in place of the options' own defaults.
    """
    group = command.add_argument_group(f"{stage} options")
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.name in set_of_names:
            continue
        text = field.metadata["help"].replace("%", "%%")
        kind = _plain_type(hints[field.name])
        if field.name == "pool":
            action = command.add_argument("pool", nargs=pool, metavar="POOL", help=text)
            action.complete = shtab.FILE  # type: ignore[attr-defined]
            continue
        if default is not None:
            text += f" Default {default}."
        elif field.default is dataclasses.MISSING:
            text += " Required."
        elif field.default is not None and kind is not bool:
            text += f" Default {field.default}.".replace("%", "%%")
        flag = cli_name(field.name)
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text)
            continue
        if kind in (Limits, Columns, Settings, Files):
            group.add_argument(flag, action="append", metavar=field.metadata["metavar"], help=text)
            continue
        choices, metavar = field.metadata["choices"], field.metadata["metavar"]
        if choices and len(",".join(choices)) > _LONGEST_CHOICES:
            metavar, text = "NAME", f"{text} One of {', '.join(choices)}."
        _complete_paths(group.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=text))


def _complete_paths(action: argparse.Action) -> None:
    """Let shells complete a path where one is asked for."""
    if action.type is Path or action.metavar == "DIR":
        action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]


def _plain_type(hint: Any) -> Any:
    """Return what argparse converts a text with: ``int`` for ``int | None``."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] or [hint]
    return str if kinds[0] in (Amount, AutoCount, ImageFolder, Metrics, Shard) else kinds[0]


def _add_common(
    command: argparse.ArgumentParser, *, needs_run: bool = True, has_options: bool = True
) -> None:
    group = command.add_argument_group("run options")
    group.add_argument(
        "--run-dir",
        type=Path,
        required=needs_run,
        metavar="RUN",
        help="Folder for everything that the run computes; the same command goes on where it stopped.",
    )
    if has_options:
        group.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="TOML file of options by name; the command line goes first.",
        )
    group.add_argument("--json", action="store_true", help="Events and results as JSON lines.")
    group.add_argument("--quiet", action="store_true", help="No progress.")

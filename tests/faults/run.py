"""Runs the faults and writes the table of docs/reliability.md.

python tests/faults/run.py [--only GROUP ...] [--thin N] [--seed N] [--keep DIR]

What a trial showed is written down at once, in DIR/trials.jsonl: a run that was stopped goes on. Remove DIR
to begin anew, as after a change of the program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import hostile
from cases import Trial
from harness import Bench

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- made by tests/faults/run.py -->"
END = "<!-- end -->"

LONG_KILLS = {"ingest": 42, "score": 63, "pick": 39, "report": 30, "seed": 24, "export": 12}


def kills(bench: Bench, thin: int) -> Iterator[Trial]:
    """SIGKILL at more than 200 random moments."""
    return cases.kills_at_random(bench, LONG_KILLS)


def writes(bench: Bench, thin: int) -> Iterator[Trial]:
    """SIGKILL at the calls that change files."""
    every = {"ingest": 1, "score": 1, "pick": 1, "report": 1, "seed": 12, "export": 9}
    return cases.kills_at_writes(bench, _times(every, thin))


def disk(bench: Bench, thin: int) -> Iterator[Trial]:
    """Writes that fail."""
    every = {"ingest": 1, "score": 2, "pick": 1, "report": 1, "seed": 25, "export": 15}
    return cases.disk(bench, _times(every, thin))


def damage(bench: Bench, thin: int) -> Iterator[Trial]:
    """Files that are not what they were, and clocks."""
    yield from cases.damages(bench, ["scores/part-00000.arrow", "scores/part-00003.arrow"])
    yield from cases.damages(bench, ["pool.arrow", "selection.arrow", "subset.json", "report.html"])
    yield from cases.damages(bench, ["seed/adapter/adapter_model.safetensors", "onnx/scorer.onnx.data"])
    yield from cases.damaged_checkpoint(bench, 3)
    yield from cases.lost_books(bench)
    yield from cases.clock(bench, ["ingest", "score", "pick", "report", "seed"])


def processes(bench: Bench, thin: int) -> Iterator[Trial]:
    """Signals, a second process, too little memory."""
    stages = ["ingest", "seed", "seed", "export", "score", "score", "pick", "report", "pick", "pick", "pick"]
    yield from cases.stops(bench, stages)
    yield from cases.two(bench, ["ingest", "score", "score", "score", "pick"])
    yield from cases.little_memory(bench, [100, 200])


def inputs(bench: Bench, thin: int) -> Iterator[Trial]:
    """Input that is too large for the tests of every day."""
    yield from hostile.long_texts(bench)
    yield from hostile.large_pictures(bench, 171)


Group = Callable[[Bench, int], Iterator[Trial]]
GROUPS: dict[str, Group] = {
    "kills": kills,
    "processes": processes,
    "damage": damage,
    "inputs": inputs,
    "writes": writes,
    "disk": disk,
}


def _times(steps: dict[str, int], thin: int) -> dict[str, int]:
    return {stage: step * thin for stage, step in steps.items()}


class Journal:
    """What trials showed, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        whole = [line for line in lines if line.endswith("}")]  # the last one may have been cut off
        self.entries: dict[str, dict[str, Any]] = {entry["key"]: entry for entry in map(json.loads, whole)}

    def enter(self, group: str, trial: Trial, outcome: cases.Outcome) -> None:
        """Append a line."""
        of_trial = {name: getattr(trial, name) for name in ("key", "fault", "where", "expected", "name")}
        entry = {"group": group, **of_trial, **vars(outcome), "commit": commit()}
        self.entries[trial.key] = entry
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def commit() -> str:
    """Return what is tried."""
    named = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return named.stdout.strip() or "a release"


def table(entries: list[dict[str, Any]]) -> str:
    """Return what trials showed as Markdown: a row for each fault and place, then every failure."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault((entry["fault"], entry["where"]), []).append(entry)
    lines = ["| fault | where | times | as it must be | what must happen |", "|---|---|---|---|---|"]
    for (fault, where), trials in rows.items():
        failed = sum(bool(trial["failures"]) for trial in trials)
        longest = max(trial["seconds"] for trial in trials)
        outcome = f"**not in {failed} trials**" if failed else "always"
        if longest:
            outcome += f"; longest {longest:.1f} s"
        times = sum(trial["tried"] for trial in trials)
        lines.append(f"| {fault} | `{where}` | {times} | {outcome} | {trials[0]['expected']} |")
    failures = [
        f"- {entry['fault']}, {entry['where']}, {entry['name']}: {failure}"
        for entry in entries
        for failure in entry["failures"]
    ]
    return "\n".join([*lines, "", *(["Failures:", "", *failures] if failures else ["No failures."])])


def write_page(entries: list[dict[str, Any]], planned: int, how: str) -> None:
    """Put the table into the page."""
    kills = sum(entry["tried"] for entry in entries if entry["fault"].startswith("SIGKILL"))
    faults = sum(entry["tried"] for entry in entries)
    finished = f"{len(entries):,} of {planned:,} trials planned" if len(entries) < planned else "all trials"
    commits = ", ".join(sorted({entry["commit"] for entry in entries}))
    head = (
        f"{finished}, {faults:,} faults, {kills:,} of them kills. Made by `python tests/faults/run.py {how}` "
        f"at {commits}, {platform.system()}, Python {platform.python_version()}."
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{head[0].upper()}{head[1:]}\n\n{table(entries)}\n\n{END}{after}")


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--thin", type=int, default=1, help="strike only at every N-th call of the long form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep",
        type=Path,
        default=ROOT / "target" / "faults",
        help="pool, model, the undisturbed run and what trials showed",
    )
    given = parser.parse_args()
    how = f"--thin {given.thin} --seed {given.seed}"
    journal = Journal(given.keep / "trials.jsonl")
    with Bench(given.keep) as bench:
        trials = [(name, trial) for name in given.only for trial in GROUPS[name](bench, given.thin)]
        try:
            for group, trial in trials:
                if trial.key in journal.entries:
                    continue
                outcome = trial.do(random.Random(f"{given.seed} {trial.key}"))
                journal.enter(group, trial, outcome)
                print(f"{trial.key}: {outcome.failures or 'as it must be'}", flush=True)
        finally:
            found = [journal.entries[trial.key] for _, trial in trials if trial.key in journal.entries]
            if len(given.only) == len(GROUPS):
                write_page(found, len(trials), how)
    shutil.rmtree(given.keep / "logs")
    return int(any(entry["failures"] for entry in found))


if __name__ == "__main__":
    sys.exit(main())

"""Runs the faults and writes the table of docs/reliability.md.

python tests/faults/run.py [--only GROUP ...] [--thin N] [--seed N] [--keep DIR]

Rows are kept in docs/reliability.json by group, so that a group can be run again by itself.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cases
from cases import Row
from harness import Bench

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BEGIN = "<!-- made by tests/faults/run.py -->"
END = "<!-- end -->"

LONG_KILLS = {"ingest": 45, "score": 66, "pick": 36, "report": 30, "seed": 24, "export": 9}


def kills(bench: Bench, draw: random.Random, thin: int) -> Iterator[Row]:
    """SIGKILL at more than 200 random moments."""
    yield from cases.kills_at_random(bench, LONG_KILLS, draw)


def writes(bench: Bench, draw: random.Random, thin: int) -> Iterator[Row]:
    """SIGKILL at the calls that change files."""
    every = {"ingest": 1, "score": 1, "pick": 1, "report": 2, "seed": 12, "export": 12}
    yield from cases.kills_at_writes(bench, _times(every, thin))


def disk(bench: Bench, draw: random.Random, thin: int) -> Iterator[Row]:
    """Writes that fail."""
    every = {"ingest": 1, "score": 2, "pick": 1, "report": 2, "seed": 20, "export": 15}
    yield from cases.disk(bench, _times(every, thin))


def damage(bench: Bench, draw: random.Random, thin: int) -> Iterator[Row]:
    """Files that are not what they were, and clocks."""
    yield from cases.damages(bench, ["scores/part-00000.arrow", "scores/part-00003.arrow"], draw)
    yield from cases.damages(bench, ["pool.arrow", "selection.arrow", "subset.json", "report.html"], draw)
    yield from cases.damages(bench, ["seed/adapter/adapter_model.safetensors", "onnx/scorer.onnx.data"], draw)
    yield from cases.damaged_checkpoint(bench, 3, draw)
    yield from cases.lost_books(bench)
    yield from cases.clock(bench, ["ingest", "score", "report", "seed"])


def processes(bench: Bench, draw: random.Random, thin: int) -> Iterator[Row]:
    """Signals, and a second process."""
    stages = ["ingest", "score", "score", "report", "seed", "seed", "export"]
    yield from cases.stops(bench, stages, draw, timed=True)
    yield from cases.two(bench, 5)


GROUPS = {"kills": kills, "writes": writes, "disk": disk, "damage": damage, "processes": processes}


def _times(steps: dict[str, int], thin: int) -> dict[str, int]:
    return {stage: step * thin for stage, step in steps.items()}


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown, and then every failure."""
    lines = ["| fault | where | tried | as it must be | what must happen |", "|---|---|---|---|---|"]
    for row in rows:
        failed = len(row.failures)
        outcome = f"all{'; ' + row.note if row.note else ''}" if not failed else f"**not: {failed} failures**"
        lines.append(f"| {row.fault} | {row.where} | {row.tried} | {outcome} | {row.expected} |")
    failures = [f"- {row.fault}, {row.where}: {failure}" for row in rows for failure in row.failures]
    return "\n".join([*lines, "", *(["Failures:", "", *failures] if failures else ["No failures."])])


def keep(group: str, head: str, rows: list[Row]) -> None:
    """Enter a group's rows in the JSON file, and write the page's table from all of them."""
    with (DOCS / "reliability.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # groups may run side by side
        file.seek(0)
        kept = json.loads(file.read() or "{}") | {group: {"head": head, "rows": [vars(row) for row in rows]}}
        file.truncate(0)
        file.write(json.dumps(kept, indent=1) + "\n")
        page = DOCS / "reliability.md"
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        groups = [kept[name] for name in GROUPS if name in kept]
        every = [Row(**row) for group in groups for row in group["rows"]]
        count = sum(row.tried for row in every if row.fault.startswith("SIGKILL"))
        heads = "\n".join(f"- {name}: {kept[name]['head']}" for name in GROUPS if name in kept)
        text = f"{count} kills in all. Runs:\n\n{heads}\n\n{table(every)}"
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _head(name: str, given: argparse.Namespace, started: float) -> str:
    how = f"--only {name} --thin {given.thin} --seed {given.seed}"
    minutes = (time.monotonic() - started) / 60
    system = f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"`{how}`, {time.strftime('%Y-%m-%d')}, {system}, {minutes:.1f} minutes"


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--thin", type=int, default=1, help="strike only at every N-th call of the long form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="keep pool, model and the undisturbed run here for other groups"
    )
    given = parser.parse_args()
    failed = False
    with Bench(given.keep) as bench:
        for name in given.only:
            started = time.monotonic()
            rows = []
            for row in GROUPS[name](bench, random.Random(given.seed), given.thin):
                rows.append(row)
                failed = failed or bool(row.failures)
                keep(name, _head(name, given, started), rows)
                outcome = row.failures or "as it must be"
                print(f"{row.tried:4} {row.fault}, {row.where}: {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

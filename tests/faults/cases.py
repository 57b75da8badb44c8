"""The faults: each function makes one happen many times and says how it ended."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import (
    COUNT,
    DATA,
    FAIL_ON,
    FAIL_ONCE,
    KILL,
    PATH,
    REMOVE,
    STAGES,
    Bench,
    Child,
    Finished,
    is_clear,
    killed,
)

__all__ = [
    "Row",
    "clock",
    "damages",
    "disk",
    "kills_at_random",
    "kills_at_writes",
    "lost_books",
    "stops",
    "two",
]

KILLS_IN_A_ROW = 3
STOP_SECONDS = 5.0


@dataclass
class Row:
    """One line of the table.

    Attributes
    ----------
    fault, where : str
        What was done, and in which stage or to which file.
    expected : str
        What must happen.
    tried : int
        How often it was done.
    failures : list of str
        How often that did not happen, with what happened instead.
    note : str
        A figure worth showing.
    """

    fault: str
    where: str
    expected: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    def check(self, holds: bool, otherwise: str) -> None:
        """Enter a failure unless something holds."""
        if not holds:
            self.failures.append(otherwise)


def kills_at_random(bench: Bench, counts: dict[str, int], draw: random.Random) -> Iterator[Row]:
    """Kill a stage at random moments, up to three times before it may finish."""
    for stage, count in counts.items():
        row = Row("SIGKILL at a random moment", stage, "the same command ends with the same bytes")
        while row.tried < count:
            bench.restore(stage)
            last = min(KILLS_IN_A_ROW, count - row.tried)
            done = sum(_kill_once(bench, stage, draw) for _ in range(last))
            row.tried += done
            _finish(bench, stage, row)
        yield row


def _kill_once(bench: Bench, stage: str, draw: random.Random) -> bool:
    child = bench.stage(stage)
    time.sleep(draw.uniform(0, bench.seconds[stage]))
    child.send(signal.SIGKILL)
    if killed(child.wait()):
        return True
    bench.seconds[stage] *= 0.8
    return False


def _finish(bench: Bench, stage: str, row: Row) -> None:
    """Let a stage finish; from the scores on, the whole run, which takes no longer."""
    from_scores = stage in STAGES[3:]
    ended = (bench.select() if from_scores else bench.stage(stage)).wait()
    row.check(ended.code == 0, f"{stage} does not go on: {_last(ended)}")
    reached = STAGES if from_scores else STAGES[: STAGES.index(stage) + 1]
    differing = bench.differences(reached)
    row.check(not differing, f"{stage}: {', '.join(differing)} differ")


def kills_at_writes(bench: Bench, steps: dict[str, int]) -> Iterator[Row]:
    """Kill a stage at its calls that change files, half of a write done."""
    for stage, step in steps.items():
        what = "every" if step == 1 else f"every {step}th"
        row = Row(
            f"SIGKILL at {what} call that changes a file", stage, "the same command ends with the same bytes"
        )
        for call in range(0, bench.calls[stage], step):
            bench.restore(stage)
            ended = bench.stage(stage, **bench.fault(KILL, call)).wait()
            row.check(killed(ended), f"call {call} of {stage} was not reached: {_last(ended)}")
            row.tried += 1
            _finish(bench, stage, row)
        yield row


def stops(bench: Bench, stages: Sequence[str], draw: random.Random, *, timed: bool) -> Iterator[Row]:
    """Stop stages by Ctrl-C and SIGTERM at random moments."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        row = Row(
            signum.name,
            ", ".join(stages),
            f"ends in {STOP_SECONDS:g} s with exit code {128 + signum}, says how to go on; the same bytes",
        )
        longest = 0.0
        for stage in stages:
            bench.restore(stage)
            child = bench.stage(stage)
            time.sleep(draw.uniform(0.05, 0.7) * bench.seconds[stage])
            child.send(signum)
            sent = time.monotonic()
            ended = child.wait()
            taken = time.monotonic() - sent
            if ended.code == 0:
                bench.seconds[stage] *= 0.8
                continue
            row.tried += 1
            longest = max(longest, taken)
            row.check(ended.code == 128 + signum, f"{stage}: exit code {ended.code}: {_last(ended)}")
            row.check("the same command goes on" in ended.log, f"{stage} does not say how to go on")
            row.check("Traceback" not in ended.log, f"{stage} shows a traceback")
            row.check(not timed or taken <= STOP_SECONDS, f"{stage} took {taken:.1f} s")
            _finish(bench, stage, row)
        row.note = f"longest {longest:.1f} s" if timed else ""
        yield row


def disk(bench: Bench, steps: dict[str, int]) -> Iterator[Row]:
    """Let writes fail, by kind of fault."""
    faults = {
        "no space left (ENOSPC), from a write on": (FAIL_ON, errno.ENOSPC, PATH | DATA),
        "input/output error (EIO) at a write": (FAIL_ONCE, errno.EIO, DATA),
        "read-only file system (EROFS), from a file on": (FAIL_ON, errno.EROFS, PATH | REMOVE),
    }
    for fault, (action, code, kinds) in faults.items():
        for stage, step in steps.items():
            row = Row(fault, stage, "clear error, earlier files intact; later the same bytes")
            bench.restore(stage)
            calls = bench.stage(stage, **bench.fault(COUNT, 0, kinds=kinds)).wait().calls
            for call in range(step // 2, calls, step):
                bench.restore(stage)
                ended = bench.stage(stage, **bench.fault(action, call, code, kinds)).wait()
                row.tried += 1
                row.check(is_clear(ended), f"{stage}, call {call}: exit code {ended.code}: {_last(ended)}")
                changed = bench.changed(stage)
                row.check(not changed, f"{stage}, call {call}: {', '.join(changed)} changed")
                _finish(bench, stage, row)
            yield row


def damages(bench: Bench, files: Sequence[str], draw: random.Random) -> Iterator[Row]:
    """Cut off, change or delete files of a finished run; the next command must find and mend it."""
    for damage in ("cut off", "a bit flipped", "deleted"):
        row = Row(damage, ", ".join(files), "named, made again with the same bytes, nothing else touched")
        for name in files:
            bench.restore("end")
            path = bench.run / name
            others = {
                part: part.stat().st_mtime_ns for part in bench.run.glob("scores/*.arrow") if part != path
            }
            damage_file(path, damage, draw)
            ended = bench.select().wait()
            row.tried += 1
            row.check(ended.code == 0, f"{name}: {_last(ended)}")
            row.check(name in ended.log, f"{name} is not named")
            differing = bench.differences()
            row.check(not differing, f"{name}: {', '.join(differing)} differ")
            row.check(
                all(part.stat().st_mtime_ns == at for part, at in others.items()), f"{name}: too much done"
            )
        yield row


def damage_file(path: Path, damage: str, draw: random.Random) -> None:
    """Cut off a random part of a file, flip a random bit, or delete it."""
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
        return
    place = draw.randrange(len(content))
    if damage == "cut off":
        del content[place:]
    else:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def damaged_checkpoint(bench: Bench, count: int, draw: random.Random) -> Iterator[Row]:
    """Damage the last checkpoint of a training that was killed late."""
    row = Row("a bit flipped", "seed/checkpoints/", "named, an earlier checkpoint used, the same bytes")
    for _ in range(count):
        bench.restore("seed")
        # Late in the training; what follows its end are the adapter and the model.
        bench.stage("seed", **bench.fault(KILL, bench.calls["seed"] * 3 // 4)).wait()
        whole = sorted(mark.parent for mark in bench.run.glob("seed/checkpoints/*/whole"))
        row.check(bool(whole), "there was no checkpoint")
        if whole:
            files = sorted(
                path for path in whole[-1].iterdir() if path.stat().st_size and path.name != "whole"
            )
            chosen = draw.choice(files)
            damage_file(chosen, "a bit flipped", draw)
            child = bench.stage("seed")
            ended = child.wait()
            row.check(chosen.name in ended.log, f"{chosen.name} is not named: {_last(ended)}")
        row.tried += 1
        _finish(bench, "seed", row)
    yield row


def lost_books(bench: Bench) -> Iterator[Row]:
    """Take away what says that stages are done."""
    books = ("manifest.json", "records/score.json", "records", "checksums.b3", "batches.json")
    row = Row("lost or damaged", ", ".join(books), "nothing is computed again")
    for name in books:
        for damage in ("deleted", "cut off"):
            bench.restore("end")
            path = bench.run / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                damage_file(path, damage, random.Random(0))
            ended = bench.select().wait()
            row.tried += 1
            done = ended.log.count("done before")
            row.check(ended.code == 0 and done == len(STAGES), f"{name} {damage}: {done} stages skipped")
            row.check(not bench.differences(), f"{name} {damage}: outputs differ")
    yield row


def clock(bench: Bench, stages: Sequence[str]) -> Iterator[Row]:
    """Let the wall clock jump ten years to and fro at every look at it; and give all files wrong times."""
    row = Row("clock jumps by ten years, to and fro", ", ".join(stages), "the same bytes")
    for stage in stages:
        bench.restore(stage)
        for path in bench.run.rglob("*"):
            os.utime(path, (0, 2**32))
        ended = bench.stage(stage, clock=315_360_000).wait()
        row.tried += 1
        row.check(ended.code == 0, f"{stage}: {_last(ended)}")
        _finish(bench, stage, row)
    yield row


def two(bench: Bench, count: int) -> Iterator[Row]:
    """Start the same command twice at once."""
    row = Row(
        "two processes on one run directory", "score", "one works, the other says who does; the same bytes"
    )
    for _ in range(count):
        bench.restore("score")
        children: list[Child] = [bench.select(), bench.select()]
        ended = sorted((child.wait() for child in children), key=lambda each: each.code)
        row.tried += 1
        row.check(ended[0].code == 0, _last(ended[0]))
        second = ended[1]
        refused = is_clear(second) and "in use by process" in second.log
        row.check(refused or second.log.count("done before") == len(STAGES), f"the second: {_last(second)}")
        _finish(bench, "score", row)
    yield row


def _last(ended: Finished) -> str:
    lines = [line for line in ended.log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {ended.code}, nothing said"

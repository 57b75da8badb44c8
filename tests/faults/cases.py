"""The faults: each function says what to try; a trial makes its fault happen and says how it ended."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness import (
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
    "Outcome",
    "Trial",
    "clock",
    "damaged_checkpoint",
    "damages",
    "disk",
    "kills_at_random",
    "kills_at_writes",
    "little_memory",
    "lost_books",
    "stops",
    "two",
]

KILLS_IN_A_ROW = 3
WHOLE = 12
"""At every so many kills of an early stage the whole run follows; else the stage alone."""
# A stage may be done before it is stopped; so often is it tried again.
ATTEMPTS = 100
STOP_SECONDS = 5.0
FROZEN = 0.25
"""Seconds: if the test itself was not run for longer, the machine stood still, and the command with it."""


@dataclass
class Outcome:
    """How a trial ended.

    Attributes
    ----------
    tried : int
        How often the fault happened.
    failures : list of str
        What did not hold.
    seconds : float
        How long it took to stop, where that counts.
    """

    tried: int = 1
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self, holds: bool, otherwise: str) -> None:
        """Enter a failure unless something holds."""
        if not holds:
            self.failures.append(otherwise)


@dataclass(frozen=True)
class Trial:
    """A fault to make happen.

    Attributes
    ----------
    fault, where, expected : str
        What is done, in which stage or to which files, and what must happen.
    name : str
        Which of the trials of this fault it is.
    do : callable
        Does it.
    """

    fault: str
    where: str
    expected: str
    name: str
    do: Callable[[random.Random], Outcome]

    @property
    def key(self) -> str:
        """Its name among all trials."""
        return f"{self.fault} | {self.where} | {self.name}"


def kills_at_random(bench: Bench, counts: dict[str, int]) -> Iterator[Trial]:
    """Kill a stage at random moments, up to three times before it may finish."""
    for stage, count in counts.items():
        for first in range(0, count, KILLS_IN_A_ROW):
            times = min(KILLS_IN_A_ROW, count - first)
            yield Trial(
                "SIGKILL at a random moment",
                stage,
                "the same command ends with the same bytes",
                f"{first} to {first + times}",
                partial(_kill_at_random, bench, stage, times, first % WHOLE == WHOLE - KILLS_IN_A_ROW),
            )


def _kill_at_random(bench: Bench, stage: str, times: int, whole: bool, draw: random.Random) -> Outcome:
    bench.restore(stage)
    outcome, anew = Outcome(tried=0), True
    while outcome.tried < times:
        child = bench.stage(stage)
        child.let_work(draw.uniform(0, bench.cpu[stage]))
        child.send(signal.SIGKILL)
        ended = child.wait()
        if killed(ended):
            outcome.tried += 1
            anew = False
        else:  # it was done before
            outcome.check(ended.code == 0, f"does not go on: {ended.last}")
            if anew:
                bench.cpu[stage] = ended.cpu
            bench.restore(stage)
            anew = True
    _finish(bench, stage, outcome, whole=whole)
    return outcome


def _finish(bench: Bench, stage: str, outcome: Outcome, *, whole: bool = False) -> None:
    """Let a stage finish; where it is asked for, and from the scores on, the whole run."""
    whole = whole or stage in STAGES[3:]
    ended = (bench.select() if whole else bench.stage(stage)).wait()
    outcome.check(ended.code == 0, f"does not go on: {ended.last}")
    reached = STAGES if whole else STAGES[: STAGES.index(stage) + 1]
    differing = bench.differences(reached)
    outcome.check(not differing, f"{', '.join(differing)} differ")


def kills_at_writes(bench: Bench, steps: dict[str, int]) -> Iterator[Trial]:
    """Kill a stage at its calls that change files, half of a write done."""
    for stage, step in steps.items():
        what = "every" if step == 1 else f"every {step}th"
        for call in range(0, bench.count(stage), step):
            yield Trial(
                f"SIGKILL at {what} call that changes a file",
                stage,
                "the same command ends with the same bytes",
                f"call {call}",
                partial(_kill_at_write, bench, stage, call),
            )


def _kill_at_write(bench: Bench, stage: str, call: int, draw: random.Random) -> Outcome:
    bench.restore(stage)
    outcome = Outcome()
    ended = bench.stage(stage, **bench.fault(KILL, call)).wait()
    outcome.check(killed(ended), f"was not reached: {ended.last}")
    _finish(bench, stage, outcome)
    return outcome


def stops(bench: Bench, stages: Sequence[str], *, timed: bool = True) -> Iterator[Trial]:
    """Stop stages by Ctrl-C and SIGTERM at random moments; ``timed`` ones within some seconds."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        for number, stage in enumerate(stages):
            yield Trial(
                signum.name,
                stage,
                f"ends in {STOP_SECONDS:g} s, exit code {128 + signum}, says how to go on; the same bytes",
                str(number),
                partial(_stop, bench, stage, signum, timed),
            )


def _stop(bench: Bench, stage: str, signum: signal.Signals, timed: bool, draw: random.Random) -> Outcome:
    outcome = Outcome(tried=0)
    for _ in range(ATTEMPTS):
        bench.restore(stage)
        child = bench.stage(stage)
        child.let_work(draw.uniform(0.02, 0.95) * bench.cpu[stage])
        child.send(signum)
        outcome.seconds = _seconds_until_end(child)
        ended = child.wait()
        if ended.was_done:
            bench.cpu[stage] = ended.cpu
            continue
        outcome.tried = 1
        outcome.check(ended.code == 128 + signum, ended.last)
        outcome.check("the same command goes on" in ended.log, f"does not say how to go on: {ended.last}")
        outcome.check("Traceback" not in ended.log, "shows a traceback")
        outcome.check(not timed or outcome.seconds <= STOP_SECONDS, f"took {outcome.seconds:.1f} s")
        break
    outcome.check(outcome.tried == 1, f"was done before the signal {ATTEMPTS} times")
    _finish(bench, stage, outcome)
    return outcome


def _seconds_until_end(child: Child) -> float:
    """Return how long a child still runs, without time in which the machine stood still."""
    seconds, last = 0.0, time.monotonic()
    while not child.has_ended():
        time.sleep(0.02)
        now = time.monotonic()
        seconds += min(now - last, FROZEN)
        last = now
    return seconds


DISK_FAULTS = {
    "no space left (ENOSPC), from a write on": (FAIL_ON, errno.ENOSPC, PATH | DATA),
    "input/output error (EIO) at a write": (FAIL_ONCE, errno.EIO, DATA),
    "read-only file system (EROFS), from a call on": (FAIL_ON, errno.EROFS, PATH | REMOVE),
}


def disk(bench: Bench, steps: dict[str, int]) -> Iterator[Trial]:
    """Let writes fail, by kind of fault."""
    for fault, (_, _, kinds) in DISK_FAULTS.items():
        for stage, step in steps.items():
            for call in range(step // 2, bench.count(stage, kinds), step):
                yield Trial(
                    fault,
                    stage,
                    "clear error, earlier files intact; later the same bytes",
                    f"call {call}",
                    partial(_fail, bench, fault, stage, call),
                )


def _fail(bench: Bench, fault: str, stage: str, call: int, draw: random.Random) -> Outcome:
    action, code, kinds = DISK_FAULTS[fault]
    bench.restore(stage)
    ended = bench.stage(stage, **bench.fault(action, call, code, kinds)).wait()
    outcome = Outcome()
    outcome.check(is_clear(ended), ended.last)
    changed = bench.changed(stage)
    outcome.check(not changed, f"{', '.join(changed)} changed")
    _finish(bench, stage, outcome)
    return outcome


DAMAGES = ("cut off", "a bit flipped", "deleted")


def damages(bench: Bench, files: Sequence[str]) -> Iterator[Trial]:
    """Cut off, change or delete files of a finished run; the next command must find and mend it."""
    for damage in DAMAGES:
        for name in files:
            yield Trial(
                damage,
                name,
                "named, made again with the same bytes, nothing else touched",
                "",
                partial(_damage, bench, damage, name),
            )


def _damage(bench: Bench, damage: str, name: str, draw: random.Random) -> Outcome:
    bench.restore("end")
    path = bench.run / name
    parts = {part: part.stat().st_mtime_ns for part in bench.run.glob("scores/*.arrow") if part != path}
    damage_file(path, damage, draw)
    outcome = Outcome()
    shown = bench.server.start(argv=["doctor", str(bench.run)]).wait()
    outcome.check(shown.code == 1 and name in shown.log, f"doctor does not name it: {shown.last}")
    ended = bench.select().wait()
    outcome.check(ended.code == 0, ended.last)
    outcome.check(name in ended.log, "is not named")
    differing = bench.differences()
    outcome.check(not differing, f"{', '.join(differing)} differ")
    outcome.check(all(part.stat().st_mtime_ns == at for part, at in parts.items()), "too much done")
    return outcome


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


def damaged_checkpoint(bench: Bench, count: int) -> Iterator[Trial]:
    """Damage the last checkpoint of a training that was killed late."""
    for number in range(count):
        yield Trial(
            "a bit flipped",
            "seed/checkpoints/",
            "named, an earlier checkpoint used, the same bytes",
            str(number),
            partial(_damage_checkpoint, bench),
        )


def _damage_checkpoint(bench: Bench, draw: random.Random) -> Outcome:
    bench.restore("seed")
    # Late in the training; what follows its end are the adapter and the model.
    bench.stage("seed", **bench.fault(KILL, bench.count("seed") * 3 // 4)).wait()
    whole = sorted(mark.parent for mark in bench.run.glob("seed/checkpoints/*/whole"))
    outcome = Outcome()
    outcome.check(bool(whole), "there was no checkpoint")
    if whole:
        files = sorted(path for path in whole[-1].iterdir() if path.stat().st_size and path.name != "whole")
        chosen = draw.choice(files)
        damage_file(chosen, "a bit flipped", draw)
        ended = bench.stage("seed").wait()
        outcome.check(chosen.name in ended.log, f"{chosen.name} is not named: {ended.last}")
    _finish(bench, "seed", outcome)
    return outcome


BOOKS = ("manifest.json", "records/score.json", "records", "checksums.b3", "batches.json")


def lost_books(bench: Bench) -> Iterator[Trial]:
    """Take away what says that stages are done."""
    for name in BOOKS:
        for damage in ("deleted", "cut off") if name != "records" else ("deleted",):
            lose = partial(_lose, bench, name, damage)
            yield Trial("lost or damaged", name, "nothing is computed again", damage, lose)


def _lose(bench: Bench, name: str, damage: str, draw: random.Random) -> Outcome:
    bench.restore("end")
    path = bench.run / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        damage_file(path, damage, draw)
    ended = bench.select().wait()
    done = ended.log.count("done before")
    outcome = Outcome()
    outcome.check(ended.code == 0 and done == len(STAGES), f"{done} stages skipped: {ended.last}")
    outcome.check(not bench.differences(), "outputs differ")
    return outcome


def clock(bench: Bench, stages: Sequence[str]) -> Iterator[Trial]:
    """Let the wall clock jump ten years to and fro at every look at it; and give all files wrong times."""
    for stage in stages:
        yield Trial(
            "clock jumps by ten years, to and fro", stage, "the same bytes", "", partial(_jump, bench, stage)
        )


def _jump(bench: Bench, stage: str, draw: random.Random) -> Outcome:
    bench.restore(stage)
    for path in bench.work.rglob("*"):
        os.utime(path, (0, 2**32))
    ended = bench.stage(stage, clock=315_360_000).wait()
    outcome = Outcome()
    outcome.check(ended.code == 0, ended.last)
    _finish(bench, stage, outcome)
    return outcome


def two(bench: Bench, stages: Sequence[str]) -> Iterator[Trial]:
    """Start the same command twice at once."""
    for number, stage in enumerate(stages):
        yield Trial(
            "two processes on one run directory",
            stage,
            "one works, the other says who does; the same bytes",
            str(number),
            partial(_start_two, bench, stage),
        )


def _start_two(bench: Bench, stage: str, draw: random.Random) -> Outcome:
    bench.restore(stage)
    children = [bench.stage(stage), bench.stage(stage)]
    ended: list[Finished] = sorted((child.wait() for child in children), key=lambda each: each.code)
    outcome = Outcome()
    outcome.check(ended[0].code == 0, ended[0].last)
    second = ended[1]
    refused = is_clear(second) and "in use by process" in second.log
    came_late = second.code == 0 and "done before" in second.log
    outcome.check(refused or came_late, f"the second: {second.last}")
    _finish(bench, stage, outcome)
    return outcome


def little_memory(bench: Bench, spare: Sequence[int]) -> Iterator[Trial]:
    """Give scoring less memory than one batch of the whole pool needs."""
    for megabytes in spare:
        yield Trial(
            "too little memory (RLIMIT_DATA)",
            "score",
            "batches are halved, every sample is scored",
            f"{megabytes} MB to spare",
            partial(_score_in, bench, megabytes),
        )


def _score_in(bench: Bench, megabytes: int, draw: random.Random) -> Outcome:
    shutil.rmtree(bench.work)
    bench.work.mkdir()
    records = json.loads((bench.folder / "pool.json").read_text())
    pool = bench.work / "large.json"
    pool.write_text(
        json.dumps([record | {"id": f"{record['id']}-{copy}"} for copy in range(30) for record in records])
    )
    at = ["--run-dir", str(bench.run)]
    model = bench.before["end"] / "run" / "seed" / "model"
    for command in (
        ["ingest", str(pool), "--images", str(bench.folder / "images")],
        ["seed", "--seed-model", str(model)],
        ["export"],
    ):
        ended = bench.server.start(argv=[*command, *at]).wait()
        assert ended.code == 0, ended.log
    options = ["--shard-size", "2000", "--token-budget", "10000000"]
    ended = bench.server.start(argv=["score", *options, *at], memory=megabytes << 20).wait()
    outcome = Outcome()
    outcome.check(ended.code == 0, ended.last)
    outcome.check("halved" in ended.log, f"no batch was halved: {ended.last}")
    outcome.check(f"{30 * len(records):,} samples scored, 0 set aside" in ended.log, ended.last)
    return outcome

"""Runs a command in a fresh process on as many cores as it may have threads; takes time and peak memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data

THREAD_COUNTS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
FIELDS = {"VmHWM": "resident_mb", "RssAnon": "anonymous_mb"}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Contender:
    """One way to do a task.

    Attributes
    ----------
    name : str
        Shown in the table.
    command : list of str
        What is run. `function` and `cli` make such commands.
    out : Path
        Folder that the command writes into; emptied before each run.
    """

    name: str
    command: list[str]
    out: Path

    @property
    def ours(self) -> bool:
        """Whether this package does it."""
        return self.name.startswith("ours")


def function(name: str, call: str, out: Path, warm_up: dict[str, Any], **arguments: Any) -> Contender:
    """Make a contender of ``module.function`` of this folder; it takes `out` and `arguments`, JSON values.

    It is called once before the clock starts, with the arguments in `warm_up` in place of the real ones.
    """
    job = {"call": call, "out": str(out), "arguments": arguments, "warm_up": arguments | warm_up}
    worker = Path(__file__).with_name("worker.py")
    return Contender(name, [sys.executable, str(worker), json.dumps(job, default=str)], out)


def cli(name: str, out: Path, *arguments: object) -> Contender:
    """Make a contender of a command of ``mllm-selector``."""
    return Contender(name, [sys.executable, "-m", "mllm_selector", *map(str, arguments)], out)


@dataclass(frozen=True)
class Measurement:
    """What the runs of a contender took.

    Attributes
    ----------
    seconds : float
        Of the call, with everything imported; of the whole process for a command. The median.
    cpu_seconds : float
        That all threads spent in the same time. The median.
    process_seconds : float
        Of the whole process, from start to end. The median.
    runs : list of float
        `seconds` of each run.
    resident_mb, anonymous_mb : float
        Greatest memory, with and without the pages of mapped files.
    results : dict
        What the function returned, of the last run.
    """

    seconds: float
    cpu_seconds: float
    process_seconds: float
    runs: list[float]
    resident_mb: float
    anonymous_mb: float
    results: dict[str, Any]


class Failure(Exception):  # noqa: N818 - a result like any other: peers run out of time or memory
    """A contender did not finish."""


def measure(
    contender: Contender, reads: list[Path], threads: int, *, repeats: int, timeout: float
) -> Measurement:
    """Run a contender; the files that it reads are brought into the page cache first.

    Raises
    ------
    Failure
        If it ends with an error or does not end in time.
    """
    runs: list[float] = []
    cpu: list[float] = []
    whole: list[float] = []
    memory = dict.fromkeys(FIELDS.values(), 0.0)
    results: dict[str, Any] = {}
    for _ in range(repeats):
        shutil.rmtree(contender.out, ignore_errors=True)
        contender.out.mkdir(parents=True)
        os.sync()  # what an earlier one wrote is not written out at the cost of this one
        for path in reads:
            data.read_ahead(path)
        taken, spent = run(contender, threads, timeout, memory)
        result = contender.out / "result.json"
        results = json.loads(result.read_bytes()) if result.exists() else {}
        whole.append(taken)
        runs.append(results.pop("seconds", taken))
        cpu.append(results.pop("cpu_seconds", spent))
    medians = (statistics.median(each) for each in (runs, cpu, whole))
    return Measurement(*medians, runs, **memory, results=results)


def run(contender: Contender, threads: int, timeout: float, memory: dict[str, float]) -> tuple[float, float]:
    """Run the command once; return its seconds and CPU seconds, and raise the greatest memory seen."""
    with (contender.out / "stderr").open("wb") as errors:
        started, before = time.perf_counter(), cpu_of_children()
        process = start(contender.command, threads, errors)
        try:
            watch(process, started + timeout, memory)
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - started
    if process.returncode:
        last = (contender.out / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
        raise Failure(f"failed, exit status {process.returncode}: {' '.join(last)[:200]}")
    return seconds, cpu_of_children() - before


def cpu_of_children() -> float:
    """Return the CPU seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def start(command: list[str], threads: int, errors: Any) -> subprocess.Popen[bytes]:
    """Start the process on as many cores as it may have threads; it inherits them from this thread."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores, reverse=True)[:threads])  # core 0 serves most interrupts
    try:
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT, **dict.fromkeys(THREAD_COUNTS, str(threads))},
        )
    finally:
        os.sched_setaffinity(0, cores)


def watch(process: subprocess.Popen[bytes], deadline: float, memory: dict[str, float]) -> None:
    """Wait for the process and keep the greatest memory seen."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if time.perf_counter() > deadline:
            raise Failure("not done in time")
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in FIELDS:
                memory[FIELDS[name]] = max(memory[FIELDS[name]], int(value.split()[0]) * 1024 / 1e6)
        time.sleep(0.01)

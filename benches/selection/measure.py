"""Runs one function in a fresh process with its cores and threads set; takes time and peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import data

THREAD_COUNTS = (
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
FIELDS = {"RssAnon": "anonymous_mb", "VmHWM": "resident_mb"}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Contender:
    """One way to do a task.

    Attributes
    ----------
    name : str
        Shown in the table.
    call : str
        ``module.function`` of this folder; it takes the rows and `arguments` and returns named arrays.
    arguments : dict
        Numbers only.
    dtype : str
        Type of the rows.
    mapped : bool
        Leave the rows in the file, instead of reading them into memory first.
    scored : bool
        The function wants the scores of the rows as `necessity`.
    estimate : callable, optional
        Makes the seconds of the whole task from those measured and the arrays returned.
    note : str
        What the estimate rests on.
    against : str, optional
        Name of the contender that the check compares with; default the first.
    """

    name: str
    call: str
    arguments: dict[str, float] = field(default_factory=dict)
    dtype: str = "float32"
    mapped: bool = False
    scored: bool = False
    estimate: Callable[[float, Arrays], float] | None = None
    note: str = ""
    against: str | None = None

    @property
    def ours(self) -> bool:
        """Whether this package does it."""
        return self.call.startswith("ours.")


@dataclass(frozen=True)
class Measurement:
    """What the runs of a contender took: the median time, the greatest memory, the last run's arrays."""

    seconds: float
    runs: list[float]
    anonymous_mb: float
    resident_mb: float
    arrays: Arrays


class Failure(Exception):  # noqa: N818 - a result like any other: peers run out of time or memory
    """A contender did not finish."""


def measure(
    contender: Contender,
    path: Path,
    rows: int,
    threads: int,
    *,
    repeats: int = 1,
    timeout: float = 3600,
    environment: dict[str, str] | None = None,
) -> Measurement:
    """Run a contender on the first rows of a file.

    Raises
    ------
    Failure
        If it ends with an error or does not end in time.
    """
    data.read_ahead(path)
    runs = []
    memory = dict.fromkeys(FIELDS.values(), 0.0)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.npz"
            job = {
                "data": str(path),
                "rows": rows,
                "mapped": contender.mapped,
                "call": contender.call,
                "scored": contender.scored,
                "arguments": contender.arguments,
                "out": str(out),
            }
            watch(start(job, threads, environment or {}), timeout, memory)
            with np.load(out) as file:
                arrays = dict(file)
        seconds = float(arrays.pop("seconds"))
        runs.append(contender.estimate(seconds, arrays) if contender.estimate else seconds)
    return Measurement(statistics.median(runs), runs, **memory, arrays=arrays)


def start(job: dict[str, object], threads: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the worker on as many cores as it may have threads; it inherits them from this thread."""
    cores = os.sched_getaffinity(0)
    if len(cores) < threads:
        raise SystemExit(f"--threads {threads}: this process may use {len(cores)} cores only")
    counts = dict.fromkeys(THREAD_COUNTS, str(threads))
    os.sched_setaffinity(0, sorted(cores, reverse=True)[:threads])  # core 0 serves most interrupts
    try:
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("worker.py"), json.dumps(job)],
            stdout=subprocess.DEVNULL,
            env={**os.environ, **counts, **environment},
        )
    finally:
        os.sched_setaffinity(0, cores)


def watch(process: subprocess.Popen[bytes], timeout: float, memory: dict[str, float]) -> None:
    """Wait for the worker and keep the greatest memory seen."""
    deadline = time.monotonic() + timeout
    status = Path(f"/proc/{process.pid}/status")
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise Failure(f"not done after {timeout:.0f} s")
            for line in status.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in FIELDS:
                    memory[FIELDS[name]] = max(memory[FIELDS[name]], int(value.split()[0]) * 1024 / 1e6)
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Failure(f"failed, exit status {process.returncode}")

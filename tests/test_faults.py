"""Faults in real runs of the first stage; `make test-faults` has those of all, and takes long."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import cases
from harness import Bench


def test_reading_loses_nothing() -> None:
    draw = random.Random(0)
    with Bench(stages=["ingest"]) as bench:
        rows = [
            *cases.kills_at_random(bench, {"ingest": 9}, draw),
            *cases.kills_at_writes(bench, {"ingest": 3}),
            *cases.disk(bench, {"ingest": 8}),
            *cases.stops(bench, ["ingest", "ingest"], draw, timed=False),
            *cases.clock(bench, ["ingest"]),
        ]
    assert [failure for row in rows for failure in row.failures] == []
    assert sum(row.tried for row in rows if row.fault.startswith("SIGKILL")) >= 20
    assert all(row.tried for row in rows if not row.fault.startswith("SIG"))


# A main thread that waits in C for a lock that it holds itself: Python's handlers never get to run.
STUCK = """
import ctypes
from mllm_selector.interrupts import stoppable
with stoppable():
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("stuck", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def _state(process: int) -> str:
    """Return what the kernel says of a process's main thread: R runs, S sleeps."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_stop_does_not_wait_for_what_does_not_end(signals: list[signal.Signals]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    while _state(process.pid) != "S":  # on its way to the lock
        time.sleep(0.01)
    for signum in signals:
        process.send_signal(signum)
        time.sleep(0.2)  # two pending signals of a kind would be one
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signals[0]
    assert "the same command goes on where it stopped" in told

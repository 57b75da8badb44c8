"""Faults in real runs: the short form of `make test-faults`."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))

from harness import Bench

import run as faults


@pytest.mark.timeout(1800)
def test_nothing_is_lost() -> None:
    with Bench() as bench:
        rows = list(faults.short(bench, random.Random(0)))
    assert [failure for row in rows for failure in row.failures] == []
    assert all(row.tried for row in rows)
    assert sum(row.tried for row in rows if row.fault.startswith("SIGKILL")) >= 20


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


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_stop_does_not_wait_for_what_does_not_end(signals: list[signal.Signals]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    for signum in signals:
        process.send_signal(signum)
        time.sleep(0.2)  # two pending signals of a kind would be one
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signals[0]
    assert "the same command goes on where it stopped" in told

"""Faults other than kills in real runs, the short form; `make test-faults` has the long one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import cases
import pytest
from harness import Bench

from fault_fixtures import check

pytest_plugins = ["fault_fixtures"]


def test_a_disk_that_fails_spoils_nothing(bench: Bench) -> None:
    assert check(cases.disk(bench, {"ingest": 13, "score": 40, "pick": 20})) >= 9


def test_a_stop_says_how_to_go_on(bench: Bench) -> None:
    assert check(cases.stops(bench, ["seed", "score"], timed=False)) == 4


def test_damage_is_found_and_mended(bench: Bench) -> None:
    assert check(cases.damages(bench, ["scores/part-00002.arrow"])) == 3


def test_the_clock_does_not_matter(bench: Bench) -> None:
    assert check(cases.clock(bench, ["score"])) == 1


def test_two_processes_do_not_meet(bench: Bench) -> None:
    assert check(cases.two(bench, ["score"])) == 1


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


# What Ray makes of a signal that comes while it waits.
BARE = """
import os, signal
from mllm_selector.interrupts import Stopped, stoppable
try:
    with stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except Stopped:
            raise KeyboardInterrupt from None
except Stopped as stop:
    raise SystemExit(stop.exit_code)
"""


def test_a_stop_is_known_for_what_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr

"""Stopping by Ctrl-C or SIGTERM: at once where Python gets to run, else in a few seconds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator
from typing import NoReturn

__all__ = ["Stopped", "stoppable"]

GRACE = 4.0
"""Seconds that a stop may take before the process ends itself; what it leaves is what a kill leaves."""

_STOPS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to stop.

    Attributes
    ----------
    signum : int
        The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return 128 + self.signum

    def __str__(self) -> str:
        return stop_message(self.signum)


def stop_message(signum: int) -> str:
    """Say how to go on."""
    name = signal.Signals(signum).name
    return f"mllm-selector: stopped by {name}; the same command goes on where it stopped"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` in the block on Ctrl-C and SIGTERM, and end the process if it has not stopped in time.

    Python runs a signal's handler between two of its own instructions, but the thread may be inside a library
    for longer than that. So another thread hears of the signal too, through the socket that the interpreter
    writes to as soon as it comes. A second signal ends the process at once. To be called by the main thread.
    """
    hear, tell = socket.socketpair()  # Windows cannot wait for a pipe
    tell.setblocking(False)
    came: list[int] = []

    def stop(signum: int, frame: types.FrameType | None) -> NoReturn:
        came.append(signum)
        raise Stopped(signum)

    before = {signum: signal.signal(signum, stop) for signum in _STOPS}
    wakeup = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(hear,), daemon=True, name="stop").start()
    try:
        yield
    except KeyboardInterrupt as error:
        # Ray puts a bare one in the place of what a handler raises while it waits.
        if isinstance(error, Stopped) or not came:
            raise
        raise Stopped(came[-1]) from error
    finally:
        signal.set_wakeup_fd(wakeup)
        tell.close()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _watch(hear: socket.socket) -> None:
    """Wait for a stop; give the main thread its time, which may include the end of the interpreter."""
    signum = _next_stop(hear)
    if signum is None:
        hear.close()
        return
    deadline = time.monotonic() + GRACE
    if select.select([hear], [], [], GRACE)[0] and _next_stop(hear) is None:
        time.sleep(max(0.0, deadline - time.monotonic()))
    os.write(2, stop_message(signum).encode() + b"\n")
    os._exit(128 + signum)


def _next_stop(hear: socket.socket) -> int | None:
    """Return the next signal to stop; None if the block has ended."""
    while heard := hear.recv(1):
        if heard[0] in _STOPS:
            return heard[0]
    return None

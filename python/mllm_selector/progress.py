"""Progress of a run: bars on a terminal, plain lines elsewhere, JSON events for machines.

A stage reports to a `Progress` and never prints.
"""

from __future__ import annotations

import json
import sys
import time
from typing import IO, Any, Protocol

from tqdm import tqdm

__all__ = ["BarProgress", "JsonProgress", "LineProgress", "Progress", "SilentProgress", "for_stream"]


class Progress(Protocol):
    """What a stage reports while it runs."""

    def start(self, stage: str, total: int | None = None, unit: str = "samples", done: int = 0) -> None:
        """Begin a stage, or a step of one, of `total` units (None: not known), `done` of them before."""

    def update(self, done: int, **fields: float | str) -> None:
        """Say that `done` units in all are done, with figures worth showing (loss, rate)."""

    def note(self, text: str) -> None:
        """Say something in a sentence."""

    def finish(self, text: str) -> None:
        """End what `start` began, with a one-line summary."""


class SilentProgress:
    """Reports nothing; the default of the Python functions."""

    def start(self, stage: str, total: int | None = None, unit: str = "samples", done: int = 0) -> None:
        """Ignore."""

    def update(self, done: int, **fields: float | str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def finish(self, text: str) -> None:
        """Ignore."""


class BarProgress:
    """One bar a stage, on a terminal."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def start(self, stage: str, total: int | None = None, unit: str = "samples", done: int = 0) -> None:
        """Open a bar."""
        self._close()
        self._stage = stage
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"{stage:<7}",
            unit=f" {unit}",
            unit_scale=unit == "bytes",
            file=self._stream,
            leave=False,
            dynamic_ncols=True,
        )

    def update(self, done: int, **fields: float | str) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        if fields:
            self._bar.set_postfix({name: _short(value) for name, value in fields.items()}, refresh=False)
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=self._stream)

    def finish(self, text: str) -> None:
        """Close the bar and leave a line in its place."""
        self._close()
        tqdm.write(f"{self._stage:<7} {text}", file=self._stream)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LineProgress:
    """A line now and then, for log files."""

    def __init__(self, stream: IO[str], every_seconds: float = 10.0) -> None:
        self._stream = stream
        self._every = every_seconds
        self._stage = ""
        self._total: int | None = None
        self._unit = ""
        self._before = 0
        self._started = self._shown = 0.0

    def start(self, stage: str, total: int | None = None, unit: str = "samples", done: int = 0) -> None:
        """Remember what is measured."""
        self._stage, self._total, self._unit, self._before = stage, total, unit, done
        self._started = self._shown = time.monotonic()

    def update(self, done: int, **fields: float | str) -> None:
        """Print a line if the last one is long enough ago."""
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        parts = [f"{done:,} {self._unit}"]
        if self._total:
            elapsed = now - self._started
            fresh = done - self._before
            left = elapsed * (self._total - done) / fresh if fresh else float("nan")
            parts = [f"{done:,} of {self._total:,} {self._unit}", f"{left:.0f} s left"]
        parts += [f"{name} {_short(value)}" for name, value in fields.items()]
        self._line(f"{self._stage:<7} {', '.join(parts)}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._line(text)

    def finish(self, text: str) -> None:
        """Print the summary."""
        self._line(f"{self._stage:<7} {text}")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class JsonProgress:
    """One JSON object a line, for machines."""

    def __init__(self, stream: IO[str], every_seconds: float = 1.0) -> None:
        self._stream = stream
        self._every = every_seconds
        self._stage = ""
        self._total: int | None = None
        self._unit = ""
        self._shown = 0.0

    def start(self, stage: str, total: int | None = None, unit: str = "samples", done: int = 0) -> None:
        """Write a ``start`` event."""
        self._stage, self._total, self._unit = stage, total, unit
        self._event("start", total=total, unit=unit, done=done)

    def update(self, done: int, **fields: float | str) -> None:
        """Write a ``progress`` event if the last one is long enough ago."""
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        self._event("progress", done=done, total=self._total, unit=self._unit, **fields)

    def note(self, text: str) -> None:
        """Write a ``note`` event."""
        self._event("note", text=text)

    def finish(self, text: str) -> None:
        """Write a ``finish`` event."""
        self._event("finish", text=text)

    def _event(self, event: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"event": event, "stage": self._stage, **fields}) + "\n")
        self._stream.flush()


def for_stream(stream: IO[str] | None = None) -> Progress:
    """Choose bars for a terminal and plain lines for anything else."""
    stream = sys.stderr if stream is None else stream
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Peak memory of a stretch of work, as the operating system saw it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_memory_mb", "reset_peak_memory"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Start a new peak (Linux; elsewhere nothing happens).

    Writing 5 to ``clear_refs`` sets the peak resident size back to the current one (proc(5)).
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float | None:
    """Return the peak resident memory since the last reset in MB (10^6 bytes); None if unknown.

    Mapped pages of files count while they are resident, although the system can take them back.
    """
    try:
        status = _STATUS.read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None

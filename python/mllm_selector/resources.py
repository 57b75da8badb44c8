"""What the machine is, and the peak memory of a stretch of work."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["gpu_name", "own_memory_mb", "peak_memory_mb", "processor_name", "reset_peak_memory"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PROCESSOR = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the processor's name as Linux knows it; ``unknown`` elsewhere."""
    try:
        lines = _PROCESSOR.read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def gpu_name() -> str | None:
    """Return name, memory and driver of each NVIDIA GPU; None without ``nvidia-smi``.

    What ``nvidia-smi`` says in place of an answer is returned as it is.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(answer.stdout.strip().splitlines()) or f"nvidia-smi says: {answer.stderr.strip()}"


def reset_peak_memory() -> None:
    """Start a new peak (Linux; elsewhere nothing happens).

    Writing 5 to ``clear_refs`` sets the peak resident size back to the current one (proc(5)).
    """
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def own_memory_mb() -> float | None:
    """Return the resident memory now, without mapped files, in MB (10^6 bytes); None if unknown."""
    return _status_mb("RssAnon:")


def peak_memory_mb() -> float | None:
    """Return the peak resident memory since the last reset in MB (10^6 bytes); None if unknown.

    Mapped pages of files count while they are resident, although the system can take them back.
    """
    return _status_mb("VmHWM:")


def _status_mb(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name)), None)

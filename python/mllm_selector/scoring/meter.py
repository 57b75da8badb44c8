"""How fast a sweep over the pool goes, told as it goes."""

from __future__ import annotations

import time

from mllm_selector.progress import Progress

__all__ = ["Meter"]


class Meter:
    """Reports progress with the speed of this process, parts that were finished before left out.

    Parameters
    ----------
    progress : Progress
        What is reported to.
    finished : int
        Samples of parts that were finished before.

    Attributes
    ----------
    splits : int
        Batches that did not fit in a device's memory and were halved.
    """

    def __init__(self, progress: Progress, finished: int) -> None:
        self._progress = progress
        self._finished = finished
        self._samples = self._tokens = 0
        self._scorers: dict[str, tuple[float, float]] = {}
        self._started = time.monotonic()
        self.splits = 0

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self._samples / self.seconds

    @property
    def idle(self) -> float:
        """Share of the time in which devices waited for work."""
        busy = sum(busy for busy, _ in self._scorers.values())
        seconds = sum(seconds for _, seconds in self._scorers.values())
        return max(0.0, 1 - busy / max(seconds, 1e-9))

    @property
    def seconds(self) -> float:
        """Seconds since the sweep began."""
        return max(time.monotonic() - self._started, 1e-9)

    def worked(self, scorer: str, busy: float, seconds: float) -> None:
        """Take how many seconds a scorer's device has computed, and how many have passed, since it began."""
        self._scorers[scorer] = busy, seconds

    def count(self, tokens: int, samples: int) -> None:
        """Add tokens that are done; of the part that they are of, as many samples as are done by now."""
        self._tokens += tokens
        self._report(self._samples + samples)

    def end(self, samples: int, tokens: int = 0) -> None:
        """Add a finished part, and tokens of it that have not been counted."""
        self._samples += samples
        self._tokens += tokens
        self._report(self._samples)

    def _report(self, samples: int) -> None:
        speed: dict[str, float | str] = {
            "samples/s": samples / self.seconds,
            "tokens/s": self._tokens / self.seconds,
            "idle": f"{self.idle:.0%}",
        }
        self._progress.update(self._finished + samples, **speed)

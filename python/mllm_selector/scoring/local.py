"""Scoring in this process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.loading import ahead
from mllm_selector.scoring.meter import Meter
from mllm_selector.scoring.sweeps import Facts, Opened, PartScorer, Sweep

__all__ = ["LocalScorer", "Scorers"]


class Scorers(Protocol):
    """What scores the pool, wherever that is.

    Attributes
    ----------
    facts : Facts
        What is known before the first part.
    """

    facts: Facts

    def best_budget(self) -> BatchBudget:
        """Measure how much is best computed together."""

    def drawn_embeddings(self, budget: BatchBudget) -> NDArray[np.float32]:
        """Score drawn samples for their embeddings."""

    def tables(
        self, sweep: Sweep, parts: Mapping[Path, range], meter: Meter
    ) -> Generator[tuple[Path, pa.Table]]:
        """Score parts.

        Parameters
        ----------
        sweep : Sweep
            What is scored.
        parts : mapping of Path to range
            The parts, and their rows of the pool. Nothing is written.
        meter : Meter
            Is told how it goes.

        Yields
        ------
        part : Path
            In any order.
        table : pyarrow.Table
            What the part is to hold.
        """


class LocalScorer:
    """One scorer, in this process; see `Scorers`."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.facts = opened.facts

    def best_budget(self) -> BatchBudget:
        """See `Scorers.best_budget`."""
        return self._opened.best_budget()

    def drawn_embeddings(self, budget: BatchBudget) -> NDArray[np.float32]:
        """See `Scorers.drawn_embeddings`."""
        return self._opened.drawn_embeddings(budget)

    def tables(
        self, sweep: Sweep, parts: Mapping[Path, range], meter: Meter
    ) -> Generator[tuple[Path, pa.Table]]:
        """See `Scorers.tables`; a part is encoded while the one before it is computed."""
        # Pillow only warns of pictures up to twice its limit; here they are as unreadable as larger ones.
        with (
            warnings.catch_warnings(),
            PartScorer(self._opened, sweep) as scorer,
            ThreadPoolExecutor(1, thread_name_prefix="encode") as thread,
        ):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            plans = (scorer.plan(rows) for rows in parts.values())
            for (part, rows), planned in zip(parts.items(), ahead(plans, thread, 1), strict=True):
                count = _counter(meter, scorer, len(rows), len(planned.shard.samples))
                yield part, scorer.score(rows, planned, count)
                meter.splits = scorer.work.splits
                meter.end(len(rows))


def _counter(meter: Meter, scorer: PartScorer, samples: int, readings: int) -> Callable[[int, int], None]:
    """Return what counts a part's batches: a sample counts as done when its share of the readings is."""
    read = 0

    def count(more: int, tokens: int) -> None:
        nonlocal read
        read += more
        meter.worked("", scorer.work.busy_seconds, meter.seconds)
        meter.count(tokens, samples * read // readings)

    return count

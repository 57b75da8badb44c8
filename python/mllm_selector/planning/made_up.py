"""Short measurements of pick and report: real code on made-up scores and embeddings."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mllm_selector import methods
from mllm_selector.config import Amount, PickOptions, ScoreOptions
from mllm_selector.planning.rates import Rate
from mllm_selector.progress import SilentProgress
from mllm_selector.reporting.numbers import DUPLICATE_COSINE
from mllm_selector.reporting.overview import Embedded, products
from mllm_selector.resources import own_memory_mb, peak_memory_mb, reset_peak_memory
from mllm_selector.samples import Labels, Scored
from mllm_selector.sampling import cluster, cluster_count

__all__ = ["probe_clusters", "probe_pick", "probe_report"]

ROWS = (10_000, 40_000, 400_000)
"""Of the larger sizes, only those that `SECONDS` are likely to be enough for."""

SECONDS = 10.0
"""Of the processor: what else runs on the machine is not to decide what a plan rests on."""


ROW_MB = 30e-6
"""Least memory of a further row: what `pick` held for each of 100,000,000 (benches/RESULTS.md). Memory that
the process has freed before is used again and does not show in its peak."""

REPORT_ROWS = 100_000


@dataclasses.dataclass(frozen=True)
class _Probe:
    """Work on some rows: its seconds by clock and processor, and the MB that it took."""

    rows: int
    seconds: float
    processor: float
    memory: float


@dataclasses.dataclass(frozen=True)
class _Growth:
    """How work grows with the rows.

    Attributes
    ----------
    probes : sequence of _Probe
        Of several sizes, ascending.
    is_even : bool
        Whether it is known to be many pieces of one size, one after the other: then time is linear and
        memory does not grow.
    """

    probes: Sequence[_Probe]
    is_even: bool = False

    @classmethod
    def of(cls, once: Callable[[int], _Probe], samples: int, *, is_even: bool = False) -> _Growth:
        """Try the sizes up to `samples`."""
        probes: list[_Probe] = []
        for rows in sorted({min(samples, rows) for rows in ROWS}):
            if len(probes) > 1 and cls(probes, is_even).processor_for(rows) > SECONDS:
                break
            probes.append(once(rows))
        return cls(probes, is_even)

    def seconds_for(self, rows: int) -> float:
        """Return the seconds by the clock."""
        return self._for(rows, lambda probe: probe.seconds)

    def processor_for(self, rows: int) -> float:
        """Return the seconds of the processor."""
        return self._for(rows, lambda probe: probe.processor)

    def memory_for(self, rows: int) -> float:
        """Return the MB; what is held once, or for a sample of the rows, does not grow."""
        large = self.probes[-1]
        if self.is_even or len(self.probes) == 1:  # of all rows: no fewer were tried
            return large.memory
        small = self.probes[-2]
        each = max(ROW_MB, (large.memory - small.memory) / (large.rows - small.rows))
        return large.memory + each * (rows - large.rows)

    def _for(self, rows: int, seconds: Callable[[_Probe], float]) -> float:
        large = self.probes[-1]
        power = 1.0
        if len(self.probes) > 1 and not self.is_even:
            small = self.probes[-2]
            ratio = max(seconds(large), 1e-6) / max(seconds(small), 1e-6)
            power = min(2.0, max(1.0, math.log(ratio) / math.log(large.rows / small.rows)))
        return seconds(large) * float((rows / large.rows) ** power)


def probe_clusters(options: ScoreOptions, samples: int, width: int) -> float:
    """Return the seconds that clustering takes between the two passes of scoring only some samples.

    Parameters
    ----------
    options : ScoreOptions
        As for the stage.
    samples : int
        Of the run that is planned.
    width : int
        Numbers of an embedding.
    """

    def once(rows: int) -> _Probe:
        embeddings = _embeddings(np.random.Generator(np.random.Philox(0)), rows, width)
        count = None if options.cluster_count is None else min(options.cluster_count, rows)
        started, began = time.monotonic(), time.process_time()
        cluster([embeddings], None, rows, count, options.seed, options.threads, SilentProgress())
        return _Probe(rows, time.monotonic() - started, time.process_time() - began, 0.0)

    return _Growth.of(once, samples).seconds_for(samples)


def probe_pick(
    options: PickOptions, samples: int, chosen: int, width: int, sources: int, clusters: int | None = None
) -> Rate:
    """Choose by the method asked for from made-up scores and embeddings of several sizes.

    Where samples are drawn from clusters, two things grow: the number of the clusters, and, with up to the
    square of its size, what it takes to draw from one. So clusters are made by themselves, as many as suit
    the rows, and samples are drawn from clusters as large as those of the pool.

    Parameters
    ----------
    options : PickOptions
        As for the stage. Limits of sources are left out: they take no time.
    samples, chosen : int
        Of the run that is planned.
    width : int
        Numbers of an embedding.
    sources : int
        Number of sources.
    clusters : int, optional
        How many the score stage has made; by default pick makes them where it draws from clusters.
    """
    held = own_memory_mb() or 0.0
    options = dataclasses.replace(options, source_floor=None, source_ceiling=None, scores=None)
    once = partial(_choose, share=chosen / samples, width=width, sources=sources)
    if options.groups == "cluster" and "within" in methods.prepare(options)[0].uses:
        size = samples / (clusters or cluster_count(samples, options.group_count))
        drawing = dataclasses.replace(options, group_count=None, smooth=None)
        draw = partial(once, drawing, of_clusters=size)
        # With skip_duplicates, what is drawn from one is compared with what was drawn from all.
        is_even = options.skip_duplicates is None
        parts = [_Growth.of(draw, samples, is_even=is_even)]
        if clusters is None:
            making = dataclasses.replace(options, within="uniform", skip_duplicates=None)
            parts.append(_Growth.of(partial(once, making), samples))
    else:
        parts = [_Growth.of(partial(once, options), samples)]
    largest = max(part.probes[-1].rows for part in parts)
    return Rate(
        samples,
        sum(part.seconds_for(samples) for part in parts),
        f"choosing from up to {largest:,} made-up samples",
        memory_mb=held + sum(part.memory_for(samples) for part in parts),
        mapped=2e-6 * width,
        made_up=True,
    )


def probe_report(samples: int, chosen: int, width: int) -> Rate:
    """Make the figures of a report on made-up embeddings.

    The page itself is left out: it takes the same for any pool.

    Parameters
    ----------
    samples, chosen : int
        Of the run that is planned.
    width : int
        Numbers of an embedding.
    """
    rows = min(samples, REPORT_ROWS)
    random = np.random.Generator(np.random.Philox(0))
    embeddings = _embeddings(random, rows, width)
    few = max(1, round(chosen * rows / samples))
    embedded = Embedded([embeddings], np.ones(rows, np.bool_), np.arange(few))
    reset_peak_memory()
    started = time.monotonic()
    embedded.map({})
    embedded.coverage()
    embedded.duplicates(DUPLICATE_COSINE, 1)
    return Rate(
        products(rows, few, width),
        time.monotonic() - started,
        f"comparing {rows:,} made-up samples; besides, some seconds for the page and its images, and more "
        "where many samples are near-duplicates",
        memory_mb=peak_memory_mb(),
        made_up=True,
    )


def _choose(
    options: PickOptions,
    rows: int,
    *,
    share: float,
    width: int,
    sources: int,
    of_clusters: float | None = None,
) -> _Probe:
    """Choose a share of some rows; with `of_clusters`, from given clusters of about that size."""
    scored = _scored(options, rows, width, sources)
    # Without the embeddings, which lie in mapped files in a run.
    scores = sum(values.nbytes for values in (scored.necessity, *scored.columns.values())) / 1e6
    if of_clusters is not None:
        scored = dataclasses.replace(
            scored, clusters=_clusters(scored, max(1, round(rows / of_clusters)), options)
        )
    options = dataclasses.replace(
        options,
        budget=Amount.parse(max(1, round(share * rows))),
        # There can be no more groups than rows.
        group_count=None if options.group_count is None else min(options.group_count, rows),
    )
    reset_peak_memory()
    before = peak_memory_mb() or 0.0
    started, began = time.monotonic(), time.process_time()
    methods.choose(scored, options, SilentProgress())
    seconds, processor = time.monotonic() - started, time.process_time() - began
    return _Probe(rows, seconds, processor, scores + (peak_memory_mb() or 0.0) - before)


def _clusters(scored: Scored, count: int, options: PickOptions) -> Labels:
    """Cluster the embeddings as the stage does."""
    assert scored.embeddings is not None
    progress = SilentProgress()
    _, codes = cluster(scored.embeddings, None, len(scored), count, options.seed, options.threads, progress)
    return Labels(codes, range(count))


def _scored(options: PickOptions, rows: int, width: int, sources: int) -> Scored:
    """Make scores and embeddings."""
    random = np.random.Generator(np.random.Philox(options.seed))
    columns: dict[str, NDArray[np.float32]] = {
        need.column: random.random(rows, np.float32) for need in methods.columns(options)
    }
    codes = random.integers(max(1, sources), size=rows).astype(np.uint32)
    names = [str(number) for number in range(max(1, sources))]
    necessity = random.gamma(2.0, size=rows).astype(np.float32)
    embeddings = _embeddings(random, rows, width)
    return Scored(necessity, [embeddings], Labels(codes, names), np.empty(0, np.int64), columns)


def _embeddings(random: np.random.Generator, rows: int, width: int) -> NDArray[np.float16]:
    """Make embeddings in clusters of all sizes."""
    centres = random.standard_normal((max(2, math.isqrt(rows)), width), dtype=np.float32)
    weights = 1 / np.arange(1, len(centres) + 1)
    labels = random.choice(len(centres), rows, p=weights / weights.sum())
    embeddings = np.empty((rows, width), np.float16)
    for start in range(0, rows, 4096):
        block = centres[labels[start : start + 4096]]
        block = block + random.standard_normal(block.shape, dtype=np.float32)
        embeddings[start : start + 4096] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return embeddings

"""Rates: what a unit of a stage's work takes, from the records of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from mllm_selector.metrics import Metrics
from mllm_selector.reporting.overview import products
from mllm_selector.rundir import RunDirectory, StageRecord

__all__ = ["Rate", "Rates", "folder_bytes", "of_run"]

# Times in a training's log are whole seconds: a mean over fewer steps says little.
FEWEST_STEPS = 10


@dataclass(frozen=True)
class Rate:
    """What a stage takes, as measured once on a number of units, and how that grows.

    Attributes
    ----------
    units : float
        How much was measured: samples of the pool (ingest, score, pick), samples seen in training (seed),
        products that the figures of the embeddings take (report).
    seconds : float
        What these units took, `fixed` not counted.
    basis : str
        Where the figures come from, as part of a sentence.
    fixed : float
        Seconds that the stage takes however much there is.
    power : float
        Time grows with this power of the units.
    memory_mb : float or None
        Peak resident memory of the process meanwhile.
    memory_grows : float
        MB for each further unit.
    mapped : float
        MB of mapped files that are read besides, for each unit.
    disk_fixed, disk : float or None
        Bytes that the stage leaves on the disk however much there is, and for each unit.
    made_up : bool
        Whether it was measured on made-up data.
    """

    units: float
    seconds: float
    basis: str
    fixed: float = 0.0
    power: float = 1.0
    memory_mb: float | None = None
    memory_grows: float = 0.0
    mapped: float = 0.0
    disk_fixed: float | None = None
    disk: float | None = None
    made_up: bool = False

    def seconds_for(self, units: float) -> float:
        """Return the seconds for a number of units."""
        return self.fixed + (self.seconds * (units / self.units) ** self.power if units else 0.0)

    def memory_for(self, units: float) -> float | None:
        """Return the peak memory for a number of units, in MB."""
        if self.memory_mb is None:
            return None
        return self.memory_mb + self.memory_grows * max(0.0, units - self.units)

    def disk_for(self, units: float) -> float | None:
        """Return what is left on the disk for a number of units, in bytes."""
        if self.disk is None and self.disk_fixed is None:
            return None
        return (self.disk_fixed or 0.0) + (self.disk or 0.0) * units


@dataclass
class Rates:
    """All that is known before a run.

    Attributes
    ----------
    stages : dict of str to Rate
        What stages take.
    unknown : dict of str to str
        Why that is not known of others.
    input_bytes : float or None
        Bytes of the input for each sample.
    embedding_size : int or None
        Numbers of an embedding.
    export_bytes : float or None
        Size of the scoring graphs, where no record tells.
    readings : int
        Forward passes for each sample that the rate of score was measured with.
    is_drawn : bool
        Whether that rate is one of scoring only some samples.
    """

    stages: dict[str, Rate] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    input_bytes: float | None = None
    embedding_size: int | None = None
    export_bytes: float | None = None
    readings: int = 1
    is_drawn: bool = False

    def add(self, other: Rates) -> None:
        """Take from other rates what is not known yet."""
        if "score" not in self.stages:
            self.readings, self.is_drawn = other.readings, other.is_drawn
        self.stages = other.stages | self.stages
        self.input_bytes = self.input_bytes or other.input_bytes
        self.embedding_size = self.embedding_size or other.embedding_size


def of_run(run: RunDirectory, name: str) -> Rates:
    """Read rates from the records of a run's finished stages.

    Parameters
    ----------
    run : RunDirectory
        With its records loaded.
    name : str
        What to call it.
    """
    rates = Rates()
    done = {stage: record for stage, record in run.stages.items() if record.state == "done"}
    read = {"ingest": _ingest, "seed": _seed, "export": _export, "score": _score, "report": _report}
    for stage, rate_of in read.items():
        if stage in done:
            rate = rate_of(run, done[stage], f"the records of {name}")
            if rate is not None:
                rates.stages[stage] = rate
    if "ingest" in done:
        counts = done["ingest"].counts
        rates.input_bytes = counts["bytes"] / counts["samples"]
    if "score" in done:
        rates.embedding_size = done["score"].counts["embedding_size"]
        options = done["score"].options
        rates.is_drawn = options.get("scored_per_cluster") is not None  # older records say nothing of it
        rates.readings = 1 if rates.is_drawn else 1 + len(Metrics.parse(options["metrics"]).variants)
    return rates


def _ingest(run: RunDirectory, record: StageRecord, basis: str) -> Rate:
    samples = record.counts["samples"]
    size = run.pool.stat().st_size / samples
    return Rate(samples, record.seconds, basis, memory_mb=record.peak_mb, disk=size)


def _seed(run: RunDirectory, record: StageRecord, basis: str) -> Rate | None:
    steps = record.counts.get("steps", 0)
    if not steps:
        return None  # the user's own model: nothing was trained
    seen = steps * record.options["seed_batch_size"]
    seconds = min(record.seconds, _step_seconds(run.seed / "log.jsonl", record.seconds / steps) * steps)
    size = folder_bytes(run.seed)
    fixed = record.seconds - seconds
    return Rate(seen, seconds, basis, fixed=fixed, memory_mb=record.peak_mb, disk_fixed=size)


def _step_seconds(log: Path, otherwise: float) -> float:
    """Return the mean time of a step, from the times in a training's log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    times = [datetime.fromisoformat(line["time"]) for line in lines if line["event"] == "step"]
    if len(times) < FEWEST_STEPS:
        return otherwise
    return (times[-1] - times[0]).total_seconds() / (len(times) - 1)


def _export(run: RunDirectory, record: StageRecord, basis: str) -> Rate:
    size = folder_bytes(run.onnx)
    return Rate(1, 0.0, basis, fixed=record.seconds, memory_mb=record.peak_mb, disk_fixed=size)


def _score(run: RunDirectory, record: StageRecord, basis: str) -> Rate | None:
    counts = record.counts
    share = 1 - counts["resumed"] / counts["parts"]
    if not share:
        return None  # put together from shares: the record's time is not that of scoring
    samples = counts["samples"]
    size = folder_bytes(run.scores) / samples
    return Rate(samples * share, record.seconds, basis, memory_mb=record.peak_mb, disk=size)


def _report(run: RunDirectory, record: StageRecord, basis: str) -> Rate | None:
    seconds = record.counts.get("figures_seconds")
    if seconds is None:
        return None  # older records do not tell what grows with the pool
    size = record.counts["bytes"] + run.report_numbers.stat().st_size
    counts = {stage: run.need(stage).counts for stage in ("score", "pick")}
    units = products(counts["score"]["samples"], counts["pick"]["chosen"], counts["score"]["embedding_size"])
    fixed = record.seconds - seconds
    return Rate(units, seconds, basis, fixed=fixed, memory_mb=record.peak_mb, disk_fixed=size)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

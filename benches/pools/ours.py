"""The same tasks by this package in the process; `tasks` runs its command line as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from checks import of_samples
from mllm_selector.formats import write_subset
from mllm_selector.pipeline import build_options, run_stages
from mllm_selector.pool import Pool, Sample
from mllm_selector.rundir import RunDirectory


def ingest(out: Path, **options: Any) -> dict[str, Any]:
    """Run the ingest stage."""
    run_stages(out / "run", build_options(options, ["ingest"]))
    return {"files": [str(out / "run" / "pool.arrow")]}


def open_and_take(out: Path, pool: str, rows: str) -> dict[str, Any]:
    """Open a pool file and read samples in one call."""
    return opened(pool, lambda mapped: mapped.rows(np.load(rows)))


def open_and_index(out: Path, pool: str, rows: str) -> dict[str, Any]:
    """Do the same a row at a time."""
    numbers = np.load(rows).tolist()
    return opened(pool, lambda mapped: [mapped.sample(row) for row in numbers])


def opened(pool: str, read: Callable[[Pool], list[Sample]]) -> dict[str, Any]:
    started = time.perf_counter()
    mapped = Pool.open(Path(pool))
    open_ms = (time.perf_counter() - started) * 1e3
    started = time.perf_counter()
    samples = read(mapped)
    seconds = time.perf_counter() - started
    return {"open_ms": open_ms, "seconds": seconds, "digest": of_samples([plain(each) for each in samples])}


def plain(sample: Sample) -> dict[str, Any]:
    turns = [{"role": role, "content": content} for role, content in sample.messages]
    return {
        "id": sample.id,
        "messages": turns,
        "images": [{"path": str(image)} for image in sample.images],
    }


def write_back(out: Path, run_dir: str, rows: str) -> dict[str, Any]:
    """Copy the rows in a NumPy file out of a run's pool."""
    subset = out / "subset.json"
    with RunDirectory(Path(run_dir)) as run:
        write_subset(run, np.load(rows), subset)
    return {"subset": str(subset)}

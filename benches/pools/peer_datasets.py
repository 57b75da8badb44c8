"""Hugging Face datasets: `load_dataset`, which writes Arrow files, and rows of such a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset

from checks import of_samples


def ingest(out: Path, pool: str, builder: str) -> dict[str, Any]:
    """Load a file, which leaves the columns as they are."""
    dataset = load_dataset(builder, data_files=pool, split="train", cache_dir=str(out))
    return {"files": [file["filename"] for file in dataset.cache_files]}


def open_and_take(out: Path, pool: str, rows: str) -> dict[str, Any]:
    """Open an Arrow stream file and take rows in one call, as Python objects."""
    numbers = np.load(rows).tolist()
    dataset, opened = opened_dataset(pool)
    started = time.perf_counter()
    columns = dataset[numbers]
    seconds = time.perf_counter() - started
    samples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {"open_ms": opened, "seconds": seconds, "digest": of_samples(samples)}


def open_and_index(out: Path, pool: str, rows: str) -> dict[str, Any]:
    """Do the same a row at a time."""
    numbers = np.load(rows).tolist()
    dataset, opened = opened_dataset(pool)
    started = time.perf_counter()
    samples = [dataset[row] for row in numbers]
    return {"open_ms": opened, "seconds": time.perf_counter() - started, "digest": of_samples(samples)}


def opened_dataset(pool: str) -> tuple[Dataset, float]:
    started = time.perf_counter()
    dataset = Dataset.from_file(pool)
    return dataset, (time.perf_counter() - started) * 1e3

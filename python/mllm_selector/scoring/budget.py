"""How much is computed together: measured once for a device and a model, then kept.

A budget doubles until that brings no more speed or no longer fits in the device's memory. What was found is
remembered for the device, in the user's cache folder, and fixed in the run directory before the first part is
written: an interrupted run and all processes that share a run compute the same batches.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm_selector.artifacts import open_arrow, write_json
from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import DeviceMemoryError, PoolError, SampleError
from mllm_selector.families.base import Arrays, Family
from mllm_selector.families.images import load_image
from mllm_selector.locking import locked
from mllm_selector.pool import Pool
from mllm_selector.resources import gpu_name, processor_name
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.groups import group_batches, group_inputs
from mllm_selector.scoring.parts import BATCHES, KEY
from mllm_selector.scoring.shards import EncodedShard, encode_shard

__all__ = ["BudgetMemory", "best_budget", "budget_memory", "find_budget", "settle_budget"]

DEFAULT = BatchBudget(tokens=4096, image_rows=4096)
"""For pools that are too small to measure on."""

SMALLEST_TOKENS = 1024
MOST_TOKENS = 1 << 18
MOST_IMAGES = 64
GAIN = 1.05
"""A budget must be faster than the best smaller one by this factor; a smaller one leaves more memory."""
MEASURED_SHARE = 0.005
"""No budget is tried that is a larger share of the pool, so that measuring costs a few percent at most."""
PROBE_ROWS = 512
"""Samples of the pool's start that are measured on."""


def settle_budget(run: RunDirectory, options: ScoreOptions, find: Callable[[], BatchBudget]) -> BatchBudget:
    """Return the budget of a run: the options', else the run's own, else what is found now and kept.

    Parameters
    ----------
    run : RunDirectory
        Its ``batches.json`` holds what was found before. A lock beside it lets one process of several find
        the budget while the others wait.
    options : ScoreOptions
        The budgets, where they are given.
    find : callable
        Finds one where the device is, see `best_budget`.
    """
    tokens, image_rows = options.token_budget.value, options.image_budget.value
    if tokens is not None and image_rows is not None:
        return BatchBudget(tokens, image_rows)
    key = run.stages["score"].key
    with locked(run.batches.with_name("batches.lock")):
        found = _read(run.batches, key) or _of_parts(run, key)
        if found is None:
            found = find()
            write_json(run.batches, {"key": key, **asdict(found)})
    return BatchBudget(tokens or found.tokens, image_rows or found.image_rows)


def best_budget(
    run: RunDirectory, family: Family, pool: Pool, engine: Engine, options: ScoreOptions
) -> BatchBudget:
    """Return the budget that is remembered for the device and the model, else one that is measured now.

    Parameters
    ----------
    run : RunDirectory
        Says which model was exported; nothing is written there.
    family, pool, engine, options
        See `find_budget`.
    """
    memory = budget_memory(run, engine, options)
    found = memory.recall()
    if found is None:
        found = find_budget(family, pool, engine, options)
        if found is not None:
            memory.remember(found)
    return found or DEFAULT


def budget_memory(run: RunDirectory, engine: Engine, options: ScoreOptions) -> BudgetMemory:
    """Return what is remembered for an engine's device, a run's exported model, and what is asked of it."""
    name = gpu_name() if "cuda" in engine.provider.lower() else processor_name()
    return BudgetMemory(f"{engine.provider} on {name}", run.need("export").key, options.metrics.of_scorer)


def _read(path: Path, key: str) -> BatchBudget | None:
    """Read a run's budget; None if there is none of this key. Parts of another budget will be refused."""
    try:
        known = json.loads(path.read_text())
        return BatchBudget(known["tokens"], known["image_rows"]) if known["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _of_parts(run: RunDirectory, key: str) -> BatchBudget | None:
    """Return the budget that parts of this run were written with, should the run's own note be lost."""
    for part in itertools.chain(run.scores.glob("*-*.arrow"), run.shards.glob("*/*-*.arrow")):
        try:
            metadata = open_arrow(part).schema.metadata or {}
            if metadata[KEY.encode()] == key.encode():
                return BatchBudget(**json.loads(metadata[BATCHES.encode()]))
        except (PoolError, KeyError, ValueError, TypeError):
            continue
    return None


class BudgetMemory:
    """Budgets found before, by device and model, in a file of the user's cache folder.

    Without a folder that can be written, nothing is remembered, and budgets are measured again.

    Parameters
    ----------
    device, model : str
        What identifies the device, and the exported model with its precision.
    outputs : sequence of str
        What is asked of the scorer: entropies take memory and time of their own.
    """

    def __init__(self, device: str, model: str, outputs: Sequence[str]) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = cache / "mllm-selector" / "batches.json"
        self.device = device
        self._key = hashlib.sha256(json.dumps([device, model, *outputs]).encode()).hexdigest()

    def recall(self) -> BatchBudget | None:
        """Return the remembered budget."""
        try:
            return BatchBudget(**self._all()[self._key])
        except (KeyError, TypeError):
            return None

    def remember(self, budget: BatchBudget) -> None:
        """Remember a budget."""
        try:
            write_json(self.path, {**self._all(), self._key: asdict(budget)})
        except OSError:
            return

    def _all(self) -> dict[str, dict[str, int]]:
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def find_budget(family: Family, pool: Pool, engine: Engine, options: ScoreOptions) -> BatchBudget | None:
    """Measure how much should be computed together.

    Parameters
    ----------
    family : Family
        The model's family.
    pool : Pool
        Its first samples are measured on.
    engine : Engine
        What computes.
    options : ScoreOptions
        Their limits decide which samples are scored.

    Returns
    -------
    BatchBudget or None
        None if the pool is too small to measure on.
    """
    shard = encode_shard(pool, range(min(PROBE_ROWS, len(pool))), family, options)
    if not shard.samples:
        return None
    tokens = sum(len(sample) for sample in shard.samples.values())
    most = min(MOST_TOKENS, tokens, int(MEASURED_SHARE * tokens * len(pool) / len(shard.samples)))
    if most < 2 * SMALLEST_TOKENS:
        return None
    image_rows = _find_image_rows(family, pool, engine, shard)
    found = _find_tokens(family, engine, shard, most, options.metrics.of_scorer)
    # Where not even the smallest fits, batches are halved from the default on.
    return BatchBudget(found or DEFAULT.tokens, image_rows or DEFAULT.image_rows)


def _find_image_rows(family: Family, pool: Pool, engine: Engine, shard: EncodedShard) -> int:
    picture = _largest_picture(family, pool, shard)
    if picture is None:
        return DEFAULT.image_rows
    rows, prepared = picture

    def images_per_second(images: int) -> float:
        engine.reserve(images * rows)
        inputs = family.vision_inputs([prepared] * images)
        return images / _seconds(lambda: engine.see(inputs, 0, images * rows))

    return rows * _grow((1 << power for power in range(MOST_IMAGES.bit_length())), images_per_second)


def _largest_picture(family: Family, pool: Pool, shard: EncodedShard) -> tuple[int, Arrays] | None:
    """Prepare the image with the most feature rows, or the next largest that can be read."""
    refs = [
        (rows, ref)
        for row, sample in shard.samples.items()
        for rows, ref in zip(sample.image_tokens, shard.images[row], strict=True)
    ]
    for rows, ref in sorted(refs, key=lambda each: -each[0]):
        try:
            return rows, family.prepare(load_image(pool.sample(ref.row).images[ref.place]), rows)
        except SampleError:
            continue
    return None


def _find_tokens(
    family: Family, engine: Engine, shard: EncodedShard, most: int, outputs: Sequence[str]
) -> int:
    longest_sample = max(map(len, shard.samples.values()))
    # What features hold does not change the time, so all images lie in the same rows.
    engine.reserve(max([1, *(count for sample in shard.samples.values() for count in sample.image_tokens)]))
    starts: dict[Hashable, int] = {ref.key: 0 for refs in shard.images.values() for ref in refs}

    def tokens_per_second(budget: int) -> float:
        multiple = engine.length_multiple
        batches = group_batches(shard, budget, shares=family.shares_prefixes, multiple=multiple)
        middle = batches[len(batches) // 2]
        # What takes the most memory.
        engine.read(group_inputs(family, batches[0], starts, "all", multiple), outputs)
        inputs = group_inputs(family, middle, starts, "all", multiple)
        return sum(group.tokens for group in middle) / _seconds(lambda: engine.read(inputs, outputs))

    # From a budget on that holds the longest sample: below, doubling it would not double the batches.
    smallest = max(SMALLEST_TOKENS, 1 << (longest_sample - 1).bit_length())
    budgets = itertools.takewhile(lambda budget: budget <= most, (smallest << n for n in itertools.count()))
    return _grow(budgets, tokens_per_second)


def _grow(sizes: Iterable[int], speed: Callable[[int], float]) -> int:
    """Return the last size before one that is not faster or does not fit; 0 if the first does not fit."""
    best, fastest = 0, 0.0
    for size in sizes:
        try:
            reached = speed(size)
        except DeviceMemoryError:
            break
        if reached < GAIN * fastest:
            break
        best, fastest = size, reached
    return best


def _seconds(compute: Callable[[], Any]) -> float:
    """Time the better of two runs, after one that allocates."""
    compute()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        compute()
        times.append(time.perf_counter() - started)
    return min(times)

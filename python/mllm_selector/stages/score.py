"""Score every sample of the pool: one forward pass, written shard by shard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_selector import families
from mllm_selector.artifacts import write_arrow, write_json
from mllm_selector.checksums import Checksums
from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import RunDirectoryError
from mllm_selector.families.base import Family
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import budget_memory, settle_budget
from mllm_selector.scoring.loading import ahead
from mllm_selector.scoring.merging import CHECKSUMS, DONE, gather_parts, held_shard
from mllm_selector.scoring.opening import open_engine
from mllm_selector.scoring.parts import (
    check_origin,
    check_scored,
    count_parts,
    merged_schema,
    missing_parts,
    part_rows,
    part_schema,
    part_table,
)
from mllm_selector.scoring.scorer import ShardScorer, Work
from mllm_selector.scoring.shards import encode_shard

__all__ = ["run"]


def run(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Write ``scores/part-00000.arrow`` and so on, a part for each shard of the pool.

    A part that is there and whole is not scored again, so an interrupted run goes on where it stopped; a
    damaged one is. Samples that cannot be scored get a reason, NaN as necessity and an embedding of zeros.

    Parameters
    ----------
    run : RunDirectory
        Its ingest, seed and export stages are done; its own record holds the key that marks the parts.
    options : ScoreOptions
        Device, batch size, limits. With ``shard`` only a share of the parts is scored, into a folder of its
        own; with ``merge`` nothing is scored, and these folders are put together.
    progress : Progress
        What is reported to, with samples and tokens per second.

    Returns
    -------
    dict
        ``samples``, ``scored``, ``set_aside`` (number by reason code), ``answer_tokens``,
        ``images_encoded``, ``rescored`` (samples that needed float32 for a finite score), ``parts``,
        ``resumed`` (parts that an earlier run had finished), ``embedding_size``, ``provider``,
        ``image_backend``, ``token_budget``, ``image_budget``, ``idle_share`` (of the device's time in this
        process) and ``halved_batches`` (those that did not fit in its memory). After ``merge``,
        ``shards`` has what differs between processes.

    Raises
    ------
    ScoreError
        If the device cannot be used, or more than half of the pool cannot be scored; the parts are kept.
    RunDirectoryError
        If the scores folder holds parts of another run.
    MissingPackageError
        If a package of the ``[cpu]`` or ``[gpu]`` extra is missing.
    """
    run.need("export")
    if options.merge:
        return _merge(run, options, progress)
    if options.shard is not None:
        with held_shard(run, options.shard) as folder:
            counts = _score(run, options, progress, folder, Checksums(folder / CHECKSUMS))
            write_json(folder / DONE, {"shard": str(options.shard), **counts})
            return counts
    if any(run.shards.glob("*-of-*")):
        msg = (
            f"{run.path} is being scored by processes with --shard; when they are done, run 'mllm-selector "
            f"score --merge', or delete {run.shards} to score it all here"
        )
        raise RunDirectoryError(msg)
    return _score(run, options, progress, run.scores, run.checksums)


def _score(
    run: RunDirectory, options: ScoreOptions, progress: Progress, folder: Path, checksums: Checksums
) -> dict[str, Any]:
    """Score this process's share of the parts into a folder."""
    trust = bool(run.need("seed").options.get("trust_remote_code", False))
    pool = Pool.of(run)
    family = families.load(run.onnx / "processor", trust_remote_code=trust)
    engine = open_engine(run, family, options.device, options.threads, progress.note)
    budget = settle_budget(run, family, pool, engine, options)
    schema = part_schema(engine.embedding_size, run.stages["score"].key, budget)
    parts = _share(run, pool, options, folder)
    check_origin(run.shards.glob("*/part-*.arrow"), schema)
    todo = missing_parts(parts, schema, checksums, progress.note)

    total = sum(map(len, parts.values()))
    finished = total - sum(len(parts[part]) for part in todo)
    progress.start("score", total=total, done=finished)
    # Pillow only warns of pictures up to twice its limit; here they are as unreadable as larger ones.
    with (
        warnings.catch_warnings(),
        ShardScorer(family, pool, engine, budget, options.workers, _exact(run, family, options)) as scorer,
        ThreadPoolExecutor(1, thread_name_prefix="encode") as thread,
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        meter = _Meter(progress, scorer.work, finished)
        plans = (scorer.plan(encode_shard(pool, parts[part], family, options)) for part in todo)
        for part, planned in zip(todo, ahead(plans, thread, 1), strict=True):
            meter.count(len(planned.shard.reasons), 0)
            write_arrow(part, part_table(scorer.score(planned, meter.count), schema))
            checksums.add(part)

    if scorer.work.splits:
        progress.note(
            f"{scorer.work.splits:,} batches did not fit in memory and were halved; lower budgets than "
            f"--token-budget {budget.tokens} --image-budget {budget.image_rows} save the vain attempts"
        )
        budget_memory(run, engine).remember(BatchBudget(budget.tokens // 2, budget.image_rows // 2))
    counts = count_parts(list(parts))
    if options.shard is None:
        check_scored(list(parts), counts)
    speed = f"; {meter.rate:,.1f} samples/s with {engine.provider}, idle {meter.idle:.1%}" if todo else ""
    progress.finish(_summary(counts) + speed)
    return {
        **counts,
        "parts": len(parts),
        "resumed": len(parts) - len(todo),
        "embedding_size": engine.embedding_size,
        "provider": engine.provider,
        "image_backend": family.image_backend,
        "token_budget": budget.tokens,
        "image_budget": budget.image_rows,
        "idle_share": round(meter.idle, 4) if todo else None,
        "halved_batches": scorer.work.splits,
    }


def _merge(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Put together what processes with ``--shard`` have scored; counts as if one process had."""
    pool = Pool.of(run)
    rows = part_rows(len(pool), options.shard_size)
    parts = {run.score_part(index): each for index, each in enumerate(rows)}
    progress.start("score", total=len(pool))
    shards = gather_parts(run, list(parts))
    schema = merged_schema(next(iter(parts)), run.stages["score"].key)
    damaged = missing_parts(parts, schema, run.checksums, progress.note)
    if damaged:
        msg = f"{damaged[0]} is not whole; delete it and its checksums, and score its shard again"
        raise RunDirectoryError(msg)
    counts = count_parts(list(parts))
    check_scored(list(parts), counts)
    progress.finish(_summary(counts))
    return {
        **counts,
        "parts": len(parts),
        "resumed": len(parts),
        "embedding_size": schema.field("embedding").type.list_size,
        "shards": shards,
    }


def _share(run: RunDirectory, pool: Pool, options: ScoreOptions, folder: Path) -> dict[Path, range]:
    """Return this process's parts and their rows; a shard leaves out what the whole run has scored before."""
    rows = part_rows(len(pool), options.shard_size)
    if options.shard is None:
        return {run.score_part(index): each for index, each in enumerate(rows)}
    return {
        folder / run.score_part(index).name: each
        for index, each in enumerate(rows)
        if options.shard.takes(index) and not run.score_part(index).exists()
    }


def _exact(run: RunDirectory, family: Family, options: ScoreOptions) -> Callable[[], Engine] | None:
    """Return what opens the engine in float32; None if scoring is in float32 anyway."""
    if run.need("export").options.get("precision", "float32") == "float32":
        return None
    return partial(open_engine, run, family, options.device, options.threads, precision="float32")


def _summary(counts: dict[str, Any]) -> str:
    aside = counts["samples"] - counts["scored"]
    return f"{counts['scored']:,} samples scored, {aside:,} set aside"


class _Meter:
    """Reports progress with the speed of this process, finished parts of earlier ones left out."""

    def __init__(self, progress: Progress, work: Work, finished: int) -> None:
        self._progress = progress
        self._work = work
        self._finished = finished
        self._samples = self._tokens = 0
        self._started = time.monotonic()

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self._samples / self._seconds

    @property
    def idle(self) -> float:
        """Share of the time in which the device waited for work."""
        return max(0.0, 1 - self._work.busy_seconds / self._seconds)

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def count(self, samples: int, tokens: int) -> None:
        """Add samples and tokens that are done."""
        self._samples += samples
        self._tokens += tokens
        speed: dict[str, float | str] = {
            "samples/s": self.rate,
            "tokens/s": self._tokens / self._seconds,
            "idle": f"{self.idle:.0%}",
        }
        self._progress.update(self._finished + self._samples, **speed)

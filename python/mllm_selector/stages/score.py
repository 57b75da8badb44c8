"""Score every sample of the pool: one forward pass, written shard by shard."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable, open_arrow, score_schema, write_arrow
from mllm_selector.config import ScoreOptions
from mllm_selector.errors import PoolError, RunDirectoryError, ScoreError
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import budget_memory, settle_budget
from mllm_selector.scoring.loading import ahead
from mllm_selector.scoring.opening import open_engine
from mllm_selector.scoring.scorer import ShardScorer, Work
from mllm_selector.scoring.shards import ShardScores, encode_shard

__all__ = ["run"]

KEY = "mllm_selector.key"
"""Schema metadata of a part: the key of the score stage that wrote it."""

BATCHES = "mllm_selector.batches"
"""Schema metadata of a part: the budget of its batches, as JSON."""

WORK = "mllm_selector.work"
"""Schema metadata of a part: what its scores took, as JSON."""


def run(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Write ``scores/part-00000.arrow`` and so on, a part for each shard of the pool.

    A part that is there and whole is not scored again, so an interrupted run goes on where it stopped; a
    damaged one is. Samples that cannot be scored get a reason, NaN as necessity and an embedding of zeros.

    Parameters
    ----------
    run : RunDirectory
        Its ingest, seed and export stages are done; its own record holds the key that marks the parts.
    options : ScoreOptions
        Device, batch size, limits.
    progress : Progress
        What is reported to, with samples and tokens per second.

    Returns
    -------
    dict
        ``samples``, ``scored``, ``set_aside`` (number by reason code), ``answer_tokens``,
        ``images_encoded``, ``rescored`` (samples that needed float32 for a finite score), ``parts``,
        ``resumed`` (parts that an earlier run had finished), ``embedding_size``, ``provider``,
        ``image_backend``, ``token_budget``, ``image_budget``, ``idle_share`` (of the device's time in this
        process) and ``halved_batches`` (those that did not fit in its memory).

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
    trust = bool(run.need("seed").options.get("trust_remote_code", False))
    pool = Pool.of(run)
    family = families.load(run.onnx / "processor", trust_remote_code=trust)
    engine = open_engine(run, family, options.device, options.threads, progress.note)
    half = run.need("export").options.get("precision", "float32") != "float32"
    budget = settle_budget(run, family, pool, engine, options)
    schema = score_schema(
        engine.embedding_size, {KEY: run.stages["score"].key, BATCHES: json.dumps(asdict(budget))}
    )
    starts = range(0, len(pool), options.shard_size)
    shards = [range(start, min(start + options.shard_size, len(pool))) for start in starts]
    parts = [run.score_part(index) for index in range(len(shards))]
    todo = _todo(run, parts, shards, schema, progress.note)

    exact = partial(open_engine, run, family, options.device, options.threads, precision="float32")
    progress.start("score", total=len(pool))
    # Pillow only warns of pictures up to twice its limit; here they are as unreadable as larger ones.
    with (
        warnings.catch_warnings(),
        ShardScorer(family, pool, engine, budget, options.workers, exact if half else None) as scorer,
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        meter = _Meter(progress, scorer.work, finished=len(pool) - sum(len(shards[index]) for index in todo))
        plans = (scorer.plan(encode_shard(pool, shards[index], family, options)) for index in todo)
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
            for index, planned in zip(todo, ahead(plans, thread, 1), strict=True):
                meter.count(len(planned.shard.reasons), 0)
                write_arrow(parts[index], _table(scorer.score(planned, meter.count), schema))
                run.checksums.add(parts[index])

    if scorer.work.splits:
        progress.note(
            f"{scorer.work.splits:,} batches did not fit in memory and were halved; lower budgets than "
            f"--token-budget {budget.tokens} --image-budget {budget.image_rows} save the vain attempts"
        )
        budget_memory(run, engine).remember(BatchBudget(budget.tokens // 2, budget.image_rows // 2))
    counts = _counts(run.scores)
    aside = sum(counts["set_aside"].values())
    speed = f"; {meter.rate:,.1f} samples/s with {engine.provider}" if todo else ""
    progress.finish(f"{counts['scored']:,} samples scored, {aside:,} set aside{speed}")
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


def _todo(
    run: RunDirectory,
    parts: Sequence[Path],
    shards: Sequence[range],
    schema: pa.Schema,
    note: Callable[[str], None],
) -> list[int]:
    """Find the shards that have no whole part of this run yet."""
    foreign = sorted(set(run.scores.glob("part-*.arrow")) - set(parts))
    if foreign:
        raise RunDirectoryError(_another_run(foreign[0]))
    todo = []
    for index, (part, rows) in enumerate(zip(parts, shards, strict=True)):
        if not part.exists():
            todo.append(index)
            continue
        for damage in run.checksums.damages([part]):
            note(f"{damage}; scoring it again")
            todo.append(index)
        if index in todo[-1:]:
            continue
        try:
            table = open_arrow(part)
        except PoolError as error:
            note(f"{error} Scoring it again.")
            todo.append(index)
            continue
        if not table.schema.equals(schema) or _origin(table.schema) != _origin(schema):
            raise RunDirectoryError(_another_run(part))
        if table["row"].to_pylist() != list(rows):
            note(f"{part} does not hold its rows; scoring it again")
            todo.append(index)
    return todo


def _origin(schema: pa.Schema) -> list[bytes | None]:
    """Return what must be the same in all parts of a run."""
    return [(schema.metadata or {}).get(key.encode()) for key in (KEY, BATCHES)]


def _another_run(part: Path) -> str:
    return (
        f"{part} was written with another pool, model or other options; delete {part.parent} to score again, "
        "or use another --run-dir"
    )


def _table(scores: ShardScores, schema: pa.Schema) -> pa.Table:
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(scores.embedding.reshape(-1)), type=schema.field("embedding").type
    )
    columns = [
        pa.array(scores.rows, type=pa.uint64()),
        pa.array(scores.nll_sum),
        pa.array(scores.answer_tokens),
        pa.array(scores.necessity),
        pa.array(scores.reasons, type=pa.utf8()),
        embedding,
    ]
    work = {"images_encoded": scores.images_encoded, "rescored": scores.rescored}
    metadata = {**schema.metadata, WORK: json.dumps(work)}
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata))


def _counts(folder: Path) -> dict[str, Any]:
    """Count over all parts.

    Raises
    ------
    ScoreError
        If more than half of the samples have no score.
    """
    table = ScoreTable.load(folder)
    reasons = table.reasons.drop_null().to_pylist()
    set_aside = Counter(reason.partition(":")[0] for reason in reasons)
    if 2 * len(reasons) > len(table):
        commonest = "; ".join(
            f"{code}: {count:,} (the first: {next(r for r in reasons if r.startswith(code))})"
            for code, count in set_aside.most_common(3)
        )
        msg = (
            f"{len(reasons):,} of {len(table):,} samples cannot be scored, more than half: {commonest}. "
            f"Mend the cause, delete {folder} and run the same command again"
        )
        raise ScoreError(msg)
    work: Counter[str] = Counter()
    for part in folder.glob("part-*.arrow"):
        work.update(json.loads(open_arrow(part).schema.metadata[WORK.encode()]))
    return {
        "samples": len(table),
        "scored": len(table) - len(reasons),
        "set_aside": dict(sorted(set_aside.items())),
        "answer_tokens": int(table.answer_tokens.sum()),
        "images_encoded": work["images_encoded"],
        "rescored": work["rescored"],
    }

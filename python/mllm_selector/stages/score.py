"""Score every sample of the pool: one forward pass, written shard by shard."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable, open_arrow, score_schema, write_arrow
from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import PoolError, RunDirectoryError, ScoreError
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.shards import EncodedShard, ShardScorer, ShardScores, encode_shard

__all__ = ["run"]

KEY = "mllm_selector.key"
"""Schema metadata of a part: the key of the score stage that wrote it."""


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
        ``samples``, ``scored``, ``set_aside`` (number by reason code), ``answer_tokens``, ``parts``,
        ``resumed`` (parts that an earlier run had finished), ``embedding_size``, ``provider`` and
        ``image_backend``.

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
    engine = Engine(run.onnx, options.device, options.threads, progress.note)
    schema = score_schema(engine.embedding_size, {KEY: run.stages["score"].key})
    starts = range(0, len(pool), options.shard_size)
    shards = [range(start, min(start + options.shard_size, len(pool))) for start in starts]
    parts = [run.score_part(index) for index in range(len(shards))]
    todo = _todo(run, parts, shards, schema, progress.note)

    progress.start("score", total=len(pool))
    meter = _Meter(progress, finished=len(pool) - sum(len(shards[index]) for index in todo))
    encoded = _one_ahead(lambda index: encode_shard(pool, shards[index], family, options), todo)
    # Pillow only warns of pictures up to twice its limit; here they are as unreadable as larger ones.
    with warnings.catch_warnings(), ShardScorer(family, pool, engine, options) as scorer:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, shard in zip(todo, encoded, strict=True):
            meter.count(len(shard.reasons), 0)
            write_arrow(parts[index], _table(scorer.score(shard, meter.count), schema))
            run.checksums.add(parts[index])

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
    }


class _Meter:
    """Reports progress with the speed of this run, finished parts of earlier ones left out."""

    def __init__(self, progress: Progress, finished: int) -> None:
        self._progress = progress
        self._finished = finished
        self._samples = self._tokens = 0
        self._started = time.monotonic()

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self._samples / self._seconds

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def count(self, samples: int, tokens: int) -> None:
        """Add samples and tokens that are done."""
        self._samples += samples
        self._tokens += tokens
        speed = {"samples/s": self.rate, "tokens/s": self._tokens / self._seconds}
        self._progress.update(self._finished + self._samples, **speed)


def _one_ahead(encode: Callable[[int], EncodedShard], todo: Sequence[int]) -> Iterator[EncodedShard]:
    """Encode each shard while the one before it is scored."""
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
        following = thread.submit(encode, todo[0]) if todo else None
        for index in todo[1:]:
            assert following is not None
            shard, following = following.result(), thread.submit(encode, index)
            yield shard
        if following is not None:
            yield following.result()


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
        if not table.schema.equals(schema, check_metadata=True):
            raise RunDirectoryError(_another_run(part))
        if table["row"].to_pylist() != list(rows):
            note(f"{part} does not hold its rows; scoring it again")
            todo.append(index)
    return todo


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
    return pa.Table.from_arrays(columns, schema=schema)


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
    return {
        "samples": len(table),
        "scored": len(table) - len(reasons),
        "set_aside": dict(sorted(set_aside.items())),
        "answer_tokens": int(table.answer_tokens.sum()),
    }

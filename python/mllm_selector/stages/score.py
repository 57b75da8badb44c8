"""Score every sample of the pool: a forward pass for each form it is read in, written shard by shard."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from PIL import Image

from mllm_selector import families
from mllm_selector.artifacts import (
    EXAMPLE_PARTS,
    PARTS,
    ScoreTable,
    example_schema,
    open_arrow,
    score_schema,
    write_arrow,
)
from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import PoolError, RunDirectoryError, ScoreError, UsageError
from mllm_selector.families.base import Family
from mllm_selector.metrics import METRICS, NLL, Variant
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.neighbours import nearest_samples
from mllm_selector.scoring.projection import Projection, random_rows
from mllm_selector.scoring.shards import EncodedShard, ShardScorer, ShardScores, encode_shard
from mllm_selector.scoring.tables import example_table, score_table

__all__ = ["run"]

KEY = "mllm_selector.key"
"""Schema metadata of a part: the key of the score stage that wrote it."""

PCA_SAMPLES = 4096
"""Samples that principal components are fitted to, at least (8 for each component)."""


def run(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Write ``scores/part-00000.arrow`` and so on, a part for each shard of the pool.

    A part that is there and whole is not scored again, so an interrupted run goes on where it stopped; a
    damaged one is. Samples that cannot be scored get a reason, NaN as necessity and an embedding of zeros.
    Metrics that need an example in front of each sample take a second sweep, since the examples are known
    when the whole pool has embeddings: ``scores/examples.arrow``, then ``scores/example-00000.arrow`` ...

    Parameters
    ----------
    run : RunDirectory
        Its ingest, seed and export stages are done; its own record holds the key that marks the parts.
    options : ScoreOptions
        Metrics, embeddings, device, batch size, limits.
    progress : Progress
        What is reported to, with samples and tokens per second.

    Returns
    -------
    dict
        ``samples``, ``scored``, ``set_aside`` (number by reason code), ``missing`` (for each metric that some
        scored samples have not, the numbers by reason code), ``answer_tokens``, ``parts``, ``resumed`` (parts
        that an earlier run had finished), ``embedding_size``, ``embedded_whole`` (with ``--embedding image``,
        samples without images), ``provider`` and ``image_backend``.

    Raises
    ------
    UsageError
        If embeddings are to be projected to more numbers than they have.
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
    scoring = _Scoring(run, pool, family, engine, options, progress)
    # Pillow only warns of pictures up to twice its limit; here they are as unreadable as larger ones.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        scoring.first_sweep()
        if Variant.ONE_SHOT in options.metrics.variants:
            scoring.example_sweep()

    counts = _counts(run.scores)
    aside = sum(counts["set_aside"].values())
    speed = f"; {scoring.rate:,.1f} samples/s with {engine.provider}" if scoring.rate else ""
    progress.finish(f"{counts['scored']:,} samples scored, {aside:,} set aside{speed}")
    return {
        **counts,
        "parts": scoring.parts,
        "resumed": scoring.parts - scoring.written,
        "embedding_size": scoring.embedding_size,
        **_embedded_whole(pool, options),
        "provider": engine.provider,
        "image_backend": family.image_backend,
    }


class _Scoring:
    """The sweeps over the pool."""

    def __init__(
        self,
        run: RunDirectory,
        pool: Pool,
        family: Family,
        engine: Engine,
        options: ScoreOptions,
        progress: Progress,
    ) -> None:
        self._run, self._pool, self._family, self._engine = run, pool, family, engine
        self._options, self._progress = options, progress
        self._key = run.stages["score"].key
        starts = range(0, len(pool), options.shard_size)
        self._shards = [range(start, min(start + options.shard_size, len(pool))) for start in starts]
        self.parts = self.written = 0
        self.rate = 0.0
        self.embedding_size = options.embedding_size or engine.embedding_size
        if self.embedding_size > engine.embedding_size:
            msg = f"--embedding-size: {self.embedding_size} is more than the model's {engine.embedding_size}"
            raise UsageError(msg)

    def first_sweep(self) -> None:
        """Score every sample as it is, and in the forms that need nothing of other samples."""
        metrics = self._options.metrics
        variants = tuple(variant for variant in metrics.variants if variant is not Variant.ONE_SHOT)
        names = metrics.of((Variant.FULL, *variants))
        schema = score_schema(self.embedding_size, names, {KEY: self._key})
        paths = [self._run.score_part(index) for index in range(len(self._shards))]
        todo = _todo(self._run, PARTS, paths, self._shards, schema, self._progress.note)
        self._sweep(
            paths,
            todo,
            self._projection() if todo else None,
            lambda rows: encode_shard(
                self._pool, rows, self._family, self._options, (Variant.FULL, *variants)
            ),
            lambda rows, scores: score_table(rows, scores, metrics, schema),
        )

    def example_sweep(self) -> None:
        """Score every sample once more, after its nearest other sample."""
        (name,) = self._options.metrics.of([Variant.ONE_SHOT])
        schema = example_schema(name, {KEY: self._key})
        paths = [self._run.example_part(index) for index in range(len(self._shards))]
        todo = _todo(self._run, EXAMPLE_PARTS, paths, self._shards, schema, self._progress.note)
        if not todo:
            self.parts += len(paths)
            return
        scores = ScoreTable.load(self._run.scores, with_examples=False)
        self._progress.start("score", total=len(self._pool), unit="neighbours")
        examples = nearest_samples(
            self._run.scores / "examples.arrow",
            self._key,
            scores,
            self._options.threads,
            lambda done, total: self._progress.update(done),
        )
        mean_nll = scores.column(NLL)
        scored = ~np.isnan(mean_nll)

        def encode(rows: Sequence[int]) -> EncodedShard:
            rows = [row for row in rows if scored[row]]
            return encode_shard(self._pool, rows, self._family, self._options, (Variant.ONE_SHOT,), examples)

        self._sweep(
            paths,
            todo,
            None,
            encode,
            lambda rows, shard: example_table(
                rows, shard, mean_nll[rows.start : rows.stop], METRICS[name], schema
            ),
        )

    def _sweep(
        self,
        paths: Sequence[Path],
        todo: Sequence[int],
        project: Projection | None,
        encode: Callable[[range], EncodedShard],
        table: Callable[[range, ShardScores], pa.Table],
    ) -> None:
        self._progress.start("score", total=len(self._pool))
        meter = _Meter(self._progress, len(self._pool) - sum(len(self._shards[index]) for index in todo))
        shards = _one_ahead(lambda index: encode(self._shards[index]), todo)
        with ShardScorer(self._family, self._pool, self._engine, self._options, project) as scorer:
            for index, shard in zip(todo, shards, strict=True):
                rows = self._shards[index]
                meter.begin(len(rows), len(shard.samples))
                write_arrow(paths[index], table(rows, scorer.score(shard, meter.count)))
                self._run.checksums.add(paths[index])
                meter.end()
        self.parts += len(paths)
        self.written += len(todo)
        self.rate = meter.rate if todo else self.rate

    def _projection(self) -> Projection | None:
        """Make the projection of the embeddings, or read the one that this run has made before."""
        size, options = self._options.embedding_size, self._options
        if size is None:
            return None
        path = self._run.scores / "projection.arrow"
        projection = Projection.load(path, self._key)
        if projection is not None:
            return projection
        if options.projection == "random":
            projection = Projection.random(size, self._engine.embedding_size, options.seed)
        else:
            projection = Projection.principal(size, self._sampled_embeddings(size))
        projection.save(path, self._key)
        return projection

    def _sampled_embeddings(self, size: int) -> NDArray[np.float32]:
        """Score a part of the pool for its embeddings only."""
        rows = random_rows(max(PCA_SAMPLES, 8 * size), len(self._pool), self._options.seed)
        self._progress.start("score", total=len(rows))
        shard = encode_shard(self._pool, rows, self._family, self._options)
        meter = _Meter(self._progress, 0)
        meter.begin(len(rows), len(shard.samples))
        with ShardScorer(self._family, self._pool, self._engine, self._options) as scorer:
            scores = scorer.score(shard, meter.count)
        if not scores.embeddings:
            msg = f"none of {len(rows)} samples can be scored, so there is nothing to fit --projection pca to"
            raise ScoreError(msg)
        return np.stack([scores.embeddings[row] for row in sorted(scores.embeddings)]).astype(np.float32)


class _Meter:
    """Reports progress with the speed of this run, finished parts of earlier ones left out."""

    def __init__(self, progress: Progress, finished: int) -> None:
        self._progress = progress
        self._finished = finished
        self._samples = self._tokens = 0
        self._shard = self._readings = self._read = 0
        self._started = time.monotonic()

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self._samples / self._seconds

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def begin(self, samples: int, readings: int) -> None:
        """Begin a shard: a sample counts as done when its share of the readings is."""
        self._shard, self._readings, self._read = samples, readings, 0

    def count(self, readings: int, tokens: int) -> None:
        """Add readings and tokens that are done."""
        self._read += readings
        self._tokens += tokens
        self._report(self._samples + self._shard * self._read // self._readings)

    def end(self) -> None:
        """End a shard."""
        self._samples += self._shard
        self._report(self._samples)

    def _report(self, samples: int) -> None:
        speed = {"samples/s": samples / self._seconds, "tokens/s": self._tokens / self._seconds}
        self._progress.update(self._finished + samples, **speed)


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
    pattern: str,
    parts: Sequence[Path],
    shards: Sequence[range],
    schema: pa.Schema,
    note: Callable[[str], None],
) -> list[int]:
    """Find the shards that have no whole part of this run yet."""
    foreign = sorted(set(run.scores.glob(pattern)) - set(parts))
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


def _embedded_whole(pool: Pool, options: ScoreOptions) -> dict[str, int]:
    """Count the samples whose embedding is not of image positions, though those were asked for."""
    if options.embedding != "image":
        return {}
    lengths = pa.compute.list_value_length(pool.column("images"))
    return {"embedded_whole": int(pa.compute.sum(pa.compute.equal(lengths, 0)).as_py() or 0)}


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
        "missing": table.missing,
        "answer_tokens": int(table.answer_tokens.sum()),
    }

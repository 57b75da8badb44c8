"""Score every sample of the pool: a forward pass for each form it is read in, written shard by shard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable, example_schema, score_schema, write_arrow, write_json
from mllm_selector.checksums import Checksums
from mllm_selector.config import ScoreOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import RunDirectoryError
from mllm_selector.families.base import Family
from mllm_selector.metrics import METRICS, NLL, Variant
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import budget_memory, settle_budget
from mllm_selector.scoring.loading import ahead
from mllm_selector.scoring.merging import CHECKSUMS, DONE, gather_parts, held_shard
from mllm_selector.scoring.neighbours import nearest_samples
from mllm_selector.scoring.opening import open_engine
from mllm_selector.scoring.parts import (
    check_origin,
    check_scored,
    count_parts,
    merged_schema,
    missing_parts,
    part_metadata,
    part_rows,
)
from mllm_selector.scoring.projection import settle_projection
from mllm_selector.scoring.scorer import ShardScorer, Wanted, Work
from mllm_selector.scoring.shards import EncodedShard, ShardScores, encode_shard
from mllm_selector.scoring.tables import example_table, score_table

__all__ = ["run"]


def run(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Write ``scores/part-00000.arrow`` and so on, a part for each shard of the pool.

    A part that is there and whole is not scored again, so an interrupted run goes on where it stopped; a
    damaged one is. Samples that cannot be scored get a reason, NaN as metrics and an embedding of zeros.
    Metrics that need an example in front of each sample take a second sweep, since the examples are known
    when the whole pool has embeddings: ``scores/examples.arrow``, then ``scores/example-00000.arrow`` ...

    Parameters
    ----------
    run : RunDirectory
        Its ingest, seed and export stages are done; its own record holds the key that marks the parts.
    options : ScoreOptions
        Metrics, embeddings, device, batch size, limits. With ``shard`` only a share of the parts is scored,
        into a folder of its own; with ``merge`` these folders are put together, and nothing is scored but the
        second sweep.
    progress : Progress
        What is reported to, with samples and tokens per second.

    Returns
    -------
    dict
        ``samples``, ``scored``, ``set_aside`` (number by reason code), ``missing`` (for each metric that some
        scored samples have not, the numbers by reason code), ``answer_tokens``, ``images_encoded``,
        ``rescored`` (readings that needed float32 for a finite score), ``parts``, ``resumed`` (parts that an
        earlier run had finished), ``embedding_size``, ``embedded_whole`` (with ``--embedding image``, samples
        without images), ``provider``, ``image_backend``, ``token_budget``, ``image_budget``, ``idle_share``
        (of the device's time in this process) and ``halved_batches`` (those that did not fit in its memory).
        After ``merge``, ``shards`` has what differs between processes.

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
    scoring = _Scoring(run, options, progress)
    parts = _share(run, scoring.pool, options, folder)
    scoring.first_sweep(parts, checksums)
    examples = _examples(run, scoring.pool, options) if options.shard is None else {}
    if examples:
        scoring.example_sweep(examples)
    counts = count_parts(list(parts), list(examples))
    if options.shard is None:
        check_scored(list(parts), counts)
    progress.finish(_summary(counts) + scoring.speed)
    return {
        **counts,
        "parts": len(parts) + len(examples),
        "resumed": len(parts) + len(examples) - scoring.written,
        **scoring.report(),
    }


def _merge(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Put together what processes with ``--shard`` have scored; counts as if one process had.

    What takes the scores of the whole pool, the sweep with examples, is done here.
    """
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
    examples = _examples(run, pool, options)
    if examples:
        _Scoring(run, options, progress).example_sweep(examples)
    counts = count_parts(list(parts), list(examples))
    check_scored(list(parts), counts)
    progress.finish(_summary(counts))
    return {
        **counts,
        "parts": len(parts) + len(examples),
        "resumed": len(parts) + len(examples),
        "embedding_size": schema.field("embedding").type.list_size,
        "shards": shards,
    }


class _Scoring:
    """What scores the pool, and the sweeps over it.

    Attributes
    ----------
    pool : Pool
        The pool.
    written : int
        Parts written so far.
    speed : str
        What the summary says of the last sweep's speed.
    """

    def __init__(self, run: RunDirectory, options: ScoreOptions, progress: Progress) -> None:
        trust = bool(run.need("seed").options.get("trust_remote_code", False))
        self._run, self._options, self._progress = run, options, progress
        self.pool = Pool.of(run)
        self._family = families.load(run.onnx / "processor", trust_remote_code=trust)
        self._engine = open_engine(run, self._family, options.device, options.threads, progress.note)
        self._size = options.embedding_size or self._engine.embedding_size
        self._budget = settle_budget(run, self._family, self.pool, self._engine, options)
        self._metadata = part_metadata(run.stages["score"].key, self._budget)
        self.written = self._splits = 0
        self.speed = ""
        self._idle: float | None = None

    def first_sweep(self, parts: Mapping[Path, range], checksums: Checksums) -> None:
        """Score samples as they are, and in the forms that need nothing of other samples."""
        options = self._options
        variants = [
            Variant.FULL,
            *(each for each in options.metrics.variants if each is not Variant.ONE_SHOT),
        ]
        schema = score_schema(self._size, options.metrics.of(variants), self._metadata)
        check_origin(self._run.shards.glob("*/part-*.arrow"), schema)
        project = settle_projection(self._run, self._family, self.pool, self._engine, options, self._budget)
        wanted = Wanted(options.metrics, options.embedding, *([project] if project else []))
        self._sweep(
            _Sweep(
                parts,
                schema,
                lambda rows: encode_shard(self.pool, rows, self._family, options, variants),
                lambda rows, scores: score_table(rows, scores, options.metrics, schema),
            ),
            wanted,
            checksums,
        )

    def example_sweep(self, parts: Mapping[Path, range]) -> None:
        """Score each sample once more, after its nearest other sample."""
        options = self._options
        (name,) = options.metrics.of([Variant.ONE_SHOT])
        scores = ScoreTable.load(self._run.scores, with_examples=False)
        mean_nll = scores.column(NLL)
        self._progress.start("score", total=len(self.pool), unit="neighbours")
        examples = nearest_samples(
            self._run.examples,
            self._run.stages["score"].key,
            scores,
            options.threads,
            lambda done, _: self._progress.update(done),
        )
        schema = example_schema(name, self._metadata)

        def encode(rows: range) -> EncodedShard:
            scored = [row for row in rows if not np.isnan(mean_nll[row])]
            return encode_shard(self.pool, scored, self._family, options, [Variant.ONE_SHOT], examples)

        def table(rows: range, shard: ShardScores) -> pa.Table:
            return example_table(rows, shard, mean_nll[rows.start : rows.stop], METRICS[name], schema)

        self._sweep(_Sweep(parts, schema, encode, table), Wanted(), self._run.checksums)

    def report(self) -> dict[str, Any]:
        """Return what the manifest says besides counts of samples."""
        whole = {}
        if self._options.embedding == "image":
            lengths = pa.compute.list_value_length(self.pool.column("images"))
            whole = {"embedded_whole": int(pa.compute.sum(pa.compute.equal(lengths, 0)).as_py() or 0)}
        return {
            "embedding_size": self._size,
            **whole,
            "provider": self._engine.provider,
            "image_backend": self._family.image_backend,
            "token_budget": self._budget.tokens,
            "image_budget": self._budget.image_rows,
            "idle_share": self._idle,
            "halved_batches": self._splits,
        }

    def _sweep(self, sweep: _Sweep, wanted: Wanted, checksums: Checksums) -> None:
        todo = missing_parts(sweep.parts, sweep.schema, checksums, self._progress.note)
        total = sum(map(len, sweep.parts.values()))
        finished = total - sum(len(sweep.parts[part]) for part in todo)
        self._progress.start("score", total=total, done=finished)
        exact = _exact(self._run, self._family, self._options)
        # Pillow only warns of pictures up to twice its limit; here they are as unreadable as larger ones.
        with (
            warnings.catch_warnings(),
            ShardScorer(
                self._family, self.pool, self._engine, self._budget, self._options.workers, exact, wanted
            ) as scorer,
            ThreadPoolExecutor(1, thread_name_prefix="encode") as thread,
        ):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            meter = _Meter(self._progress, scorer.work, finished)
            plans = (scorer.plan(sweep.encode(sweep.parts[part])) for part in todo)
            for part, planned in zip(todo, ahead(plans, thread, 1), strict=True):
                rows = sweep.parts[part]
                meter.begin(len(rows), len(planned.shard.samples))
                write_arrow(part, sweep.table(rows, scorer.score(planned, meter.count)))
                checksums.add(part)
                meter.end()
        self.written += len(todo)
        if todo:
            self.speed = f"; {meter.rate:,.1f} samples/s with {self._engine.provider}, idle {meter.idle:.1%}"
            self._idle = round(meter.idle, 4)
        self._learn(scorer.work.splits)

    def _learn(self, splits: int) -> None:
        """Remember that batches did not fit in memory."""
        self._splits += splits
        if not splits:
            return
        self._progress.note(
            f"{splits:,} batches did not fit in memory and were halved; lower budgets than --token-budget "
            f"{self._budget.tokens} --image-budget {self._budget.image_rows} save the vain attempts"
        )
        lower = BatchBudget(self._budget.tokens // 2, self._budget.image_rows // 2)
        budget_memory(self._run, self._engine).remember(lower)


@dataclass(frozen=True)
class _Sweep:
    """A pass over the pool: its parts and their schema, how a shard is encoded and its scores are written."""

    parts: Mapping[Path, range]
    schema: pa.Schema
    encode: Callable[[range], EncodedShard]
    table: Callable[[range, ShardScores], pa.Table]


def _examples(run: RunDirectory, pool: Pool, options: ScoreOptions) -> dict[Path, range]:
    """Return the parts of the sweep with examples and their rows; none if no metric needs it."""
    if Variant.ONE_SHOT not in options.metrics.variants:
        return {}
    rows = part_rows(len(pool), options.shard_size)
    return {run.example_part(index): each for index, each in enumerate(rows)}


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
        self._shard = self._readings = self._read = 0
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
        speed: dict[str, float | str] = {
            "samples/s": samples / self._seconds,
            "tokens/s": self._tokens / self._seconds,
            "idle": f"{self.idle:.0%}",
        }
        self._progress.update(self._finished + samples, **speed)

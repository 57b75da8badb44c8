"""Sweeps over the pool, and what scores their parts, in this process or on another machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector import families
from mllm_selector.artifacts import open_arrow
from mllm_selector.config import ScoreOptions
from mllm_selector.drawn import NOT_DRAWN, Clusters
from mllm_selector.metrics import METRICS, NLL, Metrics, Variant
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import BudgetMemory, best_budget, budget_memory
from mllm_selector.scoring.neighbours import read_examples
from mllm_selector.scoring.opening import open_engine
from mllm_selector.scoring.projection import Projection, drawn_embeddings
from mllm_selector.scoring.scorer import PlannedShard, ShardScorer, Wanted, Work
from mllm_selector.scoring.shards import EncodedShard, ShardScores, encode_inputs, encode_shard
from mllm_selector.scoring.tables import embedding_table, example_table, score_table

__all__ = [
    "DrawnSweep",
    "ExampleSweep",
    "Facts",
    "FirstSweep",
    "InputSweep",
    "Opened",
    "PartScorer",
    "Sweep",
    "first_variants",
]


@dataclass(frozen=True)
class Facts:
    """What is known once an engine is open.

    Attributes
    ----------
    embedding_size : int
        Width of the model's embeddings.
    input_embedding_size : int or None
        Width of the embeddings of inputs; None if they are not wanted, or the export was made before there
        were any.
    provider, device : str
        What computes, and on what.
    image_backend : str
        What prepares images.
    """

    embedding_size: int
    input_embedding_size: int | None
    provider: str
    device: str
    image_backend: str


class Opened:
    """A run's pool, family and engine, ready to score.

    Parameters
    ----------
    run : RunDirectory
        Its export stage is done. Nothing is written there.
    options : ScoreOptions
        Device, threads, limits.
    note : callable
        Takes sentences that the user should read.
    begin : range, optional
        The rows of a part that `encode` will be asked for: it is encoded while the engine is opened, which
        takes longer for all but small models, so the device has work at once.

    Raises
    ------
    RunDirectoryError, PoolError, ModelError, ScoreError, MissingPackageError
        If the pool or the model cannot be opened, or the device cannot be used.
    """

    def __init__(
        self,
        run: RunDirectory,
        options: ScoreOptions,
        note: Callable[[str], None],
        begin: range | None = None,
    ) -> None:
        trust = bool(run.need("seed").options.get("trust_remote_code", False))
        self.run, self.options = run, options
        self.pool = Pool.of(run)
        self.family = families.load(run.onnx / "processor", trust_remote_code=trust)
        self.open_engine = partial(
            open_engine, run, self.family, options.device, options.threads, outputs=options.metrics.of_scorer
        )
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
            begun = None if begin is None else thread.submit(self.encode, begin)
            self.engine = self.open_engine(note=note)
        self._begun = {} if begin is None or begun is None else {begin: begun.result()}

    def encode(self, rows: range) -> EncodedShard:
        """Turn samples into tokens, in the forms that need nothing of other samples."""
        return encode_shard(
            self.pool,
            rows,
            self.family,
            self.options,
            first_variants(self.options.metrics),
            with_inputs=self.options.embeds_inputs,
        )

    def encoded(self, rows: range) -> EncodedShard:
        """Return what `encode` does, or did while the engine was opened."""
        begun = self._begun.pop(rows, None)
        return self.encode(rows) if begun is None else begun

    @property
    def facts(self) -> Facts:
        """What is known now."""
        device = self.budget_memory.device
        engine = self.engine
        inputs = engine.input_embedding_size if self.options.embeds_inputs else None
        return Facts(engine.embedding_size, inputs, engine.provider, device, self.family.image_backend)

    @property
    def budget_memory(self) -> BudgetMemory:
        """See `mllm_selector.scoring.budget.budget_memory`."""
        return budget_memory(self.run, self.engine, self.options)

    def best_budget(self) -> BatchBudget:
        """See `mllm_selector.scoring.budget.best_budget`."""
        return best_budget(self.run, self.family, self.pool, self.engine, self.options)

    def drawn_embeddings(self, budget: BatchBudget) -> NDArray[np.float32]:
        """See `mllm_selector.scoring.projection.drawn_embeddings`."""
        return drawn_embeddings(self.family, self.pool, self.engine, self.options, budget)


class Sweep(Protocol):
    """A pass over the pool. It is small, and can be sent to other machines."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of all its parts."""

    @property
    def budget(self) -> BatchBudget:
        """How much is computed together."""

    def wanted(self, options: ScoreOptions) -> Wanted:
        """Say what is computed of each sample."""

    def encode(self, opened: Opened, rows: range) -> EncodedShard:
        """Turn the readings of some rows into tokens."""

    def table(self, opened: Opened, rows: range, scores: ShardScores) -> pa.Table:
        """Make the part of these rows from what is known of them."""


def first_variants(metrics: Metrics) -> list[Variant]:
    """Return the forms in which the first sweep reads a sample: those that need nothing of other samples."""
    return [Variant.FULL, *(each for each in metrics.variants if each is not Variant.ONE_SHOT)]


@dataclass(frozen=True)
class FirstSweep:
    """Samples as they are, and in the forms that need nothing of other samples; see `Sweep`."""

    schema: pa.Schema
    budget: BatchBudget
    projection: Projection | None

    def wanted(self, options: ScoreOptions) -> Wanted:
        """See `Sweep.wanted`."""
        return _projected(Wanted(options.metrics, options.embedding), self.projection)

    def encode(self, opened: Opened, rows: range) -> EncodedShard:
        """See `Sweep.encode`."""
        return opened.encoded(rows)

    def table(self, opened: Opened, rows: range, scores: ShardScores) -> pa.Table:
        """See `Sweep.table`."""
        return score_table(rows, scores, opened.options.metrics, self.schema)


def _projected(wanted: Wanted, projection: Projection | None) -> Wanted:
    return wanted if projection is None else replace(wanted, project=projection)


@dataclass(frozen=True)
class InputSweep:
    """The inputs of all samples, without a pass through the language model; see `Sweep`."""

    schema: pa.Schema
    budget: BatchBudget
    projection: Projection | None

    def wanted(self, options: ScoreOptions) -> Wanted:
        """See `Sweep.wanted`."""
        return _projected(Wanted(only_inputs=True), self.projection)

    def encode(self, opened: Opened, rows: range) -> EncodedShard:
        """See `Sweep.encode`."""
        return encode_inputs(opened.pool, rows, opened.family, opened.options)

    def table(self, opened: Opened, rows: range, scores: ShardScores) -> pa.Table:
        """See `Sweep.table`."""
        return embedding_table(rows, scores, self.schema)


@dataclass(frozen=True)
class DrawnSweep:
    """The drawn samples, as `FirstSweep` reads all of them; see `Sweep`.

    Its parts hold the rows that were not drawn too, so that parts are the same rows of the pool in every run.
    """

    schema: pa.Schema
    budget: BatchBudget

    def wanted(self, options: ScoreOptions) -> Wanted:
        """See `Sweep.wanted`."""
        return Wanted(options.metrics)

    def encode(self, opened: Opened, rows: range) -> EncodedShard:
        """See `Sweep.encode`."""
        variants = first_variants(opened.options.metrics)
        return encode_shard(opened.pool, _drawn(opened, rows), opened.family, opened.options, variants)

    def table(self, opened: Opened, rows: range, scores: ShardScores) -> pa.Table:
        """See `Sweep.table`."""
        drawn = set(_drawn(opened, rows))
        part = opened.run.embedding_part(rows.start // opened.options.shard_size)
        for row, reason in zip(rows, open_arrow(part)["reason"].to_pylist(), strict=True):
            if row not in drawn:
                scores.reasons[Variant.FULL, row] = reason or NOT_DRAWN
        return score_table(rows, scores, opened.options.metrics, self.schema)


def _drawn(opened: Opened, rows: range) -> list[int]:
    drawn = Clusters.load(opened.run.clusters, rows).drawn
    return [rows[place] for place in np.flatnonzero(drawn).tolist()]


@dataclass(frozen=True)
class ExampleSweep:
    """Each sample once more, after its nearest other sample; see `Sweep`.

    What it needs of the first sweep is read for each part, so that no machine has to hold all of it.
    """

    schema: pa.Schema
    budget: BatchBudget
    metric: str

    def wanted(self, options: ScoreOptions) -> Wanted:
        """See `Sweep.wanted`."""
        return Wanted()

    def encode(self, opened: Opened, rows: range) -> EncodedShard:
        """See `Sweep.encode`."""
        mean_nll = self._mean_nll(opened, rows)
        scored = [row for row, nll in zip(rows, mean_nll, strict=True) if not np.isnan(nll)]
        examples = read_examples(opened.run.examples, rows)
        variants = [Variant.ONE_SHOT]
        return encode_shard(opened.pool, scored, opened.family, opened.options, variants, examples)

    def table(self, opened: Opened, rows: range, scores: ShardScores) -> pa.Table:
        """See `Sweep.table`."""
        mean_nll = self._mean_nll(opened, rows)
        return example_table(rows, scores, mean_nll, METRICS[self.metric], self.schema)

    @staticmethod
    def _mean_nll(opened: Opened, rows: range) -> NDArray[np.float32]:
        part = opened.run.score_part(rows.start // opened.options.shard_size)
        values: NDArray[np.float32] = open_arrow(part)[NLL].to_numpy()
        return values


class PartScorer:
    """Scores the parts of a sweep; a context manager that owns the threads which prepare its work.

    Parameters
    ----------
    opened : Opened
        What scores.
    sweep : Sweep
        What is scored.
    """

    def __init__(self, opened: Opened, sweep: Sweep) -> None:
        options, exported = opened.options, opened.run.need("export").options
        # What scores again where half precision gives no finite number.
        exact = None
        if exported.get("precision", "float32") != "float32":
            exact = partial(opened.open_engine, precision="float32")
        self._opened, self._sweep = opened, sweep
        self._scorer = ShardScorer(
            opened.family,
            opened.pool,
            opened.engine,
            sweep.budget,
            options.workers,
            exact,
            sweep.wanted(options),
        )

    def __enter__(self) -> Self:
        self._scorer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scorer.__exit__(kind, error, trace)

    @property
    def work(self) -> Work:
        """What the device has done so far."""
        return self._scorer.work

    def plan(self, rows: range) -> PlannedShard:
        """Encode a part and decide what is computed together; may run in a thread."""
        return self._scorer.plan(self._sweep.encode(self._opened, rows))

    def score(self, rows: range, planned: PlannedShard, on_batch: Callable[[int, int], None]) -> pa.Table:
        """Score a planned part.

        Parameters
        ----------
        rows : range
            The part's rows of the pool.
        planned : PlannedShard
            From `plan`.
        on_batch : callable
            Is told the numbers of readings and tokens of each batch when it is done.

        Returns
        -------
        pyarrow.Table
            With the schema of the sweep.
        """
        splits = self.work.splits
        table = self._sweep.table(self._opened, rows, self._scorer.score(planned, on_batch))
        if self.work.splits > splits:
            # The next run is to save these vain attempts.
            budget = self._sweep.budget
            lower = BatchBudget(budget.tokens // 2, budget.image_rows // 2)
            self._opened.budget_memory.remember(lower)
        return table

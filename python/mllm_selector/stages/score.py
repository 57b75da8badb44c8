"""Score the samples of the pool: a forward pass for each form they are read in, written shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mllm_selector.artifacts import (
    ScoreTable,
    embedding_schema,
    example_schema,
    score_schema,
    write_arrow,
    write_json,
)
from mllm_selector.checksums import Checksums
from mllm_selector.config import ScoreOptions
from mllm_selector.drawn import Clusters
from mllm_selector.errors import RunDirectoryError, ScoreError, UsageError
from mllm_selector.metrics import Variant
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.budget import settle_budget
from mllm_selector.scoring.drawing import find_clusters
from mllm_selector.scoring.local import LocalScorer, Scorers
from mllm_selector.scoring.merging import CHECKSUMS, DONE, gather_parts, held_shard
from mllm_selector.scoring.meter import Meter
from mllm_selector.scoring.neighbours import find_examples
from mllm_selector.scoring.on_ray import ray_scorers
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
from mllm_selector.scoring.sweeps import (
    DrawnSweep,
    ExampleSweep,
    Facts,
    FirstSweep,
    InputSweep,
    Opened,
    Sweep,
    first_variants,
)

__all__ = ["run"]


def run(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Write ``scores/part-00000.arrow`` and so on, a part for each shard of the pool.

    A part that is there and whole is not scored again, so an interrupted run goes on where it stopped; a
    damaged one is. Samples that cannot be scored get a reason, NaN as metrics and an embedding of zeros.
    Metrics that need an example in front of each sample take a second sweep, since the examples are known
    when the whole pool has embeddings: ``scores/examples.arrow``, then ``scores/example-00000.arrow`` ...
    With ``scored_per_cluster`` a first sweep makes embeddings of all inputs (``scores/embedding-00000.arrow``
    ...), which are clustered (``scores/clusters.arrow``), and the second scores the samples drawn from each.

    Parameters
    ----------
    run : RunDirectory
        Its ingest, seed and export stages are done; its own record holds the key that marks the parts.
    options : ScoreOptions
        Metrics, embeddings, device, batch size, limits. With ``shard`` only a share of the parts is scored,
        into a folder of its own; with ``merge`` these folders are put together, and nothing is done but the
        second sweep. With ``ray`` the parts are scored on a cluster, and written here.
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
        (of the devices' time since this command began) and ``halved_batches`` (those that did not fit in
        their memory).
        After ``merge``, ``shards`` has what differs between processes. With ``scored_per_cluster`` also
        ``clusters``, ``drawn`` and ``scored_share`` (of the pool).

    Raises
    ------
    UsageError
        If embeddings are to be projected to more numbers than they have, more clusters are asked for than
        there are samples, or there is no Ray cluster.
    ScoreError
        If the device cannot be used, the export is too old for embeddings of the inputs, or more than half of
        the pool cannot be scored; the parts are kept.
    RunDirectoryError
        If the scores folder holds parts of another run.
    ClusterError
        If Ray gives up.
    MissingPackageError
        If a package of the ``[cpu]``, ``[gpu]`` or ``[ray]`` extra is missing.
    """
    run.need("export")
    _check_count(run, options)
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
    first = _share(_first_parts(run, Pool.of(run), options), options, folder)
    begin = None
    if options.scored_per_cluster is None:
        begin = next((rows for part, rows in first.items() if not part.exists()), None)
    with _scorers(run, options, progress, begin) as scorers:
        scoring = _Scoring(run, options, progress, scorers)
        scoring.first_sweep(first, checksums)
        second = _second_parts(run, scoring.pool, options) if options.shard is None else {}
        if second:
            scoring.second_sweep(second)
    counts = _counts(run, options, list(first), list(second))
    progress.finish(_summary(counts, options) + scoring.speed)
    return {
        **counts,
        "parts": len(first) + len(second),
        "resumed": len(first) + len(second) - scoring.written,
        **scoring.report(),
    }


def _merge(run: RunDirectory, options: ScoreOptions, progress: Progress) -> dict[str, Any]:
    """Put together what processes with ``--shard`` have scored; counts as if one process had.

    What takes the first sweep over the whole pool, the second one, is done here.
    """
    pool = Pool.of(run)
    first, second = _first_parts(run, pool, options), _second_parts(run, pool, options)
    progress.start("score", total=len(pool))
    shards = gather_parts(run, list(first))
    schema = merged_schema(next(iter(first)), run.stages["score"].key)
    damaged = missing_parts(first, schema, run.checksums, progress.note)
    if damaged:
        msg = f"{damaged[0]} is not whole; delete it and its checksums, and score its shard again"
        raise RunDirectoryError(msg)
    if second:
        with _scorers(run, options, progress) as scorers:
            _Scoring(run, options, progress, scorers).second_sweep(second)
    counts = _counts(run, options, list(first), list(second))
    progress.finish(_summary(counts, options))
    return {
        **counts,
        "parts": len(first) + len(second),
        "resumed": len(first) + len(second),
        "embedding_size": schema.field("embedding").type.list_size,
        "shards": shards,
    }


def _check_count(run: RunDirectory, options: ScoreOptions) -> None:
    if options.cluster_count is None:
        return
    samples = len(Pool.of(run))
    if options.cluster_count > samples:
        msg = (
            f"--cluster-count: {options.cluster_count} clusters of {samples} samples; ask for at most "
            f"{samples}"
        )
        raise UsageError(msg)


def _counts(
    run: RunDirectory, options: ScoreOptions, first: list[Path], second: list[Path]
) -> dict[str, Any]:
    """Count over the parts of both sweeps; fail if most of the whole pool has no score."""
    if options.scored_per_cluster is None or options.shard is not None:
        counts = count_parts(first, second)
        if options.shard is None:
            check_scored(first, counts)
        return counts
    clusters = Clusters.load(run.clusters)
    counts, drawn = count_parts(second, first), int(clusters.drawn.sum())
    check_scored(second, counts, drawn)
    return {
        **counts,
        "clusters": clusters.count,
        "drawn": drawn,
        "scored_share": round(counts["scored"] / counts["samples"], 4),
    }


def _scorers(
    run: RunDirectory, options: ScoreOptions, progress: Progress, begin: range | None = None
) -> AbstractContextManager[Scorers]:
    """Open what scores; `begin` is the first part that it will be asked for."""
    if options.ray is not None:
        return ray_scorers(run, options, progress.note)
    return nullcontext(LocalScorer(Opened(run, options, progress.note, begin)))


class _Scoring:
    """The sweeps over the pool, and what is written of them.

    Attributes
    ----------
    pool : Pool
        The pool.
    written : int
        Parts written so far.
    speed : str
        What the summary says of the last sweep's speed.
    """

    def __init__(
        self, run: RunDirectory, options: ScoreOptions, progress: Progress, scorers: Scorers
    ) -> None:
        self._run, self._options, self._progress, self._scorers = run, options, progress, scorers
        self.pool = Pool.of(run)
        self._width = _width(run, options, scorers.facts)
        self._size = options.embedding_size or self._width
        self._budget = settle_budget(run, options, scorers.best_budget)
        self._metadata = part_metadata(run.stages["score"].key, self._budget)
        self.written = self._splits = 0
        self.speed = ""
        self._idle: float | None = None

    def first_sweep(self, parts: Mapping[Path, range], checksums: Checksums) -> None:
        """Score samples in the forms that need nothing of other samples, or embed the inputs of all."""
        options, scorers, budget = self._options, self._scorers, self._budget
        is_drawn = options.scored_per_cluster is not None
        if is_drawn:
            schema = embedding_schema(self._size, self._metadata)
        else:
            metrics = options.metrics.of(first_variants(options.metrics))
            schema = score_schema(self._size, metrics, self._metadata)
        check_origin(self._run.shards.glob("*/*-*.arrow"), schema)
        projection = settle_projection(
            self._run, self._width, options, lambda: scorers.drawn_embeddings(budget)
        )
        self._sweep((InputSweep if is_drawn else FirstSweep)(schema, budget, projection), parts, checksums)

    def second_sweep(self, parts: Mapping[Path, range]) -> None:
        """Score what the first sweep over the whole pool decides."""
        sweep = self._examples() if self._options.scored_per_cluster is None else self._drawn()
        self._sweep(sweep, parts, self._run.checksums)

    def _examples(self) -> ExampleSweep:
        """Find each sample's nearest other one, to score it once more after that."""
        options = self._options
        (name,) = options.metrics.of([Variant.ONE_SHOT])
        self._progress.start("score", total=len(self.pool), unit="neighbours")
        find_examples(
            self._run.examples,
            self._run.stages["score"].key,
            ScoreTable.load(self._run.scores, with_examples=False),
            options.threads,
            lambda done, _: self._progress.update(done),
        )
        return ExampleSweep(example_schema(name, self._metadata), self._budget, name)

    def _drawn(self) -> DrawnSweep:
        """Find clusters, and draw the samples that are to be scored from each."""
        clusters = find_clusters(self._run, self._options, self._progress)
        self._progress.note(
            f"score   {int(clusters.drawn.sum()):,} of {len(self.pool):,} samples are drawn from "
            f"{clusters.count:,} clusters"
        )
        return DrawnSweep(score_schema(None, self._options.metrics.names, self._metadata), self._budget)

    def report(self) -> dict[str, Any]:
        """Return what the manifest says besides counts of samples."""
        whole = {}
        if self._options.embedding == "image":
            lengths = pa.compute.list_value_length(self.pool.column("images"))
            whole = {"embedded_whole": int(pa.compute.sum(pa.compute.equal(lengths, 0)).as_py() or 0)}
        return {
            "embedding_size": self._size,
            **whole,
            "provider": self._scorers.facts.provider,
            "image_backend": self._scorers.facts.image_backend,
            "token_budget": self._budget.tokens,
            "image_budget": self._budget.image_rows,
            "idle_share": self._idle,
            "halved_batches": self._splits,
        }

    def _sweep(self, sweep: Sweep, parts: Mapping[Path, range], checksums: Checksums) -> None:
        missing = missing_parts(parts, sweep.schema, checksums, self._progress.note)
        todo = {part: parts[part] for part in missing}
        total = sum(map(len, parts.values()))
        finished = total - sum(map(len, todo.values()))
        self._progress.start("score", total=total, done=finished)
        if not todo:
            return
        meter = Meter(self._progress, finished)
        with closing(self._scorers.tables(sweep, todo, meter)) as tables:
            for part, table in tables:
                write_arrow(part, table)
                checksums.add(part)
                self.written += 1
        self.speed = (
            f"; {meter.rate:,.1f} samples/s with {self._scorers.facts.provider}, idle {meter.idle:.1%}"
        )
        self._idle = round(meter.idle, 4)
        self._splits += meter.splits
        if meter.splits:
            self._progress.note(
                f"{meter.splits:,} batches did not fit in memory and were halved; lower budgets than "
                f"--token-budget {self._budget.tokens} --image-budget {self._budget.image_rows} save the "
                "vain attempts"
            )


def _width(run: RunDirectory, options: ScoreOptions, facts: Facts) -> int:
    """Return the width of the embeddings that are made."""
    if not options.embeds_inputs:
        return facts.embedding_size
    if facts.input_embedding_size is None:
        name = "--embedding inputs" if options.scored_per_cluster is None else "--scored-per-cluster"
        msg = (
            f"{name}: the graphs in {run.onnx} were made by an earlier version and have "
            "no embedding of the inputs; delete that folder, run 'mllm-selector export' with its "
            "options and go on"
        )
        raise ScoreError(msg)
    return facts.input_embedding_size


def _first_parts(run: RunDirectory, pool: Pool, options: ScoreOptions) -> dict[Path, range]:
    """Return the parts of the first sweep and their rows."""
    part = run.score_part if options.scored_per_cluster is None else run.embedding_part
    return {part(index): each for index, each in enumerate(part_rows(len(pool), options.shard_size))}


def _second_parts(run: RunDirectory, pool: Pool, options: ScoreOptions) -> dict[Path, range]:
    """Return the parts of the second sweep and their rows; none if there is no such sweep."""
    if options.scored_per_cluster is not None:
        part = run.score_part
    elif Variant.ONE_SHOT in options.metrics.variants:
        part = run.example_part
    else:
        return {}
    return {part(index): each for index, each in enumerate(part_rows(len(pool), options.shard_size))}


def _share(parts: dict[Path, range], options: ScoreOptions, folder: Path) -> dict[Path, range]:
    """Return this process's parts and their rows; a shard leaves out what the whole run has scored before."""
    if options.shard is None:
        return parts
    return {
        folder / part.name: rows
        for index, (part, rows) in enumerate(parts.items())
        if options.shard.takes(index) and not part.exists()
    }


def _summary(counts: dict[str, Any], options: ScoreOptions) -> str:
    aside = sum(counts["set_aside"].values())
    if options.scored_per_cluster is None:
        return f"{counts['scored']:,} samples scored, {aside:,} set aside"
    if options.shard is not None:
        return f"{counts['scored']:,} samples embedded, {aside:,} set aside"
    return (
        f"{counts['scored']:,} of {counts['samples']:,} samples scored ({counts['scored_share']:.1%}), up to "
        f"{options.scored_per_cluster:,} of each of {counts['clusters']:,} clusters; {aside:,} set aside"
    )

"""Short measurements of stages that no record tells of: real code on a small part of the work."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from mllm_selector import families, formats, training
from mllm_selector.config import IngestOptions, ScoreOptions, SeedOptions
from mllm_selector.engine import Engine
from mllm_selector.errors import SampleError
from mllm_selector.families.base import Family
from mllm_selector.families.images import load_image
from mllm_selector.planning.rates import Rate
from mllm_selector.pool import Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.resources import peak_memory_mb, reset_peak_memory
from mllm_selector.sampling import cluster_count
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.budget import DEFAULT
from mllm_selector.scoring.scorer import ShardScorer, Wanted
from mllm_selector.scoring.shards import EncodedShard, encode_inputs, encode_shard
from mllm_selector.scoring.sweeps import first_variants
from mllm_selector.stages.seed import random_order

__all__ = ["Read", "parameters", "probe_ingest", "probe_score", "probe_training"]

INGEST_SECONDS = 20.0
SCORE_SECONDS = 5.0
"""A probe of scoring doubles its samples until that takes so long."""

SCORE_BLOCK = 16
"""Samples that lie side by side in the pool: they may share images, as in a run."""

MOST_SCORED = 1024
TRAINING_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Read:
    """What a probe of ingest has read.

    Attributes
    ----------
    pool : Path
        A pool file of these samples.
    samples : int
        How many there are; where not all was read, in the whole input by its bytes.
    rejected : int or None
        Records that were set aside; None if not all was read.
    share : float
        The part of the input's bytes that was read.
    sources : tuple of str
        Names of the sources.
    rate : Rate
        What it took, by samples.
    """

    pool: Path
    samples: int
    rejected: int | None
    share: float
    sources: tuple[str, ...]
    rate: Rate


class _EnoughError(Exception):
    """Raised out of a progress report to end a probe."""


def probe_ingest(options: IngestOptions, folder: Path, most_seconds: float = INGEST_SECONDS) -> Read:
    """Ingest the pool into a temporary folder, or as much of it as is done in some seconds.

    Parameters
    ----------
    options : IngestOptions
        As for the stage.
    folder : Path
        Where the pool file goes.
    most_seconds : float
        Then what has been written so far is taken.

    Raises
    ------
    UsageError, PoolError
        As the stage does.
    """
    pool, rejected = folder / "pool.arrow", folder / "rejected.jsonl"
    size = sum(path.stat().st_size for path in options.pool.paths)
    reset_peak_memory()
    started = time.monotonic()
    seen = 0

    def watch(done: int, _: int) -> None:
        nonlocal seen
        if time.monotonic() - started < most_seconds:
            return
        batches = _whole_batches(folder)
        if batches:
            _write_pool(pool, batches)
            seen = done
            raise _EnoughError

    try:
        counts = formats.find(options).ingest(options, pool, rejected, watch)
    except _EnoughError:
        seconds = time.monotonic() - started
        table = pa.ipc.open_file(pa.memory_map(str(pool))).read_all()
        read, share = len(table), min(1.0, seen / size)
        names = tuple(table["source"].unique().to_pylist())
        rate = _ingest_rate(pool, read, seconds, f"reading {share:.1%} of the input")
        return Read(pool, round(read / share), None, share, names, rate)
    seconds = time.monotonic() - started
    read = counts["samples"]
    rate = _ingest_rate(pool, read, seconds, "reading the input once")
    return Read(pool, read, sum(counts["rejected"].values()), 1.0, tuple(counts["sources"]), rate)


def _ingest_rate(pool: Path, samples: int, seconds: float, basis: str) -> Rate:
    size = pool.stat().st_size / samples
    return Rate(samples, seconds, basis, memory_mb=peak_memory_mb(), disk=size)


def _whole_batches(folder: Path) -> list[pa.RecordBatch]:
    """Read what a running ingest has written: an Arrow file without its end is a stream after its mark."""
    batches: list[pa.RecordBatch] = []
    for path in folder.glob(".pool.arrow.*.tmp"):
        data = path.read_bytes()
        start = data.find(b"\xff" * 4, 0, 128)  # of the first message; the mark is filled up with zeros
        try:
            for batch in pa.ipc.open_stream(pa.py_buffer(data[max(0, start) :])):
                batches.append(batch)  # the last one is cut off, and raises
        except (pa.ArrowInvalid, OSError):
            continue
    return batches


def _write_pool(path: Path, batches: list[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(str(path), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def probe_score(
    engine: Engine,
    family: Family,
    pool: Pool,
    options: ScoreOptions,
    budget: BatchBudget | None,
    what: str,
    samples: int,
) -> Rate:
    """Score samples from all over the pool, twice as many each time until that takes a few seconds.

    Where only some samples are to be scored, both passes are measured: that over the inputs of all, and that
    over the drawn ones, by their share of the pool.

    Parameters
    ----------
    engine, family
        What scores.
    pool : Pool
        The pool, or a part of it.
    options : ScoreOptions
        As for the stage; the sweep with examples is left out.
    budget : BatchBudget or None
        How much is computed together, if that is known.
    what : str
        What scores, in words.
    samples : int
        Of the run that is planned.
    """
    tokens, images = options.token_budget.value, options.image_budget.value
    known = budget or DEFAULT
    budget = BatchBudget(tokens or known.tokens, images or known.image_rows)
    reset_peak_memory()
    measure = partial(_measured, engine, family, pool, options, budget)
    variants, per_cluster = first_variants(options.metrics), options.scored_per_cluster
    # Drawn samples have their embeddings from the pass over all inputs.
    with_inputs = options.embeds_inputs and per_cluster is None
    count, seconds = measure(
        Wanted(options.metrics, options.embedding if per_cluster is None else "all"),
        lambda rows: encode_shard(pool, rows, family, options, variants, with_inputs=with_inputs),
    )
    basis, width = f"scoring {count:,} samples {what}", engine.embedding_size
    if options.embeds_inputs:
        width = engine.input_embedding_size or 0
    if per_cluster is not None:
        share = min(1.0, per_cluster * cluster_count(samples, options.cluster_count) / samples)
        read, seconds_read = measure(
            Wanted(only_inputs=True),
            lambda rows: encode_inputs(pool, rows, family, options),
        )
        basis = f"reading the inputs of {read:,} samples and {basis}, {share:.2%} of the pool being scored"
        count, seconds = read, seconds_read + share * seconds * read / count
    # row, summed loss, number of answer tokens and metrics as numbers; embeddings are float16.
    size = 2 * (options.embedding_size or width) + 16 + 4 * len(options.metrics.names)
    return Rate(count, seconds, basis, memory_mb=peak_memory_mb(), disk=size)


def _measured(
    engine: Engine,
    family: Family,
    pool: Pool,
    options: ScoreOptions,
    budget: BatchBudget,
    wanted: Wanted,
    encode: Callable[[list[int]], EncodedShard],
) -> tuple[int, float]:
    """Return how many samples were read at last, and the seconds that took."""
    with ShardScorer(family, pool, engine, budget, options.workers, wanted=wanted) as scorer:
        count = 2 * SCORE_BLOCK
        while True:
            rows = _scattered(len(pool), min(count, len(pool)), options.seed)
            started = time.monotonic()
            scorer.score(scorer.plan(encode(rows)), lambda *_: None)
            seconds = time.monotonic() - started
            if seconds >= SCORE_SECONDS or count >= min(MOST_SCORED, len(pool)):
                return len(rows), seconds
            count *= 2


def _scattered(total: int, count: int, seed: int) -> list[int]:
    """Draw blocks of rows that lie side by side."""
    blocks = math.ceil(total / SCORE_BLOCK)
    order = random_order(blocks, seed, 0)[: math.ceil(count / SCORE_BLOCK)]
    starts = (int(block) * SCORE_BLOCK for block in sorted(order))
    return [row for start in starts for row in range(start, min(start + SCORE_BLOCK, total))]


class _Steps(SilentProgress):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, done: int, **fields: float | str) -> None:
        """Note a step."""
        if done:
            self.times.append(time.monotonic())


def probe_training(options: SeedOptions, pool: Pool, folder: Path) -> Rate:
    """Train a few steps on samples of the pool, and throw the result away.

    Parameters
    ----------
    options : SeedOptions
        As for the stage, with a model that is a folder.
    pool : Pool
        The pool, or a part of it.
    folder : Path
        A temporary folder.

    Raises
    ------
    ModelError, MissingPackageError
        As the stage does.
    """
    assert options.model is not None
    training.need_packages()
    reset_peak_memory()
    started = time.monotonic()
    with training.quiet():
        model, processor = training.load_pretrained(
            options.model, trust_remote_code=options.trust_remote_code
        )
        family = families.load(Path(options.model).expanduser(), trust_remote_code=options.trust_remote_code)
        seen = TRAINING_STEPS * options.seed_batch_size
        samples = _Encoded(_trainable(family, pool, options, seen))
        adapted = training.attach_lora(model, options.lora_rank, options.lora_alpha, options.seed)
        collate = training.Collator(processor.tokenizer.pad_token_id or 0)
        log, steps = training.TrainingLog(folder / "log.jsonl"), _Steps()
        training.fine_tune(adapted, samples, collate, options, folder / "checkpoints", log, steps)
    # The first step also opens files and warms up.
    step = (steps.times[-1] - steps.times[0]) / (len(steps.times) - 1)
    fixed = steps.times[0] - step - started
    weights = Path(options.model).expanduser().glob("*.safetensors")
    return Rate(
        options.seed_batch_size,
        step,
        f"training {TRAINING_STEPS} steps",
        fixed=max(0.0, fixed),
        memory_mb=peak_memory_mb(),
        disk_fixed=sum(path.stat().st_size for path in weights),
    )


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Samples as a training sees them."""

    samples: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def _trainable(family: Family, pool: Pool, options: SeedOptions, count: int) -> list[dict[str, Any]]:
    """Encode drawn samples that can be trained on, some more than once if there are too few."""
    usable: list[dict[str, Any]] = []
    for row in random_order(len(pool), options.seed, 0)[: 4 * count].tolist():
        try:
            encoded = family.training_inputs(pool.sample(row), load_image)
        except SampleError:
            continue
        if len(encoded["input_ids"]) <= options.seed_max_tokens:
            usable.append(encoded)
        if len(usable) == count:
            return usable
    if not usable:
        msg = "none of the samples that were tried can be trained on"
        raise SampleError(msg)
    return [usable[index % len(usable)] for index in range(count)]


def parameters(folder: Path) -> int:
    """Count a model's parameters by the headers of its safetensors files.

    A file begins with the length of its header, 8 bytes little-endian, then the header as JSON: the shape of
    every tensor by its name (https://github.com/huggingface/safetensors).
    """
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total

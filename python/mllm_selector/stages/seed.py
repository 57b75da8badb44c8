"""Seed: draws the seed subset and fine-tunes the pretrained model on it.

The seed model is the pretrained model with a little instruction tuning: LoRA on samples drawn uniformly from
the pool (MLLM-Selector, arXiv 2503.20502). With ``--seed-model`` the user brings one, and nothing is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector import families, training
from mllm_selector.artifacts import make_folder, write_arrow, write_json
from mllm_selector.config import Amount, SeedOptions
from mllm_selector.errors import ModelError, SampleError, UsageError
from mllm_selector.families.images import load_image
from mllm_selector.fetching import Fetching
from mllm_selector.pool import Pool, Sample
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_COUNT",
    "DEFAULT_SHARE",
    "draw_rows",
    "random_order",
    "run",
    "seed_count",
    "training_order",
    "tune",
]

DEFAULT_COUNT = 512
DEFAULT_SHARE = Amount.parse("1%")

# Keys of independent random streams under one seed.
_DRAW_STREAM = 0
_EPOCH_STREAM = 1  # epoch k uses stream 1 + k

Encode = Callable[[Sample], dict[str, "torch.Tensor"]]


def run(run: RunDirectory, options: SeedOptions, progress: Progress) -> dict[str, Any]:
    """Make the seed model.

    Parameters
    ----------
    run : RunDirectory
        With the pool. Gets `seed_rows`, `seed_model`, ``seed/adapter`` and ``seed/log.jsonl``.
    options : SeedOptions
        The options.
    progress : Progress
        What to report to.

    Returns
    -------
    dict
        ``model`` (``seed/model`` in the run directory, or the absolute path of ``--seed-model``),
        ``seed_samples`` (trained on), ``left_out`` (drawn but not trained on, by reason), and of the training
        ``steps``, ``first_loss``, ``last_loss`` (nats per answer token, mean over a batch) and
        ``trainable_parameters``.

    Raises
    ------
    UsageError
        If neither a model nor a seed model is named, there is none at that path, or more samples are asked
        for than the pool has.
    ModelError
        If the model cannot be loaded or trained, or no drawn sample can be trained on.
    MissingPackageError
        If the ``train`` extra is not installed.
    """
    if options.seed_model is not None:
        return _use(run, options.seed_model, progress)
    if options.model is None:
        msg = "--model is missing: name a pretrained model to tune, or a tuned one with --seed-model"
        raise UsageError(msg)
    pool = Pool.of(run)
    rows = draw_rows(len(pool), seed_count(options.seed_size, len(pool)), options.seed)
    training.need_packages()
    with training.quiet():
        return tune(run, options, options.model, pool, rows, progress)


def _use(run: RunDirectory, model: Path, progress: Progress) -> dict[str, Any]:
    progress.start("seed")
    training.check_model_directory(model, "--seed-model")
    _write_rows(run, [])
    progress.finish(f"{model} is used as it is")
    return {"model": str(model.resolve()), "seed_samples": 0, "left_out": {}}


def tune(
    run: RunDirectory,
    options: SeedOptions,
    name: str,
    pool: Pool,
    rows: NDArray[np.uint64],
    progress: Progress,
) -> dict[str, Any]:
    """Fine-tune a model on rows of a pool; a run that was killed goes on from its last whole checkpoint.

    Parameters
    ----------
    run : RunDirectory
        Gets what the seed stage leaves.
    options : SeedOptions
        How to train; `SeedOptions.model` and `SeedOptions.seed_size` are not used.
    name : str
        The model: a directory or a hub id.
    pool : Pool
        The pool, of any run directory.
    rows : ndarray of uint64, shape (k,)
        What to train on, ascending.
    progress : Progress
        What to report to.

    Returns
    -------
    dict
        As `run` does.
    """
    model, processor = training.load_pretrained(name, trust_remote_code=options.trust_remote_code)
    family = families.load(Path(name).expanduser(), trust_remote_code=options.trust_remote_code)

    def encode(sample: Sample) -> dict[str, torch.Tensor]:
        return family.training_inputs(sample, load_image)

    make_folder(run.seed)
    log = training.TrainingLog(run.seed / "log.jsonl")
    plan = _plan(run, options, name, pool, rows, encode, log, progress)
    _write_rows(run, plan.rows)

    adapted = training.attach_lora(model, options.lora_rank, options.lora_alpha, options.seed)
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    order = training_order(plan.rows, options.seed_epochs, options.seed)
    collate = training.Collator(processor.tokenizer.pad_token_id or 0)
    with Fetching(pool, order) as samples:
        steps = training.fine_tune(
            adapted, _Samples(samples, encode), collate, options, run.seed_checkpoints, log, progress
        )
    training.save_adapter(adapted, run.seed / "adapter")
    training.merge(adapted, processor, run.seed_model)

    losses = log.losses()
    left_out = sum(plan.left_out.values())
    progress.finish(
        f"{len(plan.rows):,} samples, {steps:,} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}"
        + (f", {left_out:,} left out" if left_out else "")
    )
    return {
        "model": str(run.seed_model.relative_to(run.path)),
        "seed_samples": len(plan.rows),
        "left_out": plan.left_out,
        "steps": steps,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "trainable_parameters": trainable,
    }


def seed_count(size: Amount | None, total: int) -> int:
    """Return how many samples are drawn.

    Parameters
    ----------
    size : Amount or None
        What the user asked for; by default 1 % of the pool, but at least 512 samples or the whole pool.
    total : int
        Samples in the pool.

    Raises
    ------
    UsageError
        If that is more than the pool has.
    """
    if size is None:
        return min(total, max(DEFAULT_COUNT, DEFAULT_SHARE.of(total)))
    if size.of(total) > total:
        msg = f"--seed-size: {size} is more than the {total} samples of the pool"
        raise UsageError(msg)
    return size.of(total)


def random_order(count: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Return a random order of ``0 .. count - 1``.

    Item `i` gets the `i`-th output of Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", SC 2011) under the key (`seed`, `stream`); the order is that of these numbers, ties by item. NumPy
    never changes the output of a bit generator (NEP 19), unlike that of ``Generator.permutation``.

    Parameters
    ----------
    count : int
        Number of items.
    seed, stream : int
        The key; streams of one seed are independent.

    Returns
    -------
    ndarray of int64, shape (count,)
        The items in their order.
    """
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def draw_rows(total: int, count: int, seed: int) -> NDArray[np.uint64]:
    """Draw rows uniformly without replacement.

    Returns
    -------
    ndarray of uint64, shape (count,)
        Ascending. A larger draw with the same seed contains a smaller one.
    """
    return np.sort(random_order(total, seed, _DRAW_STREAM)[:count]).astype(np.uint64)


def training_order(rows: Sequence[int], epochs: float, seed: int) -> list[int]:
    """Lay out rows in the order in which they are seen: each epoch shuffled anew, the last one cut off."""
    wanted = max(1, round(epochs * len(rows)))
    order = [
        rows[index]
        for epoch in range(math.ceil(wanted / len(rows)))
        for index in random_order(len(rows), seed, _EPOCH_STREAM + epoch)
    ]
    return order[:wanted]


@dataclass(frozen=True)
class _Samples:
    """Encodes the sample seen at a position when it is asked for."""

    samples: Fetching
    encode: Encode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.encode(self.samples[index])


@dataclass(frozen=True)
class _Plan:
    """What is trained on, decided before the first step and kept for a run that goes on after a kill."""

    key: str
    rows: list[int]
    left_out: dict[str, int]


def _plan(
    run: RunDirectory,
    options: SeedOptions,
    name: str,
    pool: Pool,
    rows: NDArray[np.uint64],
    encode: Encode,
    log: training.TrainingLog,
    progress: Progress,
) -> _Plan:
    """Take up the plan of a killed run, or check every drawn sample and begin anew."""
    key = _training_key(options, name, rows)
    old = _old_plan(run.seed_plan)
    if old is not None and old.key == key:
        return old
    shutil.rmtree(run.seed_checkpoints, ignore_errors=True)
    log.path.unlink(missing_ok=True)
    plan = _check_samples(key, options, pool, rows, encode, log, progress)
    write_json(run.seed_plan, vars(plan))
    return plan


def _check_samples(
    key: str,
    options: SeedOptions,
    pool: Pool,
    rows: NDArray[np.uint64],
    encode: Encode,
    log: training.TrainingLog,
    progress: Progress,
) -> _Plan:
    """Encode every drawn sample once, and leave out those that cannot be trained on."""
    usable: list[int] = []
    left_out: Counter[str] = Counter()
    progress.start("seed", len(rows))
    with Fetching(pool, rows.tolist()) as samples:
        for place, row in enumerate(rows.tolist()):
            sample = samples[place]
            reason = _problem(encode, sample, options.seed_max_tokens)
            if reason is None:
                usable.append(row)
            else:
                left_out[reason.partition(":")[0]] += 1
                log.add("left-out", row=row, id=sample.id, reason=reason)
            progress.update(place + 1, left_out=left_out.total())
    if not usable:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        msg = (
            f"none of the {len(rows)} drawn samples can be trained on ({reasons}); {log.path} names each. "
            "Raise --seed-max-tokens if they are too long, or check --images"
        )
        raise ModelError(msg)
    return _Plan(key, usable, dict(left_out.most_common()))


def _problem(encode: Encode, sample: Sample, max_tokens: int) -> str | None:
    """Say why a sample cannot be trained on, if so: a code, a colon, a sentence."""
    try:
        encoded = encode(sample)
    except SampleError as error:
        return str(error)
    tokens = len(encoded["input_ids"])
    if tokens > max_tokens:
        return f"too-long: {tokens} tokens are more than --seed-max-tokens {max_tokens}"
    if not (encoded["labels"][1:] != training.IGNORED).any():
        return "no-answer: no token of an answer"
    return None


def _training_key(options: SeedOptions, name: str, rows: NDArray[np.uint64]) -> str:
    """Identify a training: checkpoints of another one are not gone on from."""
    import peft
    import torch
    import transformers

    decides = {
        "options": options.as_json(only_that_matter=True),
        "model": name,
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "versions": [torch.__version__, transformers.__version__, peft.__version__],
        "cuda": torch.cuda.is_available(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _old_plan(file: Path) -> _Plan | None:
    """Read the plan of a killed run; a damaged one is none, and what it planned is done anew."""
    try:
        return _Plan(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_rows(run: RunDirectory, rows: Sequence[int]) -> None:
    schema = pa.schema([pa.field("row", pa.uint64(), nullable=False)])
    write_arrow(run.seed_rows, pa.table({"row": pa.array(rows, pa.uint64())}, schema=schema))

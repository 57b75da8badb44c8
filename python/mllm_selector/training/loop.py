"""The training loop: what is added to the `Trainer` of transformers.

That is a loss on answer tokens only, the same for every model and every micro-batch size, checkpoints that
count only when they are whole, and a terminal that stays quiet.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mllm_selector.artifacts import atomic_write, make_folder, sync, sync_folder, writing
from mllm_selector.checksums import Checksums
from mllm_selector.config import SeedOptions
from mllm_selector.errors import ModelError
from mllm_selector.progress import Progress
from mllm_selector.training.pretrained import number_format

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Collator", "TrainingLog", "Trainset", "answer_loss", "fine_tune"]

IGNORED = -100
"""The label of a token that has no part in the loss."""

_WARMUP = 0.03  # share of the steps, as in LLaVA's own recipe
_CHECKPOINTS = 10  # a killed run repeats at most this part of the training
_WHOLE = "whole"  # the checksums of a checkpoint, written last

Encoded = dict[str, "torch.Tensor"]


class Collator:
    """Makes a batch of encoded samples.

    What is per token is padded on the right: labels with -100, ids with the pad token, anything else with
    zeros. What belongs to images is laid along the first axis, padded with zeros where shapes differ; samples
    without images add nothing.

    Parameters
    ----------
    pad_token_id : int
        The tokenizer's pad token.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._padding = {"labels": IGNORED, "input_ids": pad_token_id}

    def __call__(self, samples: Sequence[Encoded]) -> Encoded:
        """Pad and stack samples as `families.chat.encode_for_training` returns them."""
        import torch

        length = max(len(sample["input_ids"]) for sample in samples)
        batch: Encoded = {}
        for name in dict.fromkeys(name for sample in samples for name in sample):
            values = [sample[name] for sample in samples if name in sample]
            # What counts images (`batch_num_images`) has one axis as well, but is shorter than its sample.
            if all(sample[name].shape == sample["input_ids"].shape for sample in samples if name in sample):
                padding = self._padding.get(name, 0)
                nothing = values[0].new_empty(0)
                padded = [_pad(sample.get(name, nothing), (length,), padding) for sample in samples]
                batch[name] = torch.stack(padded)
            else:
                shape = tuple(
                    max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)
                )
                batch[name] = torch.cat([_pad(value, (len(value), *shape), 0) for value in values])
        return batch


def _pad(value: torch.Tensor, shape: tuple[int, ...], padding: int) -> torch.Tensor:
    if value.shape == shape:
        return value
    padded = value.new_full(shape, padding)
    padded[tuple(slice(size) for size in value.shape)] = value
    return padded


def answer_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the negative log-likelihood of the answer tokens, in nats.

    Parameters
    ----------
    outputs : transformers.utils.ModelOutput
        With ``logits`` of shape (batch, length, vocabulary).
    labels : torch.Tensor of int64, shape (batch, length)
        Token ids at answer positions, -100 elsewhere.
    num_items_in_batch : int, optional
        What the sum is divided by: the answer tokens of all micro-batches of a step, so that the split into
        micro-batches does not change the gradient. Without it, those of this batch.
    """
    import torch

    targets = labels[:, 1:]
    is_answer = targets != IGNORED
    # Only the answer positions become float32; a batch's logits are the largest tensor of the training.
    logits = outputs.logits[:, :-1][is_answer].float()
    total = torch.nn.functional.cross_entropy(logits, targets[is_answer], reduction="sum")
    return total / (is_answer.sum() if num_items_in_batch is None else num_items_in_batch)


class Trainset(Protocol):
    """The samples of a training in the order in which they are seen, all epochs one after the other."""

    def __len__(self) -> int:
        """Return the number of samples seen in all."""

    def __getitem__(self, index: int) -> Encoded:
        """Encode the sample seen at a position."""


@dataclass(frozen=True)
class TrainingLog:
    """A file with one JSON object a line: ``event`` and what belongs to it.

    Attributes
    ----------
    path : Path
        The file.
    """

    path: Path

    def add(self, event: str, **fields: Any) -> None:
        """Append a line."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the whole lines; the last one of a killed process may be cut off."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Write the file anew with the lines that are wanted."""
        kept = [line for line in self.read() if wanted(line)]
        with atomic_write(self.path) as file:
            for line in kept:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def losses(self) -> list[float]:
        """Return the loss of every step."""
        return [line["loss"] for line in self.read() if line["event"] == "step"]


def fine_tune(
    model: Any,
    samples: Trainset,
    collate: Callable[[Sequence[Encoded]], Encoded],
    options: SeedOptions,
    checkpoints: Path,
    log: TrainingLog,
    progress: Progress,
) -> int:
    """Train what is trainable in a model, going on from the last whole checkpoint.

    AdamW without weight decay, a cosine schedule with a short warm-up, gradients clipped to norm 1. On CUDA
    in mixed precision with activation checkpointing. A run that was killed and goes on ends with the same
    weights as one that was not, on the same machine with deterministic kernels (the CPU's are).

    Parameters
    ----------
    model : peft.PeftModel
        As `attach_lora` returns it; changed in place.
    samples : Trainset
        What is seen, in order.
    collate : callable
        Makes a batch.
    options : SeedOptions
        Batch sizes, learning rate and seed.
    checkpoints : Path
        Folder of the checkpoints; it must belong to this very training.
    log : TrainingLog
        Gets a line a step.
    progress : Progress
        Told of every step.

    Returns
    -------
    int
        Optimiser steps in all.

    Raises
    ------
    ModelError
        If the loss is not finite, or the device's memory does not suffice.
    """
    import torch
    from transformers import PrinterCallback

    steps = math.ceil(len(samples) / options.seed_batch_size)
    make_folder(checkpoints)
    trainer = _trainer()(
        model=model,
        args=_training_arguments(options, checkpoints, steps),
        train_dataset=samples,
        data_collator=collate,
        compute_loss_func=answer_loss,
        callbacks=[_reporter(log, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    last = _last_whole(checkpoints, progress)
    done = 0 if last is None else _step(last)
    log.keep(lambda line: line["event"] != "step" or line["step"] <= done)
    progress.start("seed", steps, unit="steps")
    progress.update(done)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except torch.OutOfMemoryError as error:
        msg = (
            f"the device's memory does not suffice to train on {options.seed_micro_batch} samples at a time; "
            "lower --seed-micro-batch or --seed-max-tokens"
        )
        raise ModelError(msg) from error
    return steps


def _training_arguments(options: SeedOptions, folder: Path, steps: int) -> Any:
    from transformers import TrainingArguments

    precision = number_format()
    on_cuda = precision != "float32"
    # The name changed after transformers 5.17; the older one is to go in version 6.
    renamed = hasattr(TrainingArguments, "activation_checkpointing")
    checkpointing = "activation_checkpointing" if renamed else "gradient_checkpointing"
    # Non-reentrant checkpointing needs no gradient at the (frozen) input of a layer.
    extra = {checkpointing: on_cuda, f"{checkpointing}_kwargs": {"use_reentrant": False} if on_cuda else None}
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the samples come with their epochs laid out
        train_sampling_strategy="sequential",
        per_device_train_batch_size=options.seed_micro_batch,
        gradient_accumulation_steps=options.seed_batch_size // options.seed_micro_batch,
        learning_rate=options.seed_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(_WARMUP * steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=not on_cuda,
        dataloader_pin_memory=on_cuda,
        remove_unused_columns=False,
        seed=options.seed,
        save_strategy="steps",
        save_steps=math.ceil(steps / _CHECKPOINTS),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        **extra,
    )
    # With several GPUs in sight Trainer would wrap the model in DataParallel and multiply the batch size.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _reporter(log: TrainingLog, progress: Progress) -> Any:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc] # transformers has no types that mypy could read
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:
                return
            loss, rate = logs["loss"], logs["learning_rate"]
            if not math.isfinite(loss):
                msg = (
                    f"the loss is {loss} at step {state.global_step} of {state.max_steps}; lower "
                    "--seed-learning-rate, or try a model whose weights are sound"
                )
                raise ModelError(msg)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            log.add("step", step=state.global_step, loss=loss, learning_rate=rate, time=now)
            progress.update(state.global_step, loss=loss)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with writing(folder):
                sync(log.path)
                sync_folder(folder)
                sync(folder.parent)
            mark = Checksums(folder / _WHOLE)
            mark.seal([folder])

    return Reporter()


def _trainer() -> Any:
    from transformers import Trainer

    class CheckedTrainer(Trainer):  # type: ignore[misc] # as above
        def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
            with writing(Path(self.args.output_dir)):
                super()._save_checkpoint(*arguments, **named)

    return CheckedTrainer


def _last_whole(checkpoints: Path, progress: Progress) -> Path | None:
    """Return the latest whole checkpoint and remove those that are cut off or damaged."""
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        mark = folder / _WHOLE
        damages = Checksums(mark).damages([folder]) if mark.exists() else []
        for damage in damages:
            progress.note(f"seed: {damage}; going on from an earlier checkpoint")
        if mark.exists() and not damages:
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

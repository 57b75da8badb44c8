"""A small complete LLaVA-type model directory, made by code.

A byte-level BPE tokenizer trained on given texts, a CLIP vision tower, a Llama language model, a processor
and a chat template: everything that ``AutoProcessor`` and ``AutoModelForImageTextToText`` load, with no
download.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_selector.demo.scenes import Scene, draw_scene
from mllm_selector.families.chat import ChatEncoder, encode_for_training
from mllm_selector.pool import Sample
from mllm_selector.progress import Progress, SilentProgress
from mllm_selector.training import Collator, answer_loss, quiet

if TYPE_CHECKING:
    import torch

__all__ = ["CaptionLoss", "ModelSize", "make_model", "pretrain"]

IMAGE_TOKEN = "<image>"
_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# Every part of the assistant's answer, its end token included, is marked by {% generation %}, so that other
# trainers can get the mask of answer tokens from transformers.
_CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}
{{- eos_token -}}
{%- endgeneration -%}
{%- elif message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<image>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the model's parts.

    Attributes
    ----------
    hidden : int
        Width of the tower and of the language model; a multiple of 32, the width of a head.
    vision_layers, text_layers : int
        Transformer layers. As in LLaVA-1.5 the last vision layer's output is not used.
    image_side : int
        Pictures are resized to a square of this side, in pixels.
    patch_side : int
        Side of a patch in pixels; a picture becomes ``(image_side / patch_side) ** 2`` tokens.
    vocabulary : int
        Most entries of the tokenizer.
    """

    hidden: int = 128
    vision_layers: int = 3
    text_layers: int = 3
    image_side: int = 96
    patch_side: int = 12
    vocabulary: int = 1024


def make_model(
    directory: Path, texts: Iterable[str], *, size: ModelSize = ModelSize(), seed: int = 0
) -> None:
    """Write a model directory with random weights.

    Parameters
    ----------
    directory : Path
        Where it goes; made if it is not there.
    texts : iterable of str
        What the tokenizer is trained on.
    size : ModelSize
        Sizes of the model's parts.
    seed : int
        Decides the weights.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    processor = _make_processor(texts, size)
    tokenizer = processor.tokenizer
    heads = size.hidden // 32
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.hidden,
            intermediate_size=2 * size.hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=heads,
            image_size=size.image_side,
            patch_size=size.patch_side,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.text_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            # 1 / sqrt(fan-in): with the library's 0.02 a model this narrow starts with almost equal logits.
            initializer_range=size.hidden**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(size.image_side // size.patch_side) ** 2,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlavaForConditionalGeneration(config).save_pretrained(directory)
        processor.save_pretrained(directory)


@dataclass(frozen=True)
class CaptionLoss:
    """Loss on scenes that the model has not seen, in nats per answer token.

    Attributes
    ----------
    right : float
        With each scene's own picture.
    wrong : float
        With the picture of another scene: how well the text alone can be guessed.
    """

    right: float
    wrong: float


def pretrain(
    directory: Path,
    *,
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> CaptionLoss:
    """Train all weights of a model on captions of scenes drawn by code.

    AdamW with a short warm-up and a cosine schedule; a new scene for every sample. On one thread: layers this
    small gain little from more, lose much on a busy machine, and give other sums with another number of them.

    Parameters
    ----------
    directory : Path
        A directory that `make_model` wrote; its weights are replaced.
    steps, batch_size : int
        Optimiser steps and scenes per step.
    learning_rate : float
        Peak of the schedule.
    seed : int
        Decides the scenes.
    progress : Progress, optional
        What to report to; silent by default.

    Returns
    -------
    CaptionLoss
        On held-out scenes, after training.
    """
    with quiet(), _one_thread():
        return _pretrain(directory, steps, batch_size, learning_rate, seed, progress or SilentProgress())


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pretrain(
    directory: Path, steps: int, batch_size: int, learning_rate: float, seed: int, progress: Progress
) -> CaptionLoss:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, steps // 8)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1 / warm_up, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps - warm_up)),
        ],
        milestones=[warm_up],
    )
    chat = ChatEncoder.of(processor)
    random = np.random.Generator(np.random.Philox(seed))
    held_out = _batch(chat, processor, random, 64)
    progress.start("demo", steps, unit="steps")
    for step in range(steps):
        inputs = _batch(chat, processor, random, batch_size)
        labels = inputs.pop("labels")
        loss = answer_loss(model(**inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call] # so in torch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        progress.update(step + 1, loss=loss.item())
    model.save_pretrained(directory)
    result = _caption_loss(model.eval(), held_out)
    progress.finish(
        f"{steps} steps, caption loss {result.right:.3f}, with a wrong picture {result.wrong:.3f}"
    )
    return result


def _caption_loss(model: Any, inputs: dict[str, torch.Tensor]) -> CaptionLoss:
    import torch

    labels = inputs.pop("labels")
    others = {**inputs, "pixel_values": inputs["pixel_values"].roll(1, dims=0)}
    with torch.no_grad():
        right, wrong = (answer_loss(model(**batch), labels).item() for batch in (inputs, others))
    return CaptionLoss(right, wrong)


def _batch(
    chat: ChatEncoder, processor: Any, random: np.random.Generator, size: int
) -> dict[str, torch.Tensor]:
    samples = [_encoded(chat, processor, draw_scene(random), random) for _ in range(size)]
    return Collator(processor.tokenizer.pad_token_id)(samples)


def _encoded(
    chat: ChatEncoder, processor: Any, scene: Scene, random: np.random.Generator
) -> dict[str, torch.Tensor]:
    messages: list[tuple[str, str]] = []
    for question, answer in scene.turns(random):
        mark = "" if messages else IMAGE_TOKEN
        messages += [("user", mark + question), ("assistant", answer)]
    picture = scene.picture()
    # The picture is drawn, whatever the sample says of where it lies.
    sample = Sample(row=0, id="", source="", messages=tuple(messages), images=(b"",))
    return encode_for_training(processor, sample, lambda _: picture, chat)


def _make_processor(texts: Iterable[str], size: ModelSize) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=[_PAD, _BOS, _EOS, IMAGE_TOKEN, *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=_PAD, bos_token=_BOS, eos_token=_EOS, padding_side="right"
    )
    side = {"height": size.image_side, "width": size.image_side}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=size.patch_side,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which the strategy above drops again
        image_token=IMAGE_TOKEN,
        chat_template=_CHAT_TEMPLATE,
    )

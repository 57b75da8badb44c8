"""A small complete LLaVA-type model directory, made by code.

A byte-level BPE tokenizer trained on given texts, a CLIP vision tower, a Llama language model, a processor and a
chat template: everything that ``AutoProcessor`` and ``AutoModelForImageTextToText`` load, with no download.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_selector.demo.scenes import draw_scene
from mllm_selector.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = ["ModelSize", "caption_loss", "make_model", "pretrain"]

IMAGE_TOKEN = "<image>"
_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# Every part of the assistant's answer, its end token included, is marked by {% generation %}, so that
# transformers can return the mask of answer tokens.
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
    vision_layers: int = 4
    text_layers: int = 4
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def _make_processor(texts: Iterable[str], size: ModelSize) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

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
        image_processor=CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=size.patch_side,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the tower's class token, which the strategy above drops again
        image_token=IMAGE_TOKEN,
        chat_template=_CHAT_TEMPLATE,
    )

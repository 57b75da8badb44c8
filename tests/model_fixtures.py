"""Tiny vision-language models, built by code: a tokenizer trained on the spot, random weights.

Weights are drawn with a standard deviation of 1/sqrt(fan-in), so that losses are far from zero and depend on
every layer; the default initialisation of transformers makes a tiny model nearly uniform.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from mllm_selector.artifacts import write_arrow
from mllm_selector.config import ExportOptions
from mllm_selector.pool import POOL_SCHEMA, POOL_VERSION
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import export

CORPUS = [
    "There are three yellow squares and two blue circles in the left box.",
    "How many black triangles touch the wall? Answer with one word.",
    "Is there a box with exactly one item? yes no true false",
    "What is shown in the image? A chat between a curious human and an artificial intelligence assistant.",
    "USER: ASSISTANT: user assistant system You are a helpful assistant.",
]

# The template of the llava-hf models: images first, then the text, a space after each turn.
TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(special: tuple[str, ...], *, begin: str | None, end: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `<pad>` and the given special tokens."""
    model = Tokenizer(BPE())
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", *special],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    if begin is not None:
        model.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, model.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token=begin, eos_token=end, padding_side="right"
    )


def clip_llama(folder: Path, **config: object) -> Path:
    """LLaVA 1.5 in small: CLIP tower, Llama text, the class token dropped, 16 tokens an image."""
    text = tokenizer(("<s>", "</s>", "<image>"), begin="<s>", end="</s>")
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        text,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    language = LlamaConfig(vocab_size=len(text), **TINY_TEXT)
    defaults = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    return _save(folder, vision, language, processor, {**defaults, **config})


def siglip_qwen2(folder: Path) -> Path:
    """A SigLIP tower without class token and a Qwen2 text model with a ChatML template, 9 tokens an image."""
    text = tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"), begin=None, end="<|im_end|>")
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 30, "width": 30}),
        text,
        patch_size=10,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHATML_TEMPLATE,
    )
    vision = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=30,
        patch_size=10,
    )
    language = Qwen2Config(vocab_size=len(text), **TINY_TEXT)
    config = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    return _save(folder, vision, language, processor, config)


def all_layers(folder: Path) -> Path:
    """CLIP with its class token kept and the features of two layers side by side."""
    clip_llama(folder, vision_feature_layer=[-2, 1], vision_feature_select_strategy="full")
    settings = folder / "processor_config.json"
    content = json.loads(settings.read_text()) | {"vision_feature_select_strategy": "full"}
    settings.write_text(json.dumps(content))
    return folder


@dataclass(frozen=True)
class Exported:
    """A model directory, its `onnx` folder, and what the export stage returned."""

    model: Path
    graphs: Path
    counts: dict[str, Any]


MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "clip-llama": (clip_llama, "float32"),
    "siglip-qwen2": (siglip_qwen2, "float32"),
    "layers-float16": (all_layers, "float16"),
}

_FOLDER = tempfile.TemporaryDirectory(prefix="mllm-selector-tests-")


@functools.cache
def export_once(name: str) -> Exported:
    """Build and export one of `MODELS`; an export takes ten seconds, so all test files share it."""
    build, precision = MODELS[name]
    folder = Path(_FOLDER.name) / name
    model = build(folder / "model")
    with RunDirectory(folder / "run") as run:
        run.stages["seed"] = done(counts={"model": str(model)})
        counts = export.run(run, ExportOptions(precision=precision), SilentProgress())
    return Exported(model, run.onnx, counts)


def _save(
    folder: Path, vision: object, language: object, processor: LlavaProcessor, config: dict[str, object]
) -> Path:
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=language, image_token_id=processor.image_token_id, **config
        )
    )
    redraw(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def redraw(model: torch.nn.Module) -> None:
    """Draw every matrix anew with a standard deviation of 1/sqrt(fan-in)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture of random pixels, width and height in `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_pool(run: Path, samples: Sequence[tuple[Sequence[tuple[str, str]], Sequence[str | bytes]]]) -> None:
    """Write `pool.arrow` of a run directory: messages and images (path or bytes) of each sample."""
    records = [
        {
            "id": f"s{index}",
            "source": "made",
            "messages": [{"role": role, "content": content} for role, content in messages],
            "images": [
                {"path": None, "bytes": image} if isinstance(image, bytes) else {"path": image, "bytes": None}
                for image in images
            ],
            "file": 0,
            "offset": 0,
            "length": 0,
        }
        for index, (messages, images) in enumerate(samples)
    ]
    schema = POOL_SCHEMA.with_metadata(
        {"mllm_selector.pool_version": POOL_VERSION, "mllm_selector.format": "llava-json"}
    )
    write_arrow(run / "pool.arrow", pa.Table.from_pylist(records, schema=schema))


def done(**record: object) -> StageRecord:
    """The record of a finished stage."""
    return StageRecord(state="done", key="made", **record)

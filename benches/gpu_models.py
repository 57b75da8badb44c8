"""LLaVA- and Qwen2.5-VL-shaped models with random weights, and a pool of realistic lengths, made by code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from mllm_selector.families.chat import FALLBACK_TEMPLATE

__all__ = ["MODELS", "PIXELS", "make_model", "make_pool"]

TEXT = "there is a red blue box with two small circles near the wall how many yes no what"
WORDS = np.array(TEXT.split(" "))
SPECIAL = ("<pad>", "</s>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")

PIXELS = {"tiny": 56, "full": 336}
"""Side of a picture by size of the model."""

QWEN2_HALF_B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 8192,
}
QWEN25_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 8192,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
    "max_position_embeddings": 8192,
}
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
CLIP_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
QWEN_TOWER_TINY = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2}


def llava(size: str) -> tuple[Any, Any]:
    """Return CLIP ViT-L/14 at 336 pixels with the text of Qwen2-0.5B, 0.9 B parameters; or a tiny one."""
    pixels = PIXELS[size]
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(
            size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}
        ),
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=FALLBACK_TEMPLATE.replace("image_token", "'<image>'"),
    )
    tower = CLIP_TINY if size == "tiny" else CLIP_LARGE
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(image_size=pixels, patch_size=14, **tower),
        text_config=hf.Qwen2Config(**(TINY if size == "tiny" else QWEN2_HALF_B)),
        image_token_id=processor.image_token_id,
    )
    return config, processor


def qwen2_5_vl(size: str) -> tuple[Any, Any]:
    """Return the shape of Qwen2.5-VL-3B, 3.8 B parameters; or a tiny one."""
    words = tokenizer()
    area = PIXELS[size] ** 2
    images = hf.Qwen2VLImageProcessorPil(size={"shortest_edge": area // 4, "longest_edge": 2 * area})
    marked = "'<|vision_start|><|image_pad|><|vision_end|>'"
    template = FALLBACK_TEMPLATE.replace("image_token", marked)
    processor = hf.Qwen2_5_VLProcessor(images, words, hf.Qwen2VLVideoProcessor(), chat_template=template)
    tiny = size == "tiny"
    text = TINY if tiny else QWEN25_3B
    head = text["hidden_size"] // text["num_attention_heads"]
    sections = [head // 8, head // 16 * 3, head // 2 - head // 8 - head // 16 * 3]
    vision = {
        **(QWEN_TOWER_TINY if tiny else QWEN_TOWER),
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1] if tiny else [7, 15, 23, 31],
    }
    marks = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    marks |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        },
        **{name: words.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()},
    )
    return config, processor


MODELS = {"llava": llava, "qwen2_5_vl": qwen2_5_vl}
"""Functions from ``tiny`` or ``full`` to a model's configuration and processor."""


def tokenizer() -> Any:
    model = Tokenizer(BPE())
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=1000,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT] * 2, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>")


def make_model(folder: Path, name: str, size: str) -> None:
    """Write a model; matrices have a standard deviation of 1/sqrt(fan-in), so losses are far from uniform."""
    config, processor = MODELS[name](size)
    model = hf.AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_pool(folder: Path, count: int, pixels: int) -> tuple[Path, Path]:
    """Write a pool like LLaVA's in lengths: 90 % with an image of its own, answers of 1 to 250 words."""
    draw = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(count):
        name = f"{index}.jpg"
        shown = draw.random() < 0.9
        if shown and not (images / name).exists():
            noise = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((pixels * 4 // 3, pixels)).save(images / name, quality=90)
        question = " ".join(draw.choice(WORDS, draw.integers(5, 60)))
        answer = " ".join(draw.choice(WORDS, int(np.exp(draw.uniform(0, np.log(250))))))
        turns = [
            {"from": "human", "value": "<image>\n" * shown + question},
            {"from": "gpt", "value": answer},
        ]
        records.append({"id": str(index), "conversations": turns} | ({"image": name} if shown else {}))
    pool = folder / "pool.json"
    pool.write_text(json.dumps(records))
    return pool, images

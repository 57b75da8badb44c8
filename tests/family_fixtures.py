"""A tiny model of every family, with its own processor, built by code and exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from model_fixtures import CHATML_TEMPLATE, LLAVA_TEMPLATE, redraw, tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
TOWER = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
PATCHES = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 32,
}
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_SPECIAL += ("<|vision_start|>", "<|vision_end|>")
QWEN_TEMPLATE = CHATML_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST]{% endif %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% if message.role == 'user' %}[/INST]{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


def text_config(kind: type, words: Any, **changes: Any) -> Any:
    return kind(vocab_size=len(words), **{**TEXT, **changes})


def save(folder: Path, model: torch.nn.Module, processor: Any) -> Path:
    redraw(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava_next(folder: Path) -> Path:
    """CLIP and Llama; tiles of 32 pixels, 16 features each."""
    words = tokenizer(("<s>", "</s>", "<image>"), begin="<s>", end="</s>")
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=pinpoints,
        ),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8),
        text_config=text_config(hf.LlamaConfig, words),
        image_token_id=processor.image_token_id,
        image_grid_pinpoints=pinpoints,
    )
    return save(folder, hf.LlavaNextForConditionalGeneration(config), processor)


def llava_onevision(folder: Path) -> Path:
    """SigLIP and Qwen2; at most two tiles' worth of features, so that larger fields are shrunk."""
    words = tokenizer(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"), begin=None, end="<|im_end|>"
    )
    pinpoints = [[30 * rows, 30 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessorPil(size={"height": 30, "width": 30}, image_grid_pinpoints=pinpoints),
        words,
        hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=CHATML_TEMPLATE,
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=30, patch_size=10, vision_use_head=False),
        text_config=text_config(hf.Qwen2Config, words),
        image_token_id=processor.image_token_id,
        video_token_id=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",
    )
    return save(folder, hf.LlavaOnevisionForConditionalGeneration(config), processor)


def _qwen(
    folder: Path,
    processor: type,
    model: type,
    config: type,
    vision: Any,
    patch: int,
    **text: Any,
) -> Path:
    words = tokenizer(QWEN_SPECIAL, begin=None, end="<|im_end|>")
    factor = (2 * patch) ** 2
    pixels = {"shortest_edge": 4 * factor, "longest_edge": 20 * factor}
    images = hf.Qwen2VLImageProcessorPil(size=pixels, patch_size=patch, merge_size=2)
    videos = hf.Qwen2VLVideoProcessor if "2" in processor.__name__ else hf.Qwen3VLVideoProcessor
    whole = processor(images, words, videos(), chat_template=QWEN_TEMPLATE)
    names = {
        name: words.convert_tokens_to_ids(f"<|{mark}|>")
        for name, mark in (
            ("image_token_id", "image_pad"),
            ("video_token_id", "video_pad"),
            ("vision_start_token_id", "vision_start"),
            ("vision_end_token_id", "vision_end"),
        )
    }
    sections = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    settings = config(
        vision_config=vision,
        text_config={
            "vocab_size": len(words),
            **TEXT,
            "rope_parameters": sections,
            "eos_token_id": None,
            **text,
        },
        **names,
    )
    return save(folder, model(settings), whole)


def qwen2_vl(folder: Path) -> Path:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    parts = (hf.Qwen2VLProcessor, hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig)
    return _qwen(folder, *parts, vision, 8)


def qwen2_5_vl(folder: Path) -> Path:
    """One block over windows of 2 x 2 feature rows, one over the picture."""
    vision = {**PATCHES, "window_size": 32, "fullatt_block_indexes": [1]}
    parts = (hf.Qwen2_5_VLProcessor, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig)
    return _qwen(folder, *parts, vision, 8)


def qwen3_vl(folder: Path) -> Path:
    """Features of two depths, 5 x 5 learned positions."""
    vision = {**LEARNED, "deepstack_visual_indexes": [0, 1]}
    parts = (hf.Qwen3VLProcessor, hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig)
    return _qwen(folder, *parts, vision, 8, num_hidden_layers=3, head_dim=8)


LEARNED = {**PATCHES, "num_position_embeddings": 25}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}


def qwen3_vl_moe(folder: Path) -> Path:
    vision = {**LEARNED, "deepstack_visual_indexes": [0]}
    parts = (hf.Qwen3VLProcessor, hf.Qwen3VLMoeForConditionalGeneration, hf.Qwen3VLMoeConfig)
    return _qwen(folder, *parts, vision, 8, head_dim=8, **EXPERTS)


def qwen3_5(folder: Path) -> Path:
    """One layer of linear attention, one of full attention."""
    parts = (hf.Qwen3VLProcessor, hf.Qwen3_5ForConditionalGeneration, hf.Qwen3_5Config)
    return _qwen(folder, *parts, LEARNED, 8, **LINEAR)


def qwen3_5_moe(folder: Path) -> Path:
    parts = (hf.Qwen3VLProcessor, hf.Qwen3_5MoeForConditionalGeneration, hf.Qwen3_5MoeConfig)
    return _qwen(folder, *parts, LEARNED, 8, **LINEAR, **EXPERTS)


def _tiled(folder: Path, name: str) -> Path:
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>")
    words = tokenizer((*special, *marks), begin=None, end="<end_of_utterance>")
    images = getattr(hf, f"{name}ImageProcessorPil")(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 32}
    )
    videos = () if name == "Idefics3" else (hf.SmolVLMVideoProcessor(),)
    template = CHATML_TEMPLATE.replace("<|im_end|>", "<end_of_utterance>")
    processor = getattr(hf, f"{name}Processor")(
        images, words, *videos, image_seq_len=4, chat_template=template
    )
    vision = getattr(hf, f"{name}VisionConfig")(**TOWER, image_size=32, patch_size=8)
    config = getattr(hf, f"{name}Config")(
        vision_config=vision,
        text_config=text_config(hf.LlamaConfig, words, pad_token_id=0),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return save(folder, getattr(hf, f"{name}ForConditionalGeneration")(config), processor)


def smolvlm(folder: Path) -> Path:
    """Tiles of 32 pixels, 4 feature rows each, the longer side 3 tiles."""
    return _tiled(folder, "SmolVLM")


def idefics3(folder: Path) -> Path:
    return _tiled(folder, "Idefics3")


def mistral3(folder: Path, text: type = hf.MistralConfig, **of_text: Any) -> Path:
    """Patches of 8 pixels, four of which make a feature row; pictures of at most 96."""
    marks = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    words = tokenizer(("<s>", "</s>", "[INST]", "[/INST]", *marks), begin="<s>", end="</s>")
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size={"height": 8, "width": 8})
    processor = hf.PixtralProcessor(
        images, words, patch_size=8, spatial_merge_size=2, chat_template=MISTRAL_TEMPLATE
    )
    head = TOWER["hidden_size"] // TOWER["num_attention_heads"]
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**TOWER, head_dim=head, image_size=96, patch_size=8),
        text_config=text_config(text, words, head_dim=8, sliding_window=None, **of_text),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return save(folder, hf.Mistral3ForConditionalGeneration(config), processor)


def ministral3(folder: Path) -> Path:
    """Queries that grow with the position, rotary positions stretched by YaRN."""
    positions = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.1,
    }
    return mistral3(folder, hf.Ministral3Config, rope_parameters=positions)


def _paligemma(folder: Path, text: Any) -> Path:
    words = tokenizer(("<bos>", "<eos>", "<image>"), begin="<bos>", end="<eos>")
    images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, words)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        text_config=text(len(words)),
        image_token_id=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    return save(folder, hf.PaliGemmaForConditionalGeneration(config), processor)


def paligemma(folder: Path) -> Path:
    return _paligemma(folder, lambda size: hf.GemmaConfig(vocab_size=size, **TEXT, head_dim=8))


def paligemma2(folder: Path) -> Path:
    """Gemma 2: capped logits and attention, a sliding window that long samples leave."""
    return _paligemma(
        folder,
        lambda size: hf.Gemma2Config(
            vocab_size=size, **TEXT, head_dim=8, sliding_window=24, final_logit_softcapping=3.0
        ),
    )


def internvl(folder: Path, text: type = hf.Qwen2Config, **of_text: Any) -> Path:
    """Tiles of 32 pixels, 4 feature rows each, at most 4 tiles beside the whole."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    words = tokenizer(special, begin=None, end="<|im_end|>")
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = _named(words, named)
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4),
        words,
        hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=CHATML_TEMPLATE.replace("<image>", "<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**TOWER, image_size=[32, 32], patch_size=[8, 8]),
        text_config=text_config(text, words, **of_text),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return save(folder, hf.InternVLForConditionalGeneration(config), processor)


def internvl_moe(folder: Path) -> Path:
    return internvl(folder, hf.Qwen3MoeConfig, head_dim=8, **EXPERTS)


def gemma3(folder: Path) -> Path:
    """Sliding windows of 16 tokens in one of the layers, 4 feature rows a picture."""
    special = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    images = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    words = tokenizer((*special, *images), begin="<bos>", end="<eos>")
    words = _named(words, dict(zip(("boi_token", "eoi_token", "image_token"), images, strict=True)))
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        words,
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )
    ids = {
        f"{name}_index": words.convert_tokens_to_ids(token)
        for name, token in (
            ("boi_token", "<start_of_image>"),
            ("eoi_token", "<end_of_image>"),
            ("image_token", "<image_soft_token>"),
        )
    }
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        text_config=text_config(
            hf.Gemma3TextConfig,
            words,
            head_dim=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        **ids,
    )
    return save(folder, hf.Gemma3ForConditionalGeneration(config), processor)


def _named(words: Any, names: dict[str, str]) -> Any:
    """Give a tokenizer attributes that name special tokens."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        pad_token=words.pad_token,
        bos_token=words.bos_token,
        eos_token=words.eos_token,
        padding_side="right",
        extra_special_tokens=names,
    )


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "mistral3": mistral3,
    "ministral3": ministral3,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "internvl": internvl,
    "gemma3": gemma3,
}

TORCH_ONLY: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "internvl_moe": internvl_moe,
}
"""Models that do not become graphs."""

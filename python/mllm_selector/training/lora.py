"""Where LoRA goes in a vision-language model, and how it is saved and merged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mllm_selector.artifacts import atomic_folder, writing
from mllm_selector.errors import ModelError
from mllm_selector.training.pretrained import number_format

__all__ = ["attach_lora", "merge", "save_adapter"]

# Names that transformers gives to what joins the vision tower to the language model.
_PROJECTORS = ("multi_modal_projector", "connector", "aligner", "merger")


def attach_lora(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """Put LoRA matrices beside the linear layers of the language model.

    The projector between vision tower and language model, where there is one, is trained in full; everything
    else is frozen. What is trained is float32 whatever the model's number format.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model; changed in place.
    rank, alpha : int
        Rank of the matrices; their product is scaled by ``alpha / rank``.
    seed : int
        Decides the first weights.

    Returns
    -------
    peft.PeftModel
        The model with its adapter.

    Raises
    ------
    ModelError
        If the model has no language model of its own, or that has no linear layers.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=_language_layers(model),
        modules_to_save=_projectors(model) or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _language_layers(model: Any) -> str:
    """Return a regular expression for the names of the language model's linear layers."""
    import torch

    decoder, head = model.get_decoder(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    sees = any(isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d) for module in decoder.modules())
    if decoder is model or decoder not in names or sees:
        msg = (
            f"{type(model).__name__} has no language model apart from its vision tower, "
            "so LoRA cannot be placed; tune it elsewhere and pass it with --seed-model"
        )
        raise ModelError(msg)
    layers = {
        name.rpartition(".")[2]
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    if not layers:
        msg = f"the language model of {type(model).__name__} has no linear layers to put LoRA on"
        raise ModelError(msg)
    return rf"{re.escape(names[decoder])}\.(.*\.)?({'|'.join(map(re.escape, sorted(layers)))})"


def _projectors(model: Any) -> list[str]:
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in _PROJECTORS]


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter as safetensors; the folder is whole or not there."""
    with writing(folder), atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)


def merge(model: Any, processor: Any, folder: Path) -> None:
    """Merge the adapter into the model and write it with its processor; the folder is whole or not there.

    Parameters
    ----------
    model : peft.PeftModel
        Taken apart; not to be used afterwards.
    processor : transformers.ProcessorMixin
        Written beside the model.
    folder : Path
        A model directory as ``save_pretrained`` writes it.

    Raises
    ------
    ModelError
        If a merged matrix is not finite.
    """
    import torch

    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        msg = f"merging the adapter: {error}; lower --seed-learning-rate"
        raise ModelError(msg) from error
    merged.to(getattr(torch, number_format()))  # what was trained is float32, the rest may not be
    merged.config.use_cache = True  # Trainer switched it off
    with writing(folder), atomic_folder(folder) as temporary:
        merged.save_pretrained(temporary)
        processor.save_pretrained(temporary)

"""Pretrained models for training: what they need installed, and how they are loaded."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm_selector.errors import MissingPackageError, ModelError, UsageError
from mllm_selector.families.loading import check_weights, load_processor, quiet_transformers, read_config

__all__ = ["check_model_directory", "load_pretrained", "need_packages", "number_format", "quiet"]


def need_packages() -> None:
    """Check that the packages of the ``train`` extra are installed.

    Raises
    ------
    MissingPackageError
        If one is not.
    """
    needed = ("torch", "transformers", "peft", "accelerate", "safetensors")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        msg = (
            f"seed fine-tuning needs {', '.join(missing)}: pip install 'mllm-selector[train]'; "
            "or name a tuned model with --seed-model"
        )
        raise MissingPackageError(msg)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, log lines and warnings of transformers and its companions."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_model_directory(directory: Path, option: str) -> None:
    """Check that a directory can hold a model, without loading it.

    Parameters
    ----------
    directory : Path
        A directory as ``save_pretrained`` writes it.
    option : str
        The option that named it, for the error message.

    Raises
    ------
    UsageError
        If it is no directory.
    ModelError
        If it has no ``config.json`` or no safetensors weights.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        msg = f"{option}: {directory} {what}; name a model directory as save_pretrained writes it"
        raise UsageError(msg)
    read_config(directory)
    check_weights(directory)


def load_pretrained(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a pretrained model for training, and its processor.

    Parameters
    ----------
    name : str
        A model directory or a hub id.
    trust_remote_code : bool
        Whether code that comes with the model may run.

    Returns
    -------
    model : transformers.PreTrainedModel
        On the CPU, in the number format of `number_format`.
    processor : transformers.ProcessorMixin

    Raises
    ------
    UsageError
        If `name` is a path at which there is no directory.
    ModelError
        If it cannot be loaded, or its weights are pickled or incomplete.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    path = Path(name).expanduser()
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        check_model_directory(path, "--model")
        name = str(path)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=getattr(torch, number_format()),
            output_loading_info=True,
        )
    # The loaders raise whatever the damage leads them to: OSError (no such model, no network, cut-off file),
    # ValueError (unknown architecture, remote code), KeyError, ImportError, RuntimeError, SafetensorError.
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        msg = (
            f"--model: {name} cannot be loaded as an image-text-to-text model "
            f"({type(error).__name__}: {reason}); name a model directory as save_pretrained writes it, "
            "with safetensors weights, or a hub id that can be reached or is in the cache"
        )
        raise ModelError(msg) from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        msg = f"--model: the weights of {name} lack {len(info['missing_keys'])} tensors ({some}, ...)"
        raise ModelError(msg)
    return model, load_processor(name, trust_remote_code=trust_remote_code)


def number_format() -> str:
    """Return the number format of frozen weights: bfloat16 on CUDA, else float16; float32 on the CPU."""
    import torch

    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"

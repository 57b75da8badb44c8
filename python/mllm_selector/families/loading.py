"""Reading models and processors, quietly and without running anything that came with them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm_selector.errors import MissingPackageError, ModelError, UsageError

__all__ = [
    "check_exportable",
    "check_weights",
    "load_config",
    "load_model",
    "load_processor",
    "quiet_transformers",
    "read_config",
    "to_precision",
]

# Of transformers.models: where a class is, and where it is looked for.
_NEED_NO_TORCHVISION = (
    ("AutoImageProcessor", "auto.image_processing_auto", ""),
    ("Idefics3ImageProcessorPil", "idefics3.image_processing_pil_idefics3", ".models.idefics3"),
    ("SmolVLMImageProcessorPil", "smolvlm.image_processing_pil_smolvlm", ".models.smolvlm"),
)

# Kinds of layers that the exporter takes.
_ATTENTION = {"full_attention", "sliding_attention"}


def read_config(model: str | Path) -> dict[str, Any]:
    """Read a model's ``config.json`` and nothing else.

    Parameters
    ----------
    model : str or Path
        A model directory, or a hub id, of which only this file is fetched.

    Raises
    ------
    ModelError
        If there is no such file, or it is not a JSON object.
    MissingPackageError
        If `model` is no directory and huggingface_hub is not installed.
    """
    folder = Path(model)
    if folder.is_file():
        msg = f"{folder} is a file; name a Hugging Face model directory or a hub id"
        raise ModelError(msg)
    path = folder / "config.json" if folder.is_dir() else _fetch(str(model), "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{folder} holds no config.json; name a Hugging Face model directory or a hub id"
        raise ModelError(msg) from None
    except ValueError as error:
        msg = f"{path} is not JSON ({error}); get the model again"
        raise ModelError(msg) from error
    if not isinstance(config, dict):
        msg = f"{path} is not a JSON object; get the model again"
        raise ModelError(msg)
    return config


def load_config(model: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Read a model's ``config.json`` with the defaults of its class filled in.

    Returns
    -------
    transformers.PreTrainedConfig

    Raises
    ------
    ModelError
        If there is no such file, or transformers cannot read it.
    MissingPackageError
        If transformers is not installed.
    """
    read_config(model)  # which says more of a directory that is not there, or a file that is no JSON
    with quiet_transformers() as transformers:
        try:
            return transformers.AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, TypeError, KeyError) as error:
            msg = f"{model}: transformers {transformers.__version__} cannot read its config.json ({error})"
            raise ModelError(msg) from error


def check_exportable(model: str | Path, *, trust_remote_code: bool = False) -> None:
    """Refuse models that do not become ONNX graphs, from their configuration alone.

    Raises
    ------
    UsageError
        If the model's text part has experts, or layers other than attention.
    ModelError, MissingPackageError
        See `load_config`.
    """
    text = load_config(model, trust_remote_code=trust_remote_code).get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENTION)
    if others:
        why = f"goes through the tokens in steps ({', '.join(others)})"
    elif getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        why = "has experts, and each token chooses its own"
    else:
        return
    msg = f"--engine onnx: {model} cannot become graphs, since its text model {why}; use --engine torch"
    raise UsageError(msg)


def load_processor(model: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load a model's processor, its image processor in the Pillow variant where there is one.

    The variants of transformers differ by up to 0.015 in a pixel's value, so one is used throughout. Pillow's
    needs no torch; families without it keep what transformers loads.

    Parameters
    ----------
    model : str or Path
        A model directory or a hub id.
    trust_remote_code : bool
        Whether Python code that comes with the model may run.

    Returns
    -------
    transformers.ProcessorMixin

    Raises
    ------
    ModelError
        If the model has no processor that can be loaded.
    MissingPackageError
        If transformers is not installed.
    """
    with quiet_transformers() as transformers:
        try:
            processor = transformers.AutoProcessor.from_pretrained(
                str(model), trust_remote_code=trust_remote_code
            )
            if getattr(processor, "image_processor", None) is not None:
                processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
                    str(model), backend="pil", trust_remote_code=trust_remote_code
                )
        except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
            msg = (
                f"{model}: its processor cannot be loaded ({error}); the directory needs the files that "
                "processor.save_pretrained(DIR) writes"
            )
            raise ModelError(msg) from error
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        msg = f"{model}: its processor has no tokenizer or no image processor, so it is no image-text model"
        raise ModelError(msg)
    return processor


def load_model(
    model: str | Path,
    *,
    precision: str = "float32",
    attention: str | dict[str, str] | None = "eager",
    trust_remote_code: bool = False,
) -> Any:
    """Load a model for inference into the CPU's memory.

    Parameters
    ----------
    model : str or Path
        A model directory or a hub id with weights as safetensors.
    precision : str
        ``float32``, ``float16`` or ``bfloat16``.
    attention : str, dict of str to str, or None
        Variant of the attention; ``eager`` is written out. A dict gives one for each part of the model's
        configuration, "" being the rest. None: what transformers chooses by itself.
    trust_remote_code : bool
        Whether Python code that comes with the model may run.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    ModelError
        If the weights are pickled or cannot be loaded.
    MissingPackageError
        If torch or transformers is not installed.
    """
    check_weights(Path(model))
    with quiet_transformers() as transformers:
        try:
            import torch
        except ImportError as error:
            msg = "loading a model needs torch: pip install 'mllm-selector[train]'"
            raise MissingPackageError(msg) from error
        try:
            loaded = transformers.AutoModelForImageTextToText.from_pretrained(
                str(model),
                dtype=getattr(torch, precision),
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
            msg = f"{model}: the model cannot be loaded ({error})"
            raise ModelError(msg) from error
    return loaded.eval()


def to_precision(model: Any, precision: str) -> Any:
    """Convert a model's weights in place, as ``from_pretrained(dtype=...)`` would have loaded them.

    The frequencies of rotary positions stay float32: in half precision, the angle of the two-thousandth token
    would be off by half a radian.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    precision : str
        ``float32``, ``float16`` or ``bfloat16``.

    Returns
    -------
    transformers.PreTrainedModel
        The same model.
    """
    import torch

    kept = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    model.to(getattr(torch, precision))
    for module, name, buffer in kept:
        module.register_buffer(name, buffer, persistent=False)
    return model


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Import transformers and keep its log and progress bars off the terminal inside the block.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    # Read when transformers is first imported: without torch it would advise to install it, which scoring
    # does not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        import transformers
    except ImportError as error:
        msg = "reading a model needs transformers: pip install 'mllm-selector[cpu]' (or [gpu], [train])"
        raise MissingPackageError(msg) from error
    _mend_image_processors(transformers)
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _mend_image_processors(transformers: Any) -> None:
    """Let transformers 5.17 find Pillow's image processors without torchvision, as 5.18 does.

    It refuses classes whose file names torchvision's base class, if only in a docstring.
    """
    if not transformers.__version__.startswith("5.17.") or transformers.utils.is_torchvision_available():
        return
    for name, place, asked in _NEED_NO_TORCHVISION:
        found = getattr(importlib.import_module(f"transformers.models.{place}"), name)
        setattr(importlib.import_module(f"transformers{asked}"), name, found)


def check_weights(folder: Path) -> None:
    """Check that a model directory has its weights as safetensors; a hub id is not looked at.

    Raises
    ------
    ModelError
        If it has none, or pickled ones only.
    """
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(
        path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(suffix)
    )
    if pickled:
        msg = (
            f"{folder}: its weights are pickled ({pickled[0]}), and loading them can run any code; if you "
            "trust them, convert them once: AutoModelForImageTextToText.from_pretrained(DIR)"
            ".save_pretrained(NEW_DIR) writes safetensors"
        )
        raise ModelError(msg)
    msg = f"{folder} holds no weights (*.safetensors)"
    raise ModelError(msg)


def _fetch(model: str, name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        msg = f"{model} is no directory, and a hub id needs transformers: pip install 'mllm-selector[train]'"
        raise MissingPackageError(msg) from error
    try:
        return Path(hf_hub_download(model, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cause = error.__cause__ or error  # what the hub or the system said, if anything
        reason = str(cause).strip().split("\n", 1)[0]
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if isinstance(error, HFValidationError) or (400 <= status < 500 and status != 429):
            advice = "check the name; a private or gated model needs access and a login, such as HF_TOKEN"
        else:
            advice = "the hub could not be asked, so check the connection, or name a directory"
        msg = f"{model} is neither a directory nor a hub id whose {name} can be fetched ({reason}); {advice}"
        raise ModelError(msg) from error

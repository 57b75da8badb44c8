"""What scoring reads of a processor: tokenizer, image processor in Pillow's variant, settings.

A processor of transformers may need packages for videos (torchvision, num2words) that scoring has no use for,
so it is put together from its parts here; training and the check of an export use the whole one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_selector.errors import ModelError
from mllm_selector.families.loading import quiet_transformers
from mllm_selector.families.resizing import use_core

__all__ = ["ProcessorParts", "load_parts"]


@dataclass(frozen=True)
class ProcessorParts:
    """The parts of a processor, none of which needs torch.

    Attributes
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer.
    image_processor : transformers.BaseImageProcessor
        The image processor in its Pillow variant, where there is one, with `use_core`.
    chat_template : str or None
        The template in the model's own files.
    settings : dict
        The content of ``processor_config.json``; empty if the model has none.
    """

    tokenizer: Any
    image_processor: Any
    chat_template: str | None
    settings: dict[str, Any]


def load_parts(model: str | Path, *, trust_remote_code: bool = False) -> ProcessorParts:
    """Load the parts of a model's processor.

    Parameters
    ----------
    model : str or Path
        A model directory or a hub id.
    trust_remote_code : bool
        Whether Python code that comes with the model may run.

    Raises
    ------
    ModelError
        If there is no tokenizer or no image processor that can be loaded.
    MissingPackageError
        If transformers is not installed.
    """
    with quiet_transformers() as transformers:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(model), trust_remote_code=trust_remote_code
            )
            image_processor = transformers.AutoImageProcessor.from_pretrained(
                str(model), backend="pil", trust_remote_code=trust_remote_code
            )
            settings = json.loads(_read(transformers, model, "processor_config.json") or "{}")
            template = _template(transformers, model) or _own_template(tokenizer)
        except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
            msg = (
                f"{model}: its processor cannot be loaded ({error}); the directory needs the files that "
                "processor.save_pretrained(DIR) writes"
            )
            raise ModelError(msg) from error
    use_core(image_processor)
    return ProcessorParts(tokenizer, image_processor, template, settings)


def _template(transformers: Any, model: str | Path) -> str | None:
    template = _read(transformers, model, "chat_template.jinja")
    older = None if template else _read(transformers, model, "chat_template.json")
    return str(json.loads(older)["chat_template"]) if older else template


def _own_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _read(transformers: Any, model: str | Path, name: str) -> str | None:
    """Read a file of a model directory or hub id, if it has it."""
    path = transformers.utils.cached_file(
        str(model),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path).read_text(encoding="utf-8")

"""Model families: one module each, found by the ``model_type`` in a model's ``config.json``.

Another package adds one by an entry point of the group ``mllm_selector.families`` that names a subclass of
`Family`; see docs/writing-a-family.md.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from mllm_selector.errors import UsageError
from mllm_selector.families.base import Family
from mllm_selector.families.gemma3 import Gemma3Family
from mllm_selector.families.internvl import InternVlFamily
from mllm_selector.families.llava import LlavaFamily
from mllm_selector.families.llava_next import LlavaNextFamily
from mllm_selector.families.llava_onevision import LlavaOnevisionFamily
from mllm_selector.families.loading import load_config, read_config
from mllm_selector.families.mistral3 import Mistral3Family
from mllm_selector.families.paligemma import PaliGemmaFamily
from mllm_selector.families.qwen2_5_vl import Qwen25VlFamily
from mllm_selector.families.qwen2_vl import Qwen2VlFamily
from mllm_selector.families.qwen3_5 import Qwen35Family
from mllm_selector.families.qwen3_vl import Qwen3VlFamily
from mllm_selector.families.smolvlm import SmolVlmFamily

__all__ = ["ENTRY_POINTS", "Family", "check", "known_model_types", "load", "register"]

ENTRY_POINTS = "mllm_selector.families"
"""Group of the entry points that add families."""

_FAMILIES: dict[str, type[Family]] = {}


def register(family: type[Family]) -> type[Family]:
    """Add a family, or replace the one that serves the same model types; usable as a class decorator."""
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


for _family in (
    Gemma3Family,
    InternVlFamily,
    LlavaFamily,
    LlavaNextFamily,
    LlavaOnevisionFamily,
    Mistral3Family,
    PaliGemmaFamily,
    Qwen25VlFamily,
    Qwen2VlFamily,
    Qwen35Family,
    Qwen3VlFamily,
    SmolVlmFamily,
):
    register(_family)


@cache
def _register_others() -> None:
    """Register the families of other packages, once.

    Raises
    ------
    UsageError
        If one cannot be loaded, or serves a model type that another family serves.
    """
    for point in entry_points(group=ENTRY_POINTS):
        shown = f"the family '{point.name}' ({point.value})"
        try:
            family: type[Family] = point.load()
            taken = sorted(set(family.model_types) & set(_FAMILIES))
        except Exception as error:  # whatever the other package does wrong
            msg = f"{shown} cannot be loaded: {error!r}; mend or uninstall it"
            raise UsageError(msg) from error
        if taken:
            msg = f"{shown} serves {', '.join(taken)}, which another does; uninstall the package that adds it"
            raise UsageError(msg)
        register(family)


def known_model_types() -> list[str]:
    """List the model types that can be scored."""
    _register_others()
    return sorted(_FAMILIES)


def check(model: str | Path) -> type[Family]:
    """Find the family of a model, reading its ``config.json`` only.

    Parameters
    ----------
    model : str or Path
        A model directory or a hub id.

    Raises
    ------
    UsageError
        If no family serves its model type.
    ModelError
        If there is no ``config.json`` to read.
    """
    model_type = read_config(model).get("model_type")
    _register_others()
    family = _FAMILIES.get(str(model_type))
    if family is None:
        msg = (
            f"{model}: models of type {model_type!r} cannot be scored; known types: "
            f"{', '.join(known_model_types())}. docs/writing-a-family.md says how to add one"
        )
        raise UsageError(msg)
    family.check_config(load_config(model), str(model))
    return family


def load(folder: Path, *, trust_remote_code: bool = False) -> Family:
    """Read a model directory as one of its family; see `Family`."""
    return check(folder)(folder, trust_remote_code=trust_remote_code)

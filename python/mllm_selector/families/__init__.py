"""Model families: one module each, found by the ``model_type`` in a model's ``config.json``."""

from __future__ import annotations

from pathlib import Path

from mllm_selector.errors import UsageError
from mllm_selector.families.base import Family
from mllm_selector.families.llava import LlavaFamily
from mllm_selector.families.loading import load_config, read_config

__all__ = ["Family", "check", "known_model_types", "load", "register"]

_FAMILIES: dict[str, type[Family]] = {}


def register(family: type[Family]) -> type[Family]:
    """Add a family, or replace the one that serves the same model types; usable as a class decorator."""
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


register(LlavaFamily)


def known_model_types() -> list[str]:
    """List the model types that can be scored."""
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
    family = _FAMILIES.get(str(model_type))
    if family is None:
        msg = (
            f"{model}: models of type {model_type!r} cannot be scored; known types: "
            f"{', '.join(known_model_types())}. mllm_selector.families.base says how to add one"
        )
        raise UsageError(msg)
    family.check_config(load_config(model), str(model))
    return family


def load(folder: Path, *, trust_remote_code: bool = False) -> Family:
    """Read a model directory as one of its family; see `Family`."""
    return check(folder)(folder, trust_remote_code=trust_remote_code)

"""What this machine has for a run, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from mllm_selector import __version__, engine
from mllm_selector.resources import gpu_name

__all__ = ["examine"]

_EXTRAS = {
    "cpu": ("onnxruntime", "transformers"),
    "gpu": ("onnxruntime-gpu", "transformers"),
    "train": (
        "torch",
        "torchvision",
        "transformers",
        "peft",
        "accelerate",
        "safetensors",
        "onnx",
        "onnxscript",
    ),
}
_BASE = ("numpy", "pyarrow", "pillow", "tqdm")


def examine() -> tuple[str, bool]:
    """Describe versions, devices and what is missing.

    Returns
    -------
    text : str
        The description, one fact a line.
    healthy : bool
        Whether the whole method can run here: an engine to score with and the packages to train with.
    """
    lines = [
        f"mllm-selector    {__version__}",
        f"python           {platform.python_version()} on {platform.platform()}",
        f"cpu              {os.cpu_count()} logical cores",
        f"gpu              {gpu_name() or 'none found (no nvidia-smi)'}",
    ]
    packages = dict.fromkeys([*_BASE, *(name for extra in _EXTRAS.values() for name in extra)])
    lines += [f"{name:<16} {_version(name) or '-'}" for name in packages]
    problems = []
    conflict = engine.onnxruntime_conflict()
    if conflict:
        problems.append(conflict)
    elif not (_version("onnxruntime") or _version("onnxruntime-gpu")):
        problems.append(
            "scoring needs ONNX Runtime: pip install 'mllm-selector[gpu]' for a CUDA machine, "
            "or 'mllm-selector[cpu]'; never both"
        )
    else:
        lines.append(f"providers        {', '.join(engine.working_providers())}")
    missing = [name for name in _EXTRAS["train"] if _version(name) is None]
    if missing:
        problems.append(
            f"the seed and export stages need {', '.join(missing)}: pip install 'mllm-selector[train]'"
        )
    lines.append("")
    lines += [f"missing: {problem}" for problem in problems] or ["ready for the whole method"]
    return "\n".join(lines), not problems


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

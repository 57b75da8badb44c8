"""Pick, from a visual-instruction-tuning pool, the part worth training on."""

from __future__ import annotations

from importlib.metadata import version as _version

__version__ = _version("mllm-selector")

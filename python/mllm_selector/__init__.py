"""Pick, from a visual-instruction-tuning pool, the part worth training on.

One call does the whole method (MLLM-Selector, arXiv 2503.20502): a seed model is fine-tuned on a random
part of the pool, exported to ONNX, used to score how much every sample is needed, and a diverse subset of
what is needed is chosen and written back in the format the pool came in.

Examples
--------
>>> import mllm_selector
>>> selection = mllm_selector.select(  # doctest: +SKIP
...     "pool.json", images="images", model="llava-hf/llava-1.5-7b-hf", budget="10%", run_dir="run"
... )
>>> selection.write("subset.json")  # doctest: +SKIP

With scores and embeddings from elsewhere, on arrays alone:

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> rows = mllm_selector.pick(rng.random(1000), rng.random((1000, 8), dtype=np.float32), budget="10%")
>>> len(rows)
100
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# From 1.29 on, ONNX Runtime tells Microsoft of models and sessions unless this is set before it is loaded
# (Privacy.md in its package).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from mllm_selector.arrays import k_center, kmeans, pick
    from mllm_selector.errors import (
        ClusterError,
        ExportError,
        MissingPackageError,
        MllmSelectorError,
        ModelError,
        PoolError,
        RunDirectoryError,
        ScoreError,
        StoreError,
        UsageError,
    )
    from mllm_selector.neighbours import Neighbours, facility_location, near_duplicates, nearest_neighbours
    from mllm_selector.pipeline import select
    from mllm_selector.pool import Pool
    from mllm_selector.selection import Selection

    __version__: str

__all__ = [
    "ClusterError",
    "ExportError",
    "MissingPackageError",
    "MllmSelectorError",
    "ModelError",
    "Neighbours",
    "Pool",
    "PoolError",
    "RunDirectoryError",
    "ScoreError",
    "Selection",
    "StoreError",
    "UsageError",
    "__version__",
    "facility_location",
    "k_center",
    "kmeans",
    "near_duplicates",
    "nearest_neighbours",
    "pick",
    "select",
]

_PLACES = ("errors", "arrays", "neighbours", "pool", "selection", "pipeline")


# At first use, so that the command line is there to end quietly before anything is loaded that takes long.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mllm-selector")
    modules = (importlib.import_module(f"{__name__}.{place}") for place in _PLACES)
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

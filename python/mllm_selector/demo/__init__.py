"""The demo: a small model made by code, a shipped sample of real statements, the real pipeline."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from mllm_selector.artifacts import atomic_folder
from mllm_selector.demo import nlvr
from mllm_selector.demo.model import make_model, pretrain
from mllm_selector.demo.scenes import draw_scene
from mllm_selector.progress import Progress
from mllm_selector.training import need_packages

__all__ = ["prepare"]

_BUDGET = "20%"
# Adapters are made for models that have read billions of words; this one needs larger and more steps.
_SMALL_MODEL = {"seed_size": 256, "seed_epochs": 3.0, "seed_learning_rate": 1e-2}


def prepare(run_dir: Path, model: str | None, progress: Progress) -> dict[str, Any]:
    """Unpack the shipped sample and, unless another model is named, make the small one.

    Parameters
    ----------
    run_dir : Path
        Gets ``demo/`` with the pool and its images, and ``model/``. A model that is there already is kept.
    model : str or None
        A model directory or hub id to use instead of the small model.
    progress : Progress
        What to report to.

    Returns
    -------
    dict
        Options of `mllm_selector.select`: pool, images, model, budget, and how the small model is tuned.

    Raises
    ------
    MissingPackageError
        If the ``train`` extra is not installed.
    """
    pool, images = nlvr.write_pool(run_dir / "demo")
    options = {"pool": pool, "images": images, "budget": _BUDGET}
    if model is not None:
        return {**options, "model": model}
    need_packages()
    directory = run_dir / "model"
    if not directory.exists():
        with atomic_folder(directory) as temporary:
            make_model(temporary, _texts(pool))
            pretrain(temporary, progress=progress)
    return {**options, "model": str(directory), **_SMALL_MODEL}


def _texts(pool: Path) -> list[str]:
    """Return what the tokenizer is trained on: the pool's texts and captions of drawn scenes."""
    random = np.random.Generator(np.random.Philox(0))
    turns = itertools.chain.from_iterable(draw_scene(random).turns(random) for _ in range(500))
    records = json.loads(pool.read_bytes())
    return [
        *(turn["value"] for record in records for turn in record["conversations"]),
        *itertools.chain.from_iterable(turns),
    ]

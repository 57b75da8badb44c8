"""Makes what the fault tests run on: a tiny model, images and a pool."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SAMPLES = 40


def make(folder: Path) -> None:
    """Write ``model/``, ``images/`` and ``pool.json`` into a folder."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import numpy as np

    import conftest
    from mllm_selector.demo.model import make_model
    from mllm_selector.demo.scenes import draw_scene

    random = np.random.Generator(np.random.Philox(0))
    texts = conftest._texts(draw_scene(random) for _ in range(50))
    make_model(folder / "model", texts, size=conftest.TINY)
    images = folder / "images"
    images.mkdir()
    records = [
        conftest._record(index, draw_scene(random), draw_scene(random), images, random)
        for index in range(SAMPLES)
    ]
    (folder / "pool.json").write_text(json.dumps(records, indent=1))

"""Compare the scores of every model family with those of the unmodified models.

    python benches/family_parity.py [FAMILY ...]

Builds a tiny model of each family with random weights, exports it in float32 and in float16, or opens it by
the PyTorch engine if it does not become graphs, and scores samples with no, one, two and three images of
different sizes in batches of one and of several. The reference is the unmodified float32 model: its own
processor, one sample at a time, all logits, a plain cross entropy.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from family_fixtures import BUILDERS, TORCH_ONLY
from family_parity import BATCHES, TALKS, differences, expected
from mllm_selector.config import ExportOptions
from mllm_selector.engine import OnnxEngine
from mllm_selector.families import load
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.scoring.opening import graph_folder, open_torch
from mllm_selector.stages import export

LIMITS = {"float32": 1e-5, "float16": 1e-2}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="by default all")
    names = parser.parse_args().families or [*BUILDERS, *TORCH_ONLY]
    logging.disable(logging.WARNING)
    print(
        f"{len(TALKS)} samples in {len(BATCHES)} batches; worst differences of mean losses (nats), embeddings"
    )
    print("| family | " + " | ".join(f"{name} loss | {name} embedding" for name in LIMITS) + " | seconds |")
    print("|---|" + "---|---|" * len(LIMITS) + "---|")
    within = True
    for name in names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            model = (BUILDERS | TORCH_ONLY)[name](Path(folder) / "model")
            family, reference = load(model), expected(model)
            if name in BUILDERS:
                graphs = exported(Path(folder), model)
            cells = []
            for precision, limit in LIMITS.items():
                if name in BUILDERS:
                    engine = OnnxEngine(graph_folder(graphs, "float16", precision), "cpu", threads=1)
                else:
                    engine = open_torch(family, model, precision, "cpu", 1)
                loss, embedding = differences(family, engine, reference)
                cells += [f"{loss:.1e}", f"{embedding:.1e}"]
                within &= loss <= limit
        print(f"| {name} | {' | '.join(cells)} | {time.monotonic() - started:.0f} |", flush=True)
    return 0 if within else 1


def exported(folder: Path, model: Path) -> Path:
    """Return a folder of graphs in float16, with which come those in float32."""
    with RunDirectory(folder / "run") as run:
        run.stages["seed"] = StageRecord(state="done", key="made", counts={"model": str(model)})
        export.run(run, ExportOptions(precision="float16"), SilentProgress())
    return run.onnx


if __name__ == "__main__":
    sys.exit(main())

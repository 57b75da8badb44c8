"""Given scores: what the stages between ingest and pick leave in a run directory, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from mllm_selector.artifacts import score_schema, write_arrow
from mllm_selector.rundir import RunDirectory, StageRecord

DIMENSIONS = 8


def give(run_dir: Path, seed: int = 0) -> None:
    """Enter random scores and embeddings by row, so that `mllm-selector pick` can choose from the pool."""
    with RunDirectory(run_dir) as run:
        samples = run.need("ingest").counts["samples"]
        rng = np.random.default_rng([5, seed])
        necessity = rng.gamma(2, size=samples).astype(np.float32)
        X = rng.normal(size=(samples, DIMENSIONS))
        X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float16)
        schema = score_schema(DIMENSIONS)
        columns = [
            pa.array(np.arange(samples, dtype=np.uint64)),
            pa.array(necessity),
            pa.array(np.ones(samples, np.uint32)),
            pa.array(necessity),
            pa.nulls(samples, pa.utf8()),
            pa.array([[]] * samples, schema.field("missing").type),
            pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), type=schema.field("embedding").type),
        ]
        write_arrow(run.score_part(0), pa.table(columns, schema=schema))
        write_arrow(run.seed_rows, pa.table({"row": pa.array([], pa.uint64())}))
        run.stages["score"] = StageRecord("done", key=f"given scores, seed {seed}")
        run.save()

"""Pick: choose the subset from the scores, and write it in the pool's own format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector import formats
from mllm_selector.artifacts import ScoreTable, open_arrow, write_arrow
from mllm_selector.config import PickOptions
from mllm_selector.errors import RunDirectoryError
from mllm_selector.methods import METHODS
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.sampling import Scored

__all__ = ["SELECTION_SCHEMA", "run"]

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("id", pa.utf8(), nullable=False),
        pa.field("order", pa.uint32(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("necessity", pa.float32(), nullable=False),
        pa.field("seed", pa.bool_(), nullable=False),
    ]
)


def run(run: RunDirectory, options: PickOptions, progress: Progress) -> dict[str, Any]:
    """Choose the subset.

    Parameters
    ----------
    run : RunDirectory
        Gets ``selection.arrow`` and the subset.
    options : PickOptions
        The budget, and how samples are chosen.
    progress : Progress
        Told of the steps.

    Returns
    -------
    dict
        ``chosen`` samples; ``groups`` with candidates; ``candidates``, samples that could be chosen;
        ``unscored``, samples without necessity; ``seed_in_subset``, chosen samples of the seed subset.

    Raises
    ------
    UsageError
        If the budget is above what can be chosen.
    RunDirectoryError
        If an earlier stage has not left what is needed.
    PoolError
        If the pool has changed since it was ingested.
    """
    pool = Pool.of(run)
    scores = ScoreTable.load(run.scores)
    if len(scores) != len(pool):
        msg = f"{run.scores} holds {len(scores)} scores for {len(pool)} samples; run 'score' again"
        raise RunDirectoryError(msg)
    seed_rows = open_arrow(run.seed_rows)["row"].to_numpy()
    scored = Scored(
        necessity=scores.necessity,
        embeddings=scores.embeddings,
        sources=pool.sources()[0],
        seed_rows=seed_rows,
    )
    sample = METHODS["grouped"](scored, options, progress)

    progress.start("pick", len(sample.rows))
    by_row = np.argsort(sample.rows)
    rows = sample.rows[by_row]
    is_seed = np.isin(rows, seed_rows)
    _write_subset(run, rows if options.order == "pool" else sample.rows, options)
    table = pa.table(
        [
            pa.array(rows, pa.uint64()),
            pa.array(pool.ids(rows), pa.utf8()),
            pa.array(by_row, pa.uint32()),
            pa.array(sample.groups[by_row], pa.int32()),
            pa.array(scores.necessity[rows], pa.float32()),
            pa.array(is_seed, pa.bool_()),
        ],
        schema=SELECTION_SCHEMA,
    )
    write_arrow(run.selection, table)
    counts = {
        "chosen": len(rows),
        "groups": sample.group_count,
        "candidates": sample.candidates,
        "unscored": sample.unscored,
        "seed_in_subset": int(is_seed.sum()),
    }
    progress.finish(_summary(counts, len(pool)))
    return counts


def _write_subset(run: RunDirectory, rows: NDArray[np.int64], options: PickOptions) -> None:
    inside = run.subset_stem.with_name(run.subset_stem.name + formats.subset_suffix(run))
    for out in (inside, options.out):
        if out is not None:
            formats.write_subset(run, rows, out)


def _summary(counts: dict[str, int], total: int) -> str:
    text = f"{counts['chosen']:,} of {total:,} samples from {counts['groups']:,} groups"
    if counts["seed_in_subset"]:
        text += f", {counts['seed_in_subset']:,} of them seed samples"
    if counts["unscored"]:
        text += f"; {counts['unscored']:,} samples were not scored"
    return text

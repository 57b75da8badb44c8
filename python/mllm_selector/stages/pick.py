"""Pick: chooses the subset from the scores and writes it in the format of the pool."""

from __future__ import annotations

import json
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
from mllm_selector.sampling import GroupedSample, Labels, Scored
from mllm_selector.selection import SELECTION_SCHEMA

__all__ = ["run"]


def run(run: RunDirectory, options: PickOptions, progress: Progress) -> dict[str, Any]:
    """Choose the subset; `mllm_selector.pick` explains the method.

    Parameters
    ----------
    run : RunDirectory
        With pool, seed rows and scores. Gets `selection` and the subset.
    options : PickOptions
        The options; `out` is the pipeline's.
    progress : Progress
        What to report to.

    Returns
    -------
    dict
        ``chosen``, ``groups`` (that have candidates), ``candidates``, ``unscored``, ``seed_in_subset`` and
        ``subset``, the name of its file.

    Raises
    ------
    UsageError
        If the budget is above what can be chosen, or an option cannot work.
    RunDirectoryError
        If the scores are not those of the pool.
    """
    pool = Pool.of(run)
    scores = ScoreTable.load(run.scores, options.necessity)
    if len(scores) != len(pool):
        msg = f"{run.path} holds scores of {len(scores)} samples for a pool of {len(pool)}; run 'score' again"
        raise RunDirectoryError(msg)
    seed_rows = open_arrow(run.seed_rows)["row"].to_numpy().astype(np.int64)
    codes, names = pool.sources()
    scored = Scored(scores.necessity, scores.embeddings, Labels(codes.astype(np.uint32), names), seed_rows)
    progress.start("pick")
    sample = METHODS["grouped"](scored, options, progress)
    _write_selection(run, pool, scores, sample, seed_rows)
    in_order = np.sort(sample.rows) if options.order == "pool" else sample.rows
    subset = run.subset_stem.with_suffix(formats.subset_suffix(run))
    formats.write_subset(run, in_order, subset)

    progress.start("pick")
    unscored = f"; {sample.unscored:,} were not scored" if sample.unscored else ""
    progress.finish(
        f"{len(sample.rows):,} of {len(pool):,} samples from {sample.group_count:,} groups{unscored}"
    )
    return {
        "chosen": len(sample.rows),
        "groups": sample.group_count,
        "candidates": sample.candidates,
        "unscored": sample.unscored,
        "seed_in_subset": int(np.isin(sample.rows, seed_rows).sum()),
        "subset": subset.name,
    }


def _write_selection(
    run: RunDirectory,
    pool: Pool,
    scores: ScoreTable,
    sample: GroupedSample,
    seed_rows: NDArray[np.int64],
) -> None:
    by_row = np.argsort(sample.rows)
    rows = sample.rows[by_row]
    columns = [
        pa.array(rows, pa.uint64()),
        pa.array(pool.ids(rows), pa.large_utf8()),
        pa.array(by_row, pa.uint32()),
        pa.array(sample.groups[by_row], pa.int32()),
        pa.array(scores.necessity[rows]),
        pa.array(np.isin(rows, seed_rows)),
    ]
    schema = SELECTION_SCHEMA.with_metadata({"mllm_selector.groups": json.dumps(_groups(sample))})
    write_arrow(run.selection, pa.Table.from_arrays(columns, schema=schema))


def _groups(sample: GroupedSample) -> list[dict[str, float]]:
    """List the groups with their candidates and mean necessity, for the report."""
    return [
        {"group": number, "size": size, "mean_necessity": necessity}
        for number, (size, necessity) in enumerate(
            zip(sample.group_sizes.tolist(), sample.group_necessity.tolist(), strict=True)
        )
        if size
    ]

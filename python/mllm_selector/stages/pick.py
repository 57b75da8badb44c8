"""Pick: chooses the subset from the scores and writes it in the format of the pool."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector import formats, methods
from mllm_selector.artifacts import ScoreTable, open_arrow, write_arrow
from mllm_selector.columns import Joined, join, stored
from mllm_selector.config import PickOptions
from mllm_selector.errors import RunDirectoryError, UsageError
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.samples import Choice, Labels, Scored
from mllm_selector.selection import SELECTION_SCHEMA

__all__ = ["read_scored", "run"]


def run(run: RunDirectory, options: PickOptions, progress: Progress) -> dict[str, Any]:
    """Choose the subset by the method asked for; `mllm_selector.methods` has them.

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
        ``method`` and its ``parameters``, ``chosen``, ``groups`` (that have candidates), ``candidates``,
        ``unscored``, ``lacking`` (without a score that the method needs), ``seed_in_subset``, ``scores``
        (what was joined from which file) and ``subset``, the name of its file.

    Raises
    ------
    UsageError
        If the budget is above what can be chosen, or an option cannot work.
    RunDirectoryError
        If the scores are not those of the pool.
    """
    method, parameters = methods.prepare(options)
    pool = Pool.of(run)
    scores, scored, joined = read_scored(run, pool, options)
    progress.start("pick")
    choice = methods.choose(scored, options, progress)
    _write_selection(run, pool, scores, choice, scored.seed_rows)
    in_order = np.sort(choice.rows) if options.order == "pool" else choice.rows
    subset = run.subset_stem.with_suffix(formats.subset_suffix(run))
    formats.write_subset(run, in_order, subset)

    progress.start("pick")
    progress.finish(_told(choice, len(pool), joined))
    return {
        "method": method.name,
        "parameters": parameters.as_json(),
        "chosen": len(choice.rows),
        "groups": choice.group_count,
        "candidates": choice.candidates,
        "unscored": choice.unscored,
        "lacking": choice.lacking,
        "seed_in_subset": int(np.isin(choice.rows, scored.seed_rows).sum()),
        "scores": joined.counts,
        "subset": subset.name,
    }


def read_scored(run: RunDirectory, pool: Pool, options: PickOptions) -> tuple[ScoreTable, Scored, Joined]:
    """Read what is known of a scored pool, with the columns that the method asked for needs.

    Raises
    ------
    UsageError
        If a column is missing or cannot be joined.
    RunDirectoryError
        If the scores are not those of the pool.
    """
    scores = ScoreTable.load(run.scores, options.necessity)
    if len(scores) != len(pool):
        msg = f"{run.path} holds scores of {len(scores)} samples for a pool of {len(pool)}; run 'score' again"
        raise RunDirectoryError(msg)
    seed_rows = open_arrow(run.seed_rows)["row"].to_numpy().astype(np.int64)
    codes, names = pool.sources()
    joined = _joined(run, pool, options)
    scored = Scored(
        scores.necessity,
        list(scores.embeddings),
        Labels(codes.astype(np.uint32), names),
        np.sort(seed_rows),
        joined.columns,
    )
    return scores, scored, joined


def _joined(run: RunDirectory, pool: Pool, options: PickOptions) -> Joined:
    """Read the columns that the method needs, from the score stage and the user's files."""
    needed = {need.column for need in methods.columns(options)}
    from_stage = stored(run.scores, needed)
    if options.scores is None:
        return Joined(from_stage, [])
    from_files = join(options.scores.paths, pool.column("id"), needed)
    for name in from_files.columns:
        if name in from_stage:
            msg = f"--scores: the column '{name}' has the name of one of the score stage; rename it"
            raise UsageError(msg)
    return Joined(from_stage | from_files.columns, from_files.counts)


def _told(choice: Choice, samples: int, joined: Joined) -> str:
    """Say in a line what came out."""
    text = f"{len(choice.rows):,} of {samples:,} samples"
    if choice.group_count > 1:
        text += f" from {choice.group_count:,} groups"
    if choice.unscored:
        text += f"; {choice.unscored:,} were not scored"
    if choice.lacking:
        text += f"; {choice.lacking:,} lacked a score that the method needs"
    for counts in joined.counts:
        if counts["unknown"]:
            text += f"; {counts['unknown']:,} ids of {counts['file']} are not in the pool"
    return text


def _write_selection(
    run: RunDirectory,
    pool: Pool,
    scores: ScoreTable,
    choice: Choice,
    seed_rows: NDArray[np.int64],
) -> None:
    by_row = np.argsort(choice.rows)
    rows = choice.rows[by_row]
    columns = [
        pa.array(rows, pa.uint64()),
        pa.array(pool.ids(rows), pa.large_utf8()),
        pa.array(by_row, pa.uint32()),
        pa.array(choice.groups[by_row], pa.int32()),
        pa.array(scores.necessity[rows]),
        pa.array(np.isin(rows, seed_rows)),
    ]
    schema = SELECTION_SCHEMA.with_metadata({"mllm_selector.groups": json.dumps(_groups(choice))})
    write_arrow(run.selection, pa.Table.from_arrays(columns, schema=schema))


def _groups(choice: Choice) -> list[dict[str, float]]:
    """List the groups with their candidates and mean necessity, for the report."""
    return [
        {"group": number, "size": size, "mean_necessity": necessity}
        for number, (size, necessity) in enumerate(
            zip(choice.group_sizes.tolist(), choice.group_necessity.tolist(), strict=True)
        )
        if size
    ]

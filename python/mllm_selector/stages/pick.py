"""Pick: chooses the subset from the scores and writes it in the format of the pool."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from mllm_selector import formats, methods
from mllm_selector.artifacts import ScoreTable, open_arrow, write_arrow
from mllm_selector.columns import Joined, join, stored
from mllm_selector.config import PickOptions
from mllm_selector.drawn import Filled, estimate
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
        (what was joined from which file) and ``subset``, the name of its file. Where only some samples were
        scored, also ``measured`` (samples that have a necessity of their own; all count with the mean of
        their cluster) and ``clusters_without`` (those that have none, and take the mean of the pool).

    Raises
    ------
    UsageError
        If the budget is above what can be chosen, or an option cannot work.
    RunDirectoryError
        If the scores are not those of the pool.
    PoolError
        If the pool's inputs, which the subset is copied from, are gone or have changed.
    """
    method, parameters = methods.prepare(options)
    pool = Pool.of(run)
    # First, since a pool that is gone or has changed is no reason to lose an earlier choice.
    subset = run.subset_stem.with_suffix(formats.subset_suffix(run))
    scored, joined, filled = read_scored(run, pool, options)
    progress.start("pick")
    choice = methods.choose(scored, options, progress)
    in_order = np.sort(choice.rows) if options.order == "pool" else choice.rows
    # Before the selection, so that a pool that changes just now leaves an earlier choice whole, too.
    formats.write_subset(run, in_order, subset)
    _write_selection(run, pool, scored, choice)

    progress.start("pick")
    progress.finish(_told(choice, len(pool), joined, filled))
    of_clusters = {} if filled is None else {"measured": filled.measured, "clusters_without": filled.without}
    return {
        "method": method.name,
        "parameters": parameters.as_json(),
        "chosen": len(choice.rows),
        "groups": choice.group_count,
        "candidates": choice.candidates,
        "unscored": choice.unscored,
        "lacking": choice.lacking,
        **of_clusters,
        "seed_in_subset": int(np.isin(choice.rows, scored.seed_rows).sum()),
        "scores": joined.counts,
        "subset": subset.name,
    }


def read_scored(run: RunDirectory, pool: Pool, options: PickOptions) -> tuple[Scored, Joined, Filled | None]:
    """Read what is known of a scored pool, with the columns that the method asked for needs.

    Where only some samples were scored, the necessity of all is the mean of their cluster, as told by the
    last part of the result.

    Raises
    ------
    UsageError
        If a column is missing or cannot be joined, or is that of single samples where only some were scored.
    RunDirectoryError
        If the scores are not those of the pool.
    """
    scores = ScoreTable.load(run.scores, options.necessity)
    if len(scores) != len(pool):
        msg = f"{run.path} holds scores of {len(scores)} samples for a pool of {len(pool)}; run 'score' again"
        raise RunDirectoryError(msg)
    necessity, clusters, filled = scores.necessity, None, None
    if (estimated := estimate(run.scores, scores)) is not None:
        methods.check_estimated(options, {"necessity", "nll_sum", "answer_tokens", *scores.metrics})
        found, filled = estimated
        necessity = filled.values
        # Samples without a cluster are no candidates.
        clusters = Labels(np.maximum(found.labels, 0).astype(np.uint32), range(found.count))
    seed_rows = open_arrow(run.seed_rows)["row"].to_numpy().astype(np.int64)
    codes, names = pool.sources()
    joined = _joined(run, pool, options)
    scored = Scored(
        necessity,
        list(scores.embeddings),
        Labels(codes.astype(np.uint32), names),
        np.sort(seed_rows),
        joined.columns,
        clusters,
    )
    return scored, joined, filled


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


def _told(choice: Choice, samples: int, joined: Joined, filled: Filled | None) -> str:
    """Say in a line what came out."""
    text = f"{len(choice.rows):,} of {samples:,} samples"
    if choice.group_count > 1:
        text += f" from {choice.group_count:,} groups"
    if filled is not None:
        text += f"; necessity is the mean of clusters, measured on {filled.measured:,} samples"
        if filled.without:
            text += f", that of the pool for {filled.without:,} clusters where none could be scored"
    if choice.unscored:
        text += f"; {choice.unscored:,} were not scored"
    if choice.lacking:
        text += f"; {choice.lacking:,} lacked a score that the method needs"
    for counts in joined.counts:
        if counts["unknown"]:
            text += f"; {counts['unknown']:,} ids of {counts['file']} are not in the pool"
    return text


def _write_selection(run: RunDirectory, pool: Pool, scored: Scored, choice: Choice) -> None:
    by_row = np.argsort(choice.rows)
    rows = choice.rows[by_row]
    columns = [
        pa.array(rows, pa.uint64()),
        pa.array(pool.ids(rows), pa.large_utf8()),
        pa.array(by_row, pa.uint32()),
        pa.array(choice.groups[by_row], pa.int32()),
        pa.array(scored.necessity[rows]),
        pa.array(np.isin(rows, scored.seed_rows)),
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

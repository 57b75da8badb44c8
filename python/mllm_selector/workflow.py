"""The stages in their order: what each needs, writes and leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_selector.config import (
    ExportOptions,
    IngestOptions,
    PickOptions,
    ReportOptions,
    ScoreOptions,
    SeedOptions,
    StageOptions,
)
from mllm_selector.metrics import Metrics, Variant
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import export, ingest, pick, report, score, seed

__all__ = ["STAGES", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One stage as the pipeline sees it.

    Attributes
    ----------
    options : type
        Its class of options.
    run : callable
        Does the work and returns the counts for the manifest.
    needs : str or None
        The stage before it.
    outputs : callable
        Files and folders of a run directory that must be whole for the stage to count as done.
    reads : callable
        Files and folders of earlier stages that it reads.
    partial : callable
        Finished pieces of an unfinished run that the stage goes on from.
    scraps : callable
        Files and folders that are of no use once the stage is done.
    redoable : bool
        Whether it may be run again with other options in the same run directory.
    """

    options: type[StageOptions]
    run: Callable[[RunDirectory, Any, Progress], dict[str, Any]]
    needs: str | None
    outputs: Callable[[RunDirectory], list[Path]]
    reads: Callable[[RunDirectory], list[Path]] = lambda run: []
    partial: Callable[[RunDirectory], list[Path]] = lambda run: []
    scraps: Callable[[RunDirectory], list[Path]] = lambda run: []
    redoable: bool = False


def _seed_outputs(run: RunDirectory) -> list[Path]:
    model = run.path / run.stages["seed"].counts["model"]
    if model.is_relative_to(run.path):
        return [run.seed_rows, run.seed / "adapter", model]
    return [run.seed_rows, model / "config.json"]  # the user's own


def _score_outputs(run: RunDirectory) -> list[Path]:
    samples = run.need("ingest").counts["samples"]
    options = run.stages["score"].options
    parts = range(math.ceil(samples / options["shard_size"]))
    has_examples = Variant.ONE_SHOT in Metrics.parse(options["metrics"]).variants
    is_drawn = options.get("scored_per_cluster") is not None  # records of earlier versions say nothing of it
    return [
        *([run.projection] if options["embedding_size"] is not None else []),
        *([*(run.embedding_part(index) for index in parts), run.clusters] if is_drawn else []),
        *(run.score_part(index) for index in parts),
        *([run.examples, *(run.example_part(index) for index in parts)] if has_examples else []),
    ]


def _score_parts(run: RunDirectory) -> list[Path]:
    """Find the finished parts of the sweeps that take the time."""
    names = ("embedding-*.arrow", "part-*.arrow")
    return sorted(path for name in names for path in (*run.scores.glob(name), *run.shards.glob(f"*/{name}")))


def _pick_outputs(run: RunDirectory) -> list[Path]:
    return [run.selection, run.path / run.stages["pick"].counts["subset"]]


STAGES: dict[str, Stage] = {
    "ingest": Stage(
        IngestOptions,
        ingest.run,
        None,
        lambda run: [run.pool, run.rejected],
        scraps=lambda run: [run.ingest_parts],
    ),
    "seed": Stage(
        SeedOptions,
        seed.run,
        "ingest",
        _seed_outputs,
        reads=lambda run: [run.pool],
        partial=lambda run: sorted(run.seed_checkpoints.glob("*")),
        scraps=lambda run: [run.seed_checkpoints, run.seed_plan],
    ),
    "export": Stage(
        ExportOptions,
        export.run,
        "seed",
        lambda run: [run.onnx],
        reads=lambda run: [run.path / run.need("seed").counts["model"]],
    ),
    "score": Stage(
        ScoreOptions,
        score.run,
        "export",
        _score_outputs,
        reads=lambda run: [run.pool, run.onnx],
        partial=_score_parts,
        scraps=lambda run: [run.shards, run.batches.with_name("batches.lock")],
    ),
    "pick": Stage(
        PickOptions,
        pick.run,
        "score",
        _pick_outputs,
        reads=lambda run: [run.pool, run.seed_rows, run.scores],
        redoable=True,
    ),
    "report": Stage(
        ReportOptions,
        report.run,
        "pick",
        lambda run: [run.report, run.report_numbers],
        reads=lambda run: [run.pool, run.scores, run.selection],
        redoable=True,
    ),
}

"""The report stage: one HTML page that shows what was chosen and why, and its numbers as JSON."""

from __future__ import annotations

from typing import Any

from mllm_selector.artifacts import atomic_write, write_json
from mllm_selector.config import ReportOptions
from mllm_selector.pool import Pool
from mllm_selector.progress import Progress
from mllm_selector.reporting import command
from mllm_selector.reporting.numbers import collect
from mllm_selector.reporting.page import render
from mllm_selector.rundir import RunDirectory

__all__ = ["run"]


def run(run: RunDirectory, options: ReportOptions, progress: Progress) -> dict[str, Any]:
    """Write the report of a run.

    Parameters
    ----------
    run : RunDirectory
        With the stages ingest, score and pick done.
    options : ReportOptions
        Size of the galleries; price of the machine.
    progress : Progress
        Told of the figures that take long, and when the page is written.

    Returns
    -------
    dict
        ``bytes``: size of the page; ``figures_seconds``: what comparing the embeddings took, which is what
        grows with the pool.

    Raises
    ------
    RunDirectoryError
        If one of these stages is not done, or their files do not belong together.
    PoolError
        If a file is damaged.
    """
    pool = Pool.of(run)
    numbers, seconds = collect(run, pool, options, progress)
    stages = run.stages
    again = [command.as_command(stages, run.path), command.as_call(stages, run.path)]
    page = render(numbers, pool, run.path.resolve().name, command.settings(stages), again).encode()
    write_json(run.report_numbers, numbers.as_json())
    with atomic_write(run.report) as file:
        file.write(page)
    progress.finish(f"{run.report} ({len(page) / 1e6:.1f} MB)")
    return {"bytes": len(page), "figures_seconds": seconds}

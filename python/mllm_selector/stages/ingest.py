"""Ingest: the pool as the user has it becomes `pool.arrow`; bad records go to `rejected.jsonl`."""

from __future__ import annotations

from typing import Any

from mllm_selector import formats
from mllm_selector.config import IngestOptions
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory

__all__ = ["run"]


def run(run: RunDirectory, options: IngestOptions, progress: Progress) -> dict[str, Any]:
    """Read, check and convert the pool.

    Parameters
    ----------
    run : RunDirectory
        Gets ``pool.arrow`` and ``rejected.jsonl``.
    options : IngestOptions
        Which pool, and how it is read.
    progress : Progress
        Told the bytes read.

    Returns
    -------
    dict
        ``samples``; ``rejected``, records by reason; ``renamed``, samples with a new id; ``text_only``,
        ``multi_image`` and ``multi_turn``, samples without an image, with several, and with several
        answers; ``images``, distinct ones; ``sources``, samples by source; ``bytes`` and ``format`` of the
        inputs; ``input_hashes``, their BLAKE3 hashes in hexadecimal, if the format has taken them.

    Raises
    ------
    UsageError
        If the pool or the images folder is not there, or images are named but no folder is given.
    PoolError
        If the pool is not in the format, is damaged or empty, more than half of it is rejected, or, where
        `IngestOptions.strict` is set, anything is.
    """
    pool_format = formats.find(options)
    total = sum(path.stat().st_size for path in options.pool.paths if path.is_file())
    progress.start("ingest", total, "bytes")
    counts = pool_format.ingest(options, run.pool, run.rejected, lambda done, _: progress.update(done))
    pool_hash = counts.pop("pool_hash", None)
    if pool_hash is not None:
        run.checksums.note(run.pool, pool_hash)
    counts["format"] = pool_format.name
    progress.finish(_summary(counts))
    return counts


def _summary(counts: dict[str, Any]) -> str:
    sources = len(counts["sources"])
    text = f"{counts['samples']:,} samples from {sources} source{'s' * (sources != 1)}"
    if counts["renamed"]:
        text += f"; {counts['renamed']:,} with an id taken before, renamed"
    rejected: dict[str, int] = counts["rejected"]
    if not rejected:
        return text
    by_count = sorted(rejected.items(), key=lambda entry: -entry[1])
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in by_count)
    return f"{text}; {sum(rejected.values()):,} set aside in rejected.jsonl ({reasons})"

"""Ingest: the pool as the user has it becomes `pool.arrow`; bad records go to `rejected.jsonl`."""

from __future__ import annotations

from typing import Any

from mllm_selector import formats
from mllm_selector.config import IngestOptions
from mllm_selector.formats.parts import ingest_by_parts
from mllm_selector.formats.reading import InParts
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
        Which pool, and how it is read. With ``ray``, the inputs of several are read on a cluster.
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
    StoreError, ClusterError, MissingPackageError
        If a store of images, or the Ray cluster, is out of reach.
    """
    pool_format = formats.find(options)
    counts = _counts(run, options, pool_format, progress)
    pool_hash = counts.pop("pool_hash", None)
    if pool_hash is not None:
        run.checksums.note(run.pool, pool_hash)
    counts["format"] = pool_format.name
    progress.finish(_summary(counts))
    return counts


def _counts(
    run: RunDirectory, options: IngestOptions, pool_format: formats.PoolFormat, progress: Progress
) -> dict[str, Any]:
    # An input is read by one machine, and a single one is best read here.
    if options.ray is not None and len(options.pool.inputs) > 1 and isinstance(pool_format, InParts):
        return ingest_by_parts(run, options, pool_format, progress)
    total = sum(path.stat().st_size for path in options.pool.paths if path.is_file())
    progress.start("ingest", total, "bytes")
    return pool_format.ingest(options, run.pool, run.rejected, lambda done, _: progress.update(done))


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

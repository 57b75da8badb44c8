"""Score parts: what marks one as this run's, which are still to be scored, what all of them hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from mllm_selector.artifacts import missing_metrics, open_arrow
from mllm_selector.checksums import Checksums
from mllm_selector.drawn import NOT_DRAWN
from mllm_selector.errors import PoolError, RunDirectoryError, ScoreError
from mllm_selector.scoring.batching import BatchBudget

__all__ = [
    "WORK",
    "check_origin",
    "check_scored",
    "count_parts",
    "merged_schema",
    "missing_parts",
    "part_metadata",
    "part_rows",
]

KEY = "mllm_selector.key"
"""Schema metadata: the key of the score stage that wrote the part."""

BATCHES = "mllm_selector.batches"
"""Schema metadata: the budget of the part's batches, as JSON."""

WORK = "mllm_selector.work"
"""Schema metadata: what the part's scores took, as JSON."""


def part_rows(samples: int, shard_size: int) -> list[range]:
    """Return the rows of each part of a pool."""
    return [range(start, min(start + shard_size, samples)) for start in range(0, samples, shard_size)]


def part_metadata(key: str, budget: BatchBudget) -> dict[str, str]:
    """Return the schema metadata of a run's parts, without what is special to each."""
    return {KEY: key, BATCHES: json.dumps(asdict(budget))}


def merged_schema(part: Path, key: str) -> pa.Schema:
    """Return the schema that all parts of a run must have, given one of them and the run's key."""
    schema = open_arrow(part).schema
    return schema.with_metadata({**(schema.metadata or {}), KEY: key})


def missing_parts(
    parts: Mapping[Path, range], schema: pa.Schema, checksums: Checksums, note: Callable[[str], None]
) -> list[Path]:
    """Find the parts that are not there, or not whole.

    Parameters
    ----------
    parts : mapping of Path to range
        Parts and their rows, in one folder.
    schema : pyarrow.Schema
        Of all of them, with `part_metadata`.
    checksums : Checksums
        Of the folder's files.
    note : callable
        Is told why a part that is there does not count.

    Raises
    ------
    RunDirectoryError
        If a part was written by another run.
    """
    patterns = {(part.parent, part.name.partition("-")[0]) for part in parts}
    there = {path for folder, kind in patterns for path in folder.glob(f"{kind}-*.arrow")}
    foreign = sorted(there - set(parts))
    if foreign:
        raise RunDirectoryError(_another_run(foreign[0]))
    missing = []
    for part, rows in parts.items():
        fault = _fault(part, rows, schema, checksums)
        if fault is not None:
            missing.append(part)
            if fault:
                note(f"{fault}; scoring it again")
    return missing


def check_origin(parts: Iterable[Path], schema: pa.Schema) -> None:
    """Check that parts, whole or not, are not another run's.

    Raises
    ------
    RunDirectoryError
        If one is.
    """
    for part in parts:
        try:
            found = open_arrow(part).schema
        except PoolError:
            continue
        if not found.equals(schema) or _origin(found) != _origin(schema):
            raise RunDirectoryError(_another_run(part))


def count_parts(parts: Sequence[Path], others: Sequence[Path] = ()) -> dict[str, Any]:
    """Count over parts.

    Parameters
    ----------
    parts : sequence of Path
        Parts of the sweep that says which samples were scored.
    others : sequence of Path
        Parts of the run's other sweep, if there is one.

    Returns
    -------
    dict
        ``samples``, ``scored``, ``set_aside`` (number by reason code, without those that were not drawn),
        ``missing`` (for each metric that some scored samples have not, the numbers by reason code),
        ``answer_tokens``, ``images_encoded`` and ``rescored``.
    """
    samples = answer_tokens = 0
    set_aside: Counter[str] = Counter()
    work: Counter[str] = Counter()
    missing: dict[str, Counter[str]] = {}
    for part in (*parts, *others):
        table = open_arrow(part)
        work.update(json.loads(table.schema.metadata[WORK.encode()]))
        if "missing" in table.column_names:
            for metric, reason in missing_metrics(table):
                missing.setdefault(metric, Counter())[reason.partition(":")[0]] += 1
        if "answer_tokens" in table.column_names:
            answer_tokens += int(table["answer_tokens"].to_numpy().sum())
    for part in parts:
        table = open_arrow(part)
        samples += len(table)
        set_aside.update(reason.partition(":")[0] for reason in _reasons([table]))
    not_drawn = set_aside.pop(NOT_DRAWN, 0)
    return {
        "samples": samples,
        "scored": samples - not_drawn - sum(set_aside.values()),
        "set_aside": dict(sorted(set_aside.items())),
        "missing": {metric: dict(sorted(missing[metric].items())) for metric in sorted(missing)},
        "answer_tokens": answer_tokens,
        "images_encoded": work["images_encoded"],
        "rescored": work["rescored"],
    }


def check_scored(parts: Sequence[Path], counts: dict[str, Any], drawn: int | None = None) -> None:
    """Fail if most of the pool has no score.

    Parameters
    ----------
    parts : sequence of Path
        Parts of the sweep that says which samples were scored.
    counts : dict
        What `count_parts` says of them.
    drawn : int, optional
        Samples that were drawn to be scored; by default all.

    Raises
    ------
    ScoreError
        If more than half of the samples, or of those drawn, have none.
    """
    aside, total = sum(counts["set_aside"].values()), counts["samples"]
    if 2 * aside <= total and (drawn is None or 2 * counts["scored"] >= drawn):
        return
    if 2 * aside <= total and drawn is not None:
        aside, total = drawn - counts["scored"], drawn
    reasons = list(_reasons(map(open_arrow, parts)))
    commonest = "; ".join(
        f"{code}: {count:,} (the first: {next(r for r in reasons if r.startswith(code))})"
        for code, count in Counter(counts["set_aside"]).most_common(3)
    )
    msg = (
        f"{aside:,} of {total:,} samples cannot be scored, more than half: {commonest}. "
        f"Mend the cause, delete {parts[0].parent} and run the same command again"
    )
    raise ScoreError(msg)


def _reasons(tables: Iterable[pa.Table]) -> Iterable[str]:
    return (reason for table in tables for reason in table["reason"].drop_null().to_pylist())


def _fault(part: Path, rows: range, schema: pa.Schema, checksums: Checksums) -> str | None:
    """Return None for a whole part of this run, an empty text for none, else what is wrong with it."""
    if not part.exists():
        return ""
    for damage in checksums.damages([part]):
        return str(damage)
    try:
        table = open_arrow(part)
    except PoolError as error:
        return str(error)
    if not table.schema.equals(schema) or _origin(table.schema) != _origin(schema):
        raise RunDirectoryError(_another_run(part))
    return None if table["row"].to_pylist() == list(rows) else f"{part} does not hold its rows"


def _origin(schema: pa.Schema) -> list[bytes | None]:
    """Return what must be the same in all parts of a run."""
    return [(schema.metadata or {}).get(key.encode()) for key in (KEY, BATCHES)]


def _another_run(part: Path) -> str:
    return (
        f"{part} was written with another pool, model or other options; delete {part.parent} to score again, "
        "or use another --run-dir"
    )

"""Why records and samples were set aside, with examples."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mllm_selector import _internal
from mllm_selector.drawn import NOT_DRAWN
from mllm_selector.errors import PoolError
from mllm_selector.pool import Pool

__all__ = ["Reason", "rejected", "unscored"]

EXAMPLES = 3
SHOWN_BYTES = 600


@dataclass(frozen=True)
class Reason:
    """Why some records or samples were set aside, with the first of them."""

    reason: str
    count: int
    examples: list[dict[str, Any]]


def rejected(path: Path, pool_format: str) -> list[Reason]:
    """Count the lines of a ``rejected.jsonl``; of text formats the examples show how the record begins.

    Raises
    ------
    PoolError
        If a line is damaged.
    """
    if not path.is_file():
        return []
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                reason = entry["reason"]
                example = {key: entry[key] for key in ("id", "record", "detail")}
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{path}, line {number} is damaged ({error!r}); delete the file and ingest again"
                raise PoolError(msg) from error
            counts[reason] += 1
            examples.setdefault(reason, [])
            if len(examples[reason]) < EXAMPLES:
                text = _beginning(entry) if pool_format.endswith(("-json", "-jsonl")) else None
                examples[reason].append(example if text is None else example | {"text": text})
    return [Reason(reason, count, examples[reason]) for reason, count in counts.most_common()]


def unscored(reasons: pa.ChunkedArray, pool: Pool) -> list[Reason]:
    """Count why samples could not be scored; a reason is a code, a colon and a detail."""
    could_not = pc.fill_null(pc.not_equal(reasons, NOT_DRAWN), False)
    rows = np.flatnonzero(could_not.to_numpy())
    texts: list[str] = reasons.take(pa.array(rows)).to_pylist()
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    for row, text in zip(rows.tolist(), texts, strict=True):
        code, _, detail = text.partition(": ")
        counts[code] += 1
        examples.setdefault(code, [])
        if len(examples[code]) < EXAMPLES:
            examples[code].append({"id": pool.ids([row])[0], "row": row, "detail": detail})
    return [Reason(code, count, examples[code]) for code, count in counts.most_common()]


def _beginning(entry: dict[str, Any]) -> str | None:
    """Return how a record begins, None where its input is not there any more or compressed."""
    path = Path(entry.get("input") or "")
    try:
        if not path.is_file() or _internal.compression_suffix([path]):
            return None
        with path.open("rb") as file:
            file.seek(entry["offset"])
            return file.read(min(entry["length"], SHOWN_BYTES)).decode(errors="replace")
    except (OSError, KeyError, TypeError, ValueError):
        return None

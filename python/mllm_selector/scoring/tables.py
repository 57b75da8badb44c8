"""Score parts: what was found out about a shard, as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.metrics import METRICS, Answer, Metric, Metrics, Variant
from mllm_selector.scoring.parts import WORK
from mllm_selector.scoring.shards import ShardScores

__all__ = ["embedding_table", "example_table", "score_table"]

NOT_FINITE = "not-finite: the value is no number or infinite"


def score_table(rows: Sequence[int], scores: ShardScores, metrics: Metrics, schema: pa.Schema) -> pa.Table:
    """Make a part of the first sweep, see `mllm_selector.artifacts.score_schema`.

    Parameters
    ----------
    rows : sequence of int
        The shard's rows of the pool.
    scores : ShardScores
        What is known of them.
    metrics : Metrics
        The metrics; those of the second sweep are left out.
    schema : pyarrow.Schema
        The part's schema.
    """
    nll_sum = np.full(len(rows), np.nan, dtype=np.float32)
    answer_tokens = np.zeros(len(rows), dtype=np.uint32)
    values = {
        name: np.full(len(rows), np.nan, dtype=np.float32) for name in metrics.names if name in schema.names
    }
    reasons = [scores.reasons.get((Variant.FULL, row)) for row in rows]
    missing: list[dict[str, str]] = [{} for _ in rows]
    for place, row in enumerate(rows):
        answer = scores.answers.get((Variant.FULL, row))
        if answer is None:
            continue
        nll_sum[place] = answer.nll.sum(dtype=np.float64)
        answer_tokens[place] = len(answer.nll)
        for name, column in values.items():
            column[place], reason = _value(METRICS[name], row, scores, answer)
            if reason is not None:
                missing[place][name] = reason
    columns = [
        pa.array(rows, type=pa.uint64()),
        pa.array(nll_sum),
        pa.array(answer_tokens),
        *(pa.array(column) for column in values.values()),
        pa.array(reasons, type=pa.utf8()),
        pa.array([list(each.items()) for each in missing], type=schema.field("missing").type),
        *([_embeddings(rows, scores, schema)] if "embedding" in schema.names else []),
    ]
    return pa.Table.from_arrays(columns, schema=_with_work(schema, scores))


def embedding_table(rows: Sequence[int], scores: ShardScores, schema: pa.Schema) -> pa.Table:
    """Make a part of the sweep for input embeddings, see `mllm_selector.artifacts.embedding_schema`.

    Parameters
    ----------
    rows : sequence of int
        The shard's rows of the pool.
    scores : ShardScores
        What is known of them.
    schema : pyarrow.Schema
        The part's schema.
    """
    columns = [
        pa.array(rows, type=pa.uint64()),
        pa.array([scores.reasons.get((Variant.FULL, row)) for row in rows], type=pa.utf8()),
        _embeddings(rows, scores, schema),
    ]
    return pa.Table.from_arrays(columns, schema=_with_work(schema, scores))


def _embeddings(rows: Sequence[int], scores: ShardScores, schema: pa.Schema) -> pa.Array:
    """Return the embeddings of a shard; zeros where there is none."""
    kind = schema.field("embedding").type
    values = np.zeros((len(rows), kind.list_size), dtype=np.float16)
    for place, row in enumerate(rows):
        if row in scores.embeddings:
            values[place] = scores.embeddings[row]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def example_table(
    rows: Sequence[int],
    scores: ShardScores,
    mean_nll: NDArray[np.float32],
    metric: Metric,
    schema: pa.Schema,
) -> pa.Table:
    """Make a part of the second sweep, see `mllm_selector.artifacts.example_schema`.

    Parameters
    ----------
    rows : sequence of int
        The shard's rows of the pool.
    scores : ShardScores
        What is known of them with an example in front.
    mean_nll : ndarray of float32, shape (rows,)
        Mean loss of each as it is; NaN where it was not scored.
    metric : Metric
        The metric.
    schema : pyarrow.Schema
        The part's schema.
    """
    values = np.full(len(rows), np.nan, dtype=np.float32)
    missing: list[dict[str, str]] = [{} for _ in rows]
    for place, row in enumerate(rows):
        if np.isnan(mean_nll[place]):
            continue
        values[place], reason = _compared(metric, row, scores, float(mean_nll[place]))
        if reason is not None:
            missing[place][metric.name] = reason
    columns = [
        pa.array(rows, type=pa.uint64()),
        pa.array(values),
        pa.array([list(each.items()) for each in missing], type=schema.field("missing").type),
    ]
    return pa.Table.from_arrays(columns, schema=_with_work(schema, scores))


def _with_work(schema: pa.Schema, scores: ShardScores) -> pa.Schema:
    """Note in a part's metadata what its scores took."""
    work = {"images_encoded": scores.images_encoded, "rescored": scores.rescored}
    return schema.with_metadata({**(schema.metadata or {}), WORK: json.dumps(work)})


def _value(metric: Metric, row: int, scores: ShardScores, answer: Answer) -> tuple[float, str | None]:
    if metric.compute is None:
        return _compared(metric, row, scores, answer.mean_nll)
    return _finite(metric.compute(answer))


def _compared(metric: Metric, row: int, scores: ShardScores, mean_nll: float) -> tuple[float, str | None]:
    """Compare a sample's loss with that of its variant."""
    assert metric.compare is not None
    other = scores.answers.get((metric.variant, row))
    if other is None:
        return np.nan, scores.reasons[metric.variant, row]
    return _finite(metric.compare(mean_nll, other.mean_nll))


def _finite(value: float) -> tuple[float, str | None]:
    # What is stored is float32, and infinite above its range.
    return (value, None) if abs(value) <= np.finfo(np.float32).max else (np.nan, NOT_FINITE)

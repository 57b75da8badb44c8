"""Run directories with made-up scores, as the stages before the report leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mllm_selector.artifacts import score_schema, write_arrow
from mllm_selector.demo import nlvr
from mllm_selector.pool import POOL_SCHEMA
from mllm_selector.rundir import RunDirectory, StageRecord

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
DIMENSIONS = 16
FURTHER = ("entropy", "visnec")
REJECTED = [
    {
        "id": "a",
        "record": 3,
        "offset": 1,
        "length": 2,
        "reason": "image-missing",
        "detail": "x.png is not there",
    },
    {
        "id": None,
        "record": 9,
        "offset": 3,
        "length": 2,
        "reason": "no-answer",
        "detail": "the last turn asks",
    },
    *(
        {"id": f"b{n}", "record": n, "offset": n, "length": 2, "reason": "image-missing", "detail": "gone"}
        for n in range(20, 25)
    ),
]
UNSCORED = {4: "too-long: 9,000 tokens", 40: "too-long: 8,500 tokens", 41: "image-unreadable: x.png: cut off"}
SHARD = 2048


def pool_table(records: list[dict[str, Any]]) -> pa.Table:
    """Return LLaVA records as a pool."""
    images = [record.get("image", []) for record in records]
    images = [[image] if isinstance(image, str | bytes) else image for image in images]
    rows = [
        {
            "id": record["id"],
            "source": record["source"],
            "messages": [
                {"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]
            ],
            "images": [
                {"path": None, "bytes": image} if isinstance(image, bytes) else {"path": image, "bytes": None}
                for image in images[number]
            ],
            "file": 0,
            "offset": 100 * number,
            "length": 99,
        }
        for number, record in enumerate(records)
    ]
    metadata = {"mllm_selector.pool_version": "2", "mllm_selector.format": "llava-json"}
    return pa.Table.from_pylist(rows, schema=POOL_SCHEMA.with_metadata(metadata))


def made_up_scores(sources: list[str], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return necessities and group numbers: harder sources, groups that mix neighbours, wrong answers."""
    random = np.random.default_rng(seed)
    names = {name: rank for rank, name in enumerate(dict.fromkeys(sources))}
    codes = np.array([names[source] for source in sources])
    level = 0.08 + 1.6 * random.beta(1.2, 2.0, size=len(names))
    group = 4 * codes + random.integers(0, 4, size=len(codes))
    group = np.where(random.random(len(codes)) < 0.15, random.integers(0, 4 * len(names), len(codes)), group)
    easier = 0.6 + 0.8 * random.random(4 * len(names))
    necessity = level[codes] * easier[group] * random.gamma(2.0, 0.5, size=len(codes))
    wrong = random.random(len(codes)) < 0.01
    necessity[wrong] += random.gamma(6.0, 0.5, size=int(wrong.sum()))
    return necessity.astype(np.float32), group.astype(np.int32)


def made_up_embeddings(group: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return unit vectors that lie near each other inside a group; every twentieth repeats the one before."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((int(group.max()) + 1, DIMENSIONS))
    vectors = centres[group] + 0.35 * random.standard_normal((len(group), DIMENSIONS))
    vectors[19::20] = vectors[18::20][: len(vectors[19::20])]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write_run(
    path: Path,
    records: list[dict[str, Any]],
    images: Path | None,
    *,
    budget: float = 0.1,
    scores: tuple[np.ndarray, np.ndarray] | None = None,
    unscored: dict[int, str] | None = None,
    rejected: list[dict[str, Any]] | None = None,
    tell_groups: bool = True,
    seed_subset: int = 0,
    further: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a run directory that is ready for its report."""
    random = np.random.default_rng(7)
    count = len(records)
    necessity, group = made_up_scores([r["source"] for r in records]) if scores is None else scores
    necessity = necessity.copy()
    reasons = [None] * count
    for row, reason in (unscored or {}).items():
        necessity[row], reasons[row] = np.nan, reason
    embeddings = made_up_embeddings(group)
    embeddings[np.isnan(necessity)] = 0.0
    seed_rows = np.sort(random.permutation(count)[:seed_subset])

    chosen_count = round(budget * count)
    weight = np.zeros(group.max() + 1)
    np.add.at(weight, group, np.nan_to_num(necessity))
    size = np.bincount(group)
    keys = random.random(count) * size[group] / np.maximum(weight[group], 1e-9)
    rows = np.sort(np.argsort(keys, kind="stable")[:chosen_count])

    with RunDirectory(path) as run:
        write_arrow(run.pool, pool_table(records))
        for part in range(-(-count // SHARD)):
            span = slice(part * SHARD, min(count, (part + 1) * SHARD))
            length = span.stop - span.start
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(embeddings[span].reshape(-1)),
                type=score_schema(DIMENSIONS).field("embedding").type,
            )
            tokens = random.integers(1, 30, size=length).astype(np.uint32)
            columns = [
                np.arange(span.start, span.stop, dtype=np.uint64),
                necessity[span] * tokens.astype(np.float32),
                tokens,
                necessity[span],
                pa.array(reasons[span], pa.utf8()),
                pa.array([[]] * length, score_schema(DIMENSIONS).field("missing").type),
                vectors,
            ]
            table = pa.Table.from_arrays(
                [pa.array(c) if isinstance(c, np.ndarray) else c for c in columns],
                schema=score_schema(DIMENSIONS),
            )
            for name, values in (further or {}).items():
                table = table.append_column(name, pa.array(values[span].astype(np.float32)))
            write_arrow(run.scores / f"part-{part:05d}.arrow", table)
        selection = pa.table(
            {
                "row": rows.astype(np.uint64),
                "id": pa.array([records[row]["id"] for row in rows], pa.utf8()),
                "order": random.permutation(chosen_count).astype(np.uint32),
                "group": group[rows],
                "necessity": necessity[rows],
                "seed": np.isin(rows, seed_rows),
            }
        )
        if tell_groups:
            told = [
                {
                    "group": int(number),
                    "size": int(size[number]),
                    "mean_necessity": _mean(necessity[group == number]),
                }
                for number in np.unique(group)
            ]
            selection = selection.replace_schema_metadata({"mllm_selector.groups": json.dumps(told)})
        write_arrow(run.selection, selection)
        if seed_subset:
            write_arrow(run.seed_rows, pa.table({"row": seed_rows.astype(np.uint64)}))
        if rejected is not None:
            run.rejected.write_text("".join(json.dumps(entry) + "\n" for entry in rejected))
        run.stages = _stages(images, budget, count, len(rejected or []), seed_subset, chosen_count)
        run.save()
    return path


def write_real_run(folder: Path) -> Path:
    """Write a run over real statements, with everything in it that a report can show."""
    pool, images = nlvr.write_pool(folder)
    records = json.loads(pool.read_text())
    random = np.random.default_rng(3)
    with_text = {"input": str(pool), "offset": 2, "length": 300}
    return write_run(
        folder / "run",
        records,
        images,
        unscored=UNSCORED,
        rejected=[REJECTED[0] | with_text, *REJECTED[1:]],
        seed_subset=100,
        further={name: random.gamma(2.0, 0.3, len(records)) for name in FURTHER},
    )


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.astype(np.float64).mean()) if len(values) else None


def _stages(
    images: Path | None, budget: float, samples: int, rejected: int, seed_subset: int, chosen: int
) -> dict[str, StageRecord]:
    ingest = {"pool": "pool.json", "images": None if images is None else str(images), "format": "auto"}
    seed = {
        "model": "some/model",
        "seed_size": str(seed_subset),
        "seed_epochs": 1.0,
        "seed_batch_size": 16,
        "seed_learning_rate": 2e-4,
        "lora_rank": 16,
        "seed": 0,
    }
    pick = {
        "budget": f"{budget:.0%}",
        "groups": "cluster",
        "share": "size-necessity",
        "within": "uniform",
        "trim": 0.0,
        "seed_samples": "compete",
        "seed": 0,
    }
    return {
        "ingest": StageRecord(
            "done", "a", ingest, {}, {"samples": samples, "rejected": rejected}, 0.84, 96.0
        ),
        "seed": StageRecord("done", "b", seed, {}, {"loss": 0.4412, "steps": 32}, 61.3, 1480.2),
        "export": StageRecord("done", "c", {"precision": "float32"}, {}, {"graphs": 2}, 12.9, 1102.0),
        "score": StageRecord("done", "d", {"device": "auto"}, {}, {"scored": samples}, 148.0, 901.5),
        "pick": StageRecord("done", "e", pick, {}, {"chosen": chosen, "subset": "subset.json"}, 0.41, 180.0),
    }

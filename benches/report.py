"""Time, memory and size of the report for a pool of any size with made-up scores.

    python benches/report.py --rows 1000000 --dim 1024 --work DIR

makes a run directory in DIR (rows x dim x 2 bytes of embeddings), writes its report in a process of its own,
and prints one row for RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from mllm_selector.artifacts import score_schema, write_arrow
from mllm_selector.pool import POOL_SCHEMA
from mllm_selector.rundir import RunDirectory, StageRecord

PART = 65_536
SOURCES = 20
IMAGES = 500
WORKER = """
import resource, sys, time
from pathlib import Path
from mllm_selector.config import ReportOptions
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import report
started = time.perf_counter()
with RunDirectory(Path(sys.argv[1])) as run:
    size = report.run(run, ReportOptions(), SilentProgress())["bytes"]
status = dict(line.split(":") for line in open("/proc/self/status") if line.startswith(("VmHWM", "RssAnon")))
print(time.perf_counter() - started, size, status["VmHWM"].split()[0], status["RssAnon"].split()[0])
"""


def make_images(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        small = random.integers(0, 256, size=(24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480)).save(folder / f"{number}.jpg", quality=85)


def make_run(path: Path, rows: int, dim: int) -> None:
    random = np.random.default_rng(0)
    make_images(path / "images", random)
    centres = random.standard_normal((1000, dim)).astype(np.float32)
    group = random.integers(0, 1000, rows)
    necessity = random.gamma(2.0, 0.4, rows).astype(np.float32)
    with RunDirectory(path / "run") as run:
        _write_pool(run, rows)
        for part, first in enumerate(range(0, rows, PART)):
            span = slice(first, min(rows, first + PART))
            vectors = centres[group[span]]
            vectors += random.standard_normal(vectors.shape, dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            schema = score_schema(dim)
            values = pa.array(vectors.astype(np.float16).reshape(-1))
            tokens = random.integers(1, 200, len(vectors)).astype(np.uint32)
            columns = [
                pa.array(np.arange(span.start, span.stop, dtype=np.uint64)),
                pa.array(necessity[span] * tokens.astype(np.float32)),
                pa.array(tokens),
                pa.array(necessity[span]),
                pa.nulls(len(vectors), pa.utf8()),
                pa.array([[]] * len(vectors), schema.field("missing").type),
                pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type),
            ]
            write_arrow(run.scores / f"part-{part:05d}.arrow", pa.Table.from_arrays(columns, schema=schema))
        chosen = np.sort(random.permutation(rows)[: rows // 10])
        selection = {
            "row": chosen.astype(np.uint64),
            "id": pa.array([str(row) for row in chosen.tolist()], pa.large_utf8()),
            "order": random.permutation(len(chosen)).astype(np.uint32),
            "group": group[chosen].astype(np.int32),
            "necessity": necessity[chosen],
            "seed": np.zeros(len(chosen), dtype=bool),
        }
        write_arrow(run.selection, pa.table(selection))
        ingest = {"pool": "pool.json", "images": str(path / "images")}
        run.stages = {
            "ingest": StageRecord("done", "a", ingest, {}, {"samples": rows, "rejected": {}}, 1.0),
            "score": StageRecord("done", "b", {}, {}, {}, 1.0),
            "pick": StageRecord("done", "c", {"budget": "10%"}, {}, {"chosen": len(chosen)}, 1.0),
        }
        run.save()


def _write_pool(run: RunDirectory, rows: int) -> None:
    metadata = {"mllm_selector.pool_version": "2", "mllm_selector.format": "llava-json"}
    schema = POOL_SCHEMA.with_metadata(metadata)
    with pa.OSFile(str(run.pool), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for first in range(0, rows, 8192):
            batch = [
                {
                    "id": str(row),
                    "source": f"source {row % SOURCES}",
                    "messages": [
                        {
                            "role": "user",
                            "content": f"<image>\nWhat does picture {row} show, and how much of it?",
                        },
                        {
                            "role": "assistant",
                            "content": f"It shows number {row} and some other things. " * 4,
                        },
                    ],
                    "images": [{"path": f"{row % IMAGES}.jpg"}],
                    "file": 0,
                    "offset": 200 * row,
                    "length": 199,
                }
                for row in range(first, min(rows, first + 8192))
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    path = given.work / f"report-{given.rows}-{given.dim}"
    if not (path / "run" / "manifest.json").exists():
        started = time.perf_counter()
        make_run(path, given.rows, given.dim)
        print(f"made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    command = [sys.executable, "-c", WORKER, str(path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, size, peak, anonymous = (float(value) for value in done.stdout.split())
    told = json.loads((path / "run" / "report.json").read_text())
    head = "rows | columns | seconds | peak MB | anonymous MB | page MB | references | duplicates of"
    print(f"| {head} |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {given.rows:,} | {given.dim:,} | {seconds:.1f} | {peak / 1024:,.0f} | {anonymous / 1024:,.0f} | "
        f"{size / 1e6:.1f} | {told['coverage']['references']:,} | {told['duplicates']['pool']:,} |"
    )


if __name__ == "__main__":
    main()

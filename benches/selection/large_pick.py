"""A share of 100,000,000 embeddings, chosen on one ordinary machine, from Arrow parts on its disk.

    python benches/selection/large_pick.py [--rows N] [--columns D] [--parts P] [--budget B] [--threads T]

Writes the parts first, once: Arrow IPC files with a column of fixed-size lists of float16, 12.8 GB with the
default options. Then `mllm_selector.pick`, by default with all its defaults, in a process of its own that
maps the parts. "Anonymous" is memory that the system cannot take back: pages of mapped files are not in it.

`--quality` compares the two levels (clusters trained on a sample, samples taken inside each) with exact
k-center over all rows and with random rows: the cosine distance of all rows to the nearest one chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

import mllm_selector
from data import clustered, unit

ROWS_OF_A_BATCH = 65_536
CLUSTERS = 20_000
FIELDS = {"RssAnon": "anonymous MB", "RssFile": "file MB"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--budget", default="1%")
    parser.add_argument("--group-count", type=int, help="clusters; default as in pick")
    parser.add_argument("--within", help="how samples are taken inside a group; default as in pick")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/bench-data"))
    parser.add_argument("--quality", action="store_true", help="compare two levels with one")
    return parser.parse_args()


def main() -> None:
    options = parse()
    paths = written(options)
    if options.quality:
        print(json.dumps(quality(options, paths), indent=1))
        return
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=choose, args=(options, paths, queue))
    process.start()
    peaks = dict.fromkeys(FIELDS.values(), 0.0)
    status = Path(f"/proc/{process.pid}/status")
    while process.is_alive():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in FIELDS:
                peaks[FIELDS[name]] = max(peaks[FIELDS[name]], int(value.split()[0]) * 1024 / 1e6)
        time.sleep(0.05)
    if process.exitcode:
        sys.exit(process.exitcode)
    print(json.dumps({**queue.get(), **peaks}, indent=1))


def written(options: argparse.Namespace) -> list[Path]:
    """Write the parts that are not there yet; each depends on its number and the options alone."""
    folder = options.work / f"large-{options.rows}x{options.columns}-{options.parts}"
    folder.mkdir(parents=True, exist_ok=True)
    draw = None
    paths = []
    for part in range(options.parts):
        path = folder / f"part-{part:05}.arrow"
        paths.append(path)
        if path.exists():
            continue
        draw = draw or clustered(options.columns, clusters=CLUSTERS)
        first, last = (options.rows * number // options.parts for number in (part, part + 1))
        write_part(draw, np.random.default_rng([4, part]), last - first, options.columns, path)
    return paths


def write_part(draw, rng: np.random.Generator, rows: int, columns: int, path: Path) -> None:
    kind = pa.list_(pa.float16(), columns)
    schema = pa.schema([("embedding", kind), ("necessity", pa.float32())])
    unfinished = path.with_suffix(".unfinished")
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for first in range(0, rows, ROWS_OF_A_BATCH):
            count = min(ROWS_OF_A_BATCH, rows - first)
            values = pa.array(unit(draw(rng, count)).astype(np.float16).ravel())
            necessity = pa.array(rng.gamma(2.0, size=count).astype(np.float32))
            embedding = pa.FixedSizeListArray.from_arrays(values, columns)
            writer.write(pa.record_batch([embedding, necessity], schema))
    unfinished.replace(path)


def opened(paths: list[Path]) -> tuple[list[pa.ChunkedArray], np.ndarray]:
    """Map the parts; only the necessity is read."""
    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
    necessity = np.concatenate([table["necessity"].to_numpy() for table in tables])
    return [table["embedding"] for table in tables], necessity


def choose(options: argparse.Namespace, paths: list[Path], queue) -> None:
    embeddings, necessity = opened(paths)
    started = time.perf_counter()
    rows = mllm_selector.pick(
        necessity,
        embeddings,
        budget=options.budget,
        group_count=options.group_count,
        within=options.within,
        threads=options.threads,
    )
    seconds = time.perf_counter() - started
    queue.put(
        {
            "rows": len(necessity),
            "columns": options.columns,
            "chosen": len(np.unique(rows)),
            "groups": options.group_count or "default",
            "within": options.within or "default",
            "threads": options.threads,
            "seconds": round(seconds, 1),
            "mean necessity": float(necessity.mean()),
            "mean necessity of the chosen": float(necessity[rows].mean()),
        }
    )


def quality(options: argparse.Namespace, paths: list[Path]) -> list[dict[str, object]]:
    """Say how near the chosen rows of two levels, of one level and of chance are to all rows."""
    embeddings, necessity = opened(paths)
    X = np.concatenate([column.combine_chunks().flatten().to_numpy() for column in embeddings])
    X = X.reshape(-1, options.columns)
    threads = options.threads

    def grouped(within: str) -> np.ndarray:
        return mllm_selector.pick(
            necessity, embeddings, budget=options.budget, within=within, share="size", threads=threads
        )

    count = len(grouped("uniform"))
    ways = {
        "one level: exact k-center": lambda: (
            mllm_selector.k_center(embeddings, count, metric="cosine", threads=threads).rows
        ),
        "two levels: k-center in each group": lambda: grouped("k-center"),
        "two levels: facility location in each group": lambda: grouped("facility-location"),
        "two levels: uniform in each group": lambda: grouped("uniform"),
        "random": lambda: np.random.default_rng(0).choice(len(X), count, replace=False),
    }
    found = []
    for name, choose_rows in ways.items():
        started = time.perf_counter()
        rows = choose_rows()
        seconds = time.perf_counter() - started
        distances = to_nearest(X, X[rows])
        found.append(
            {
                "way": name,
                "rows": len(X),
                "chosen": len(rows),
                "seconds": round(seconds, 1),
                "mean distance": float(distances.mean()),
                "greatest distance": float(distances.max()),
            }
        )
    return found


def to_nearest(X: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Cosine distance of every row to the nearest chosen one, by plain products."""
    centres = unit(chosen).T
    firsts = range(0, len(X), 4096)
    return np.concatenate([1 - (unit(X[first : first + 4096]) @ centres).max(axis=1) for first in firsts])


if __name__ == "__main__":
    main()

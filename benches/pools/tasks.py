"""What is compared with what, on which files, and how the results are checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import checks
import data
import pool_file
import scores
from measure import Contender, Measurement, cli, function
from mllm_selector.selection import Selection

SMALL = 500
"""Records, or rows, of the call before the clock starts."""


@dataclass(frozen=True)
class Comparison:
    """A task made ready: its contenders, the files that they read, their records, and the check of one."""

    contenders: list[Contender]
    reads: list[Path]
    records: int
    check: Callable[[Contender, Measurement], str]


def ingest(form: str, peers: list[tuple[str, str, dict[str, Any]]]) -> Callable[[Namespace, int], Comparison]:
    """Make the task of reading the pool in one form; peers are a name, a function and its arguments."""

    def compare(options: Namespace, threads: int) -> Comparison:
        pool = data.prepare(form, options.records, options.seed, options.work)
        small = data.prepare(form, SMALL, options.seed, options.work)
        out = options.work / "out"
        contenders = [
            function(name, call, out, {"pool": small}, pool=pool, **arguments)
            for name, call, arguments in peers
        ]
        images = image_folder(options)
        for look in options.looks:
            given = {"images": images, "check_images": look, "threads": threads}
            flags = ["--images", images, "--check-images", look, "--threads", threads]
            contenders += [
                cli(f"ours, command, images: {look}", out, "ingest", pool, *flags, "--run-dir", out / "run"),
                function(
                    f"ours, call, images: {look}", "ours.ingest", out, {"pool": small}, pool=pool, **given
                ),
            ]
        expected = data.expected(options.records, options.seed, options.work)

        def check(contender: Contender, done: Measurement) -> str:
            files = done.results.get("files", [out / "run" / "pool.arrow"])
            return checks.same_records([Path(file) for file in files], expected)

        return Comparison(contenders, [pool], options.records, check)

    return compare


def image_folder(options: Namespace) -> Path:
    """Return the folder of all images: ours want them to be there, whatever else they look at."""
    lines = data.prepare("jsonl", options.records, options.seed, options.work)
    return data.prepare_images(lines, options.work)


ARRAY_PEERS = [
    ("Python json + pyarrow", "peer_python.ingest", {"parser": "json"}),
    ("Python orjson + pyarrow", "peer_python.ingest", {"parser": "orjson"}),
    ("Python orjson + pyarrow, gc off", "peer_python.ingest", {"parser": "orjson", "collector": False}),
    ("HF datasets, load_dataset", "peer_datasets.ingest", {"builder": "json"}),
]
LINES_PEERS = [
    ("pyarrow.json, whole", "peer_pyarrow.json_whole", {}),
    ("pyarrow.json, stream", "peer_pyarrow.json_stream", {}),
    ("Python json line by line + pyarrow", "peer_python.ingest_lines", {"parser": "json"}),
    ("Python orjson line by line + pyarrow", "peer_python.ingest_lines", {"parser": "orjson"}),
    ("HF datasets, load_dataset", "peer_datasets.ingest", {"builder": "json"}),
]
PARQUET_PEERS = [
    ("pyarrow.parquet, whole", "peer_pyarrow.parquet_whole", {}),
    ("pyarrow.parquet, stream", "peer_pyarrow.parquet_stream", {}),
    ("HF datasets, load_dataset", "peer_datasets.ingest", {"builder": "parquet"}),
]
OPEN_CONTENDERS = [
    ("pyarrow memory_map, one take", "peer_pyarrow.open_and_take"),
    ("pyarrow memory_map, row by row", "peer_pyarrow.open_and_slice"),
    ("HF datasets, one call", "peer_datasets.open_and_take"),
    ("HF datasets, row by row", "peer_datasets.open_and_index"),
    ("ours, one call", "ours.open_and_take"),
    ("ours, row by row", "ours.open_and_index"),
]


def open_pool(options: Namespace, threads: int) -> Comparison:
    """Open a pool file and read random rows as Python objects, in one call and a row at a time."""
    file, stream = pool_file.prepare(options.rows, options.work)
    small_file, small_stream = pool_file.prepare(SMALL, options.work)
    drawn = draw(options.rows, options.reads, options.work / "rows.npy")
    few = draw(SMALL, 10, options.work / "few.npy")
    contenders = [
        function(
            name,
            call,
            options.work / "out",
            {"pool": small_stream if "datasets" in call else small_file, "rows": few},
            pool=stream if "datasets" in call else file,
            rows=drawn,
        )
        for name, call in OPEN_CONTENDERS
    ]
    digests: list[str] = []

    def check(contender: Contender, done: Measurement) -> str:
        digests.append(done.results["digest"])
        if digests[-1] != digests[0]:
            return "WRONG: not the rows that the first read"
        return f"the same {min(options.reads, options.rows):,} rows"

    return Comparison(contenders, [file, stream], options.rows, check)


def draw(rows: int, count: int, path: Path) -> Path:
    """Write rows drawn without replacement, in random order, as a NumPy file."""
    np.save(path, np.random.default_rng(4).choice(rows, size=min(count, rows), replace=False))
    return path


def write_back(options: Namespace, threads: int) -> Comparison:
    """Write a tenth of a JSON array that has been ingested."""
    pool = data.prepare("json", options.records, options.seed, options.work)
    lines = data.prepare("jsonl", options.records, options.seed, options.work)
    small = data.prepare("json", SMALL, options.seed, options.work)
    out, run = options.work / "out", options.work / "run"
    shutil.rmtree(run, ignore_errors=True)
    flags = ["--images", image_folder(options), "--check-images", "none", "--run-dir", run, "--quiet"]
    subprocess.run([sys.executable, "-m", "mllm_selector", "ingest", pool, *flags], check=True)
    scores.give(run)

    drawn = np.sort(np.load(draw(options.records, options.records // 10, options.work / "chosen.npy")))
    np.save(options.work / "chosen.npy", drawn)
    ids = options.work / "chosen.ids"
    ids.write_text("\n".join(f"{row:012d}" for row in drawn))
    few = draw(SMALL, 10, options.work / "few.npy")
    contenders = [
        function(name, "peer_python.write_back", out, {"pool": small}, pool=pool, ids=ids, **arguments)
        for name, arguments in (
            ("Python json", {"parser": "json"}),
            ("Python orjson", {"parser": "orjson"}),
            ("Python orjson, gc off", {"parser": "orjson", "collector": False}),
        )
    ]
    pick = ["pick", "--groups", "random", "--budget", len(drawn), "--threads", threads, "--run-dir", run]
    contenders += [
        function(
            "ours, call", "ours.write_back", out, {"rows": few}, run_dir=run, rows=options.work / "chosen.npy"
        ),
        cli("ours, command that also picks", out, *pick),
    ]

    def check(contender: Contender, done: Measurement) -> str:
        if not contender.ours:
            return checks.same_values(Path(done.results["subset"]), lines, drawn.tolist())
        if "subset" in done.results:
            return checks.same_bytes(Path(done.results["subset"]), lines, drawn.tolist())
        selection = Selection.load(run)
        return checks.same_bytes(selection.subset, lines, selection.rows.tolist())

    return Comparison(contenders, [pool, run / "pool.arrow"], options.records, check)


TASKS: dict[str, Callable[[Namespace, int], Comparison]] = {
    "ingest": ingest("json", ARRAY_PEERS),
    "lines": ingest("jsonl", LINES_PEERS),
    "gzip": ingest("jsonl.gz", LINES_PEERS),
    "zstd": ingest("jsonl.zst", LINES_PEERS),
    "parquet": ingest("parquet", PARQUET_PEERS),
    "open": open_pool,
    "writeback": write_back,
}

"""What is compared with what, on which files, and how the results are checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import checks
import data
import pool_file
import scores
from measure import Contender, Measurement, cli, function
from mllm_selector.selection import Selection


@dataclass(frozen=True)
class Comparison:
    """A task made ready: its contenders, the files that they read, their records, and the check of one."""

    contenders: list[Contender]
    reads: list[Path]
    records: int
    check: Callable[[Contender, Measurement], str]


def ingest_array(options: Namespace, threads: int) -> Comparison:
    parsers = [("json", True), ("orjson", True), ("orjson", False)]
    pool = data.prepare("json", options.records, options.seed, options.work)
    peers = [
        function(
            f"Python {parser} + pyarrow{'' if collector else ', gc off'}",
            "peer_python.ingest",
            options.work / "out",
            pool=pool,
            parser=parser,
            collector=collector,
        )
        for parser, collector in parsers
    ]
    return ingest(options, threads, pool, [*peers, with_datasets(options, pool, "json")])


def ingest_lines(form: str) -> Callable[[Namespace, int], Comparison]:
    """Make the task of JSON lines, plain or compressed."""

    def compare(options: Namespace, threads: int) -> Comparison:
        pool = data.prepare(form, options.records, options.seed, options.work)
        peers = [
            function(f"pyarrow.json, {how}", f"peer_pyarrow.json_{how}", options.work / "out", pool=pool)
            for how in ("whole", "stream")
        ]
        peers += [
            function(
                f"Python {parser} line by line + pyarrow",
                "peer_python.ingest_lines",
                options.work / "out",
                pool=pool,
                parser=parser,
            )
            for parser in ("json", "orjson")
        ]
        return ingest(options, threads, pool, [*peers, with_datasets(options, pool, "json")])

    return compare


def ingest_parquet(options: Namespace, threads: int) -> Comparison:
    pool = data.prepare("parquet", options.records, options.seed, options.work)
    peers = [
        function(f"pyarrow.parquet, {how}", f"peer_pyarrow.parquet_{how}", options.work / "out", pool=pool)
        for how in ("whole", "stream")
    ]
    return ingest(options, threads, pool, [*peers, with_datasets(options, pool, "parquet")])


def with_datasets(options: Namespace, pool: Path, builder: str) -> Contender:
    return function(
        "HF datasets, load_dataset",
        "peer_datasets.ingest",
        options.work / "out",
        pool=pool,
        builder=builder,
    )


def ingest(options: Namespace, threads: int, pool: Path, peers: list[Contender]) -> Comparison:
    """Compare readers of a pool with ours: without a look at the images, and with one if there are any."""
    out = options.work / "out"
    looks = {"none": nothing(options.work)}
    if options.images:
        lines = data.prepare("jsonl", options.records, options.seed, options.work)
        looks["header"] = data.prepare_images(lines, options.work)
    ours = []
    for look, images in looks.items():
        given = {"images": images, "check_images": look, "threads": threads}
        flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]
        ours += [
            cli(f"ours, command, images: {look}", out, "ingest", pool, *flags, "--run-dir", out / "run"),
            function(f"ours, call, images: {look}", "ours.ingest", out, pool=pool, **given),
        ]
    expected = data.expected(options.records, options.seed, options.work)

    def check(contender: Contender, done: Measurement) -> str:
        files = [Path(file) for file in done.results.get("files", [out / "run" / "pool.arrow"])]
        return checks.same_records(files, expected)

    return Comparison([*peers, *ours], [pool], options.records, check)


def nothing(work: Path) -> Path:
    """Return an empty folder."""
    folder = work / "nothing"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_pool(options: Namespace, threads: int) -> Comparison:
    """Open a pool file and read random rows as Python objects, in one call and a row at a time."""
    file, stream = pool_file.prepare(options.rows, options.work)
    out = options.work / "out"
    rows = options.work / "rows.npy"
    drawn = np.random.default_rng(4).choice(
        options.rows, size=min(options.reads, options.rows), replace=False
    )
    np.save(rows, drawn)
    contenders = [
        function(name, call, out, pool=stream if "datasets" in call else file, rows=rows)
        for name, call in (
            ("pyarrow memory_map, one take", "peer_pyarrow.open_and_take"),
            ("pyarrow memory_map, row by row", "peer_pyarrow.open_and_slice"),
            ("HF datasets, one call", "peer_datasets.open_and_take"),
            ("HF datasets, row by row", "peer_datasets.open_and_index"),
            ("ours, row by row", "ours.open_and_index"),
        )
    ]
    expected: list[str] = []

    def check(contender: Contender, done: Measurement) -> str:
        expected.append(done.results["digest"])
        same = expected[-1] == expected[0]
        return f"the same {len(drawn):,} rows" if same else f"WRONG: other rows than {contenders[0].name}"

    return Comparison(contenders, [file, stream], options.rows, check)


def write_back(options: Namespace, threads: int) -> Comparison:
    """Write a tenth of a JSON array that has been ingested."""
    pool = data.prepare("json", options.records, options.seed, options.work)
    lines = data.prepare("jsonl", options.records, options.seed, options.work)
    run = options.work / "run"
    shutil.rmtree(run, ignore_errors=True)
    flags = ["--images", nothing(options.work), "--check-images", "none", "--run-dir", run, "--quiet"]
    subprocess.run([sys.executable, "-m", "mllm_selector", "ingest", pool, *flags], check=True)
    scores.give(run)

    drawn = np.random.default_rng(6).choice(options.records, size=options.records // 10, replace=False)
    rows, ids = options.work / "chosen.npy", options.work / "chosen.ids"
    np.save(rows, np.sort(drawn))
    ids.write_text("\n".join(f"{row:012d}" for row in drawn))
    out = options.work / "out"
    contenders = [
        function(
            f"Python {parser}{'' if collector else ', gc off'}",
            "peer_python.write_back",
            out,
            pool=pool,
            ids=ids,
            parser=parser,
            collector=collector,
        )
        for parser, collector in (("json", True), ("orjson", True), ("orjson", False))
    ]
    pick = ["pick", "--groups", "random", "--budget", len(drawn), "--threads", threads, "--run-dir", run]
    contenders += [
        function("ours, call", "ours.write_back", out, run_dir=run, rows=rows),
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
    "ingest": ingest_array,
    "lines": ingest_lines("jsonl"),
    "gzip": ingest_lines("jsonl.gz"),
    "zstd": ingest_lines("jsonl.zst"),
    "parquet": ingest_parquet,
    "open": open_pool,
    "writeback": write_back,
}

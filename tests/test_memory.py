"""Stages in a quarter of the pool's size: their memory follows from options, not from the pool."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mllm_selector.artifacts import score_schema, write_arrow
from mllm_selector.rundir import RunDirectory, StageRecord

ROWS = 16_000
TEXT = 64_000
QUARTER = ROWS * TEXT // 4
"""256 MB. An interpreter with NumPy and Arrow has 130 of them."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "pool.jsonl"
    text = "a word " * (TEXT // 7)
    with path.open("w") as file:
        for row in range(ROWS):
            turns = f'[{{"from":"human","value":"{text}"}},{{"from":"gpt","value":"yes"}}]'
            file.write(f'{{"id":{row},"conversations":{turns}}}\n')
    assert path.stat().st_size > 3.9 * QUARTER
    return path


def limited(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a quarter of the pool's size."""
    return run_limited([sys.executable, "-m", "mllm_selector", *arguments])


def run_limited(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that may have no more memory of its own than that; mapped files do not count."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (QUARTER, QUARTER))

    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


def write_scores(run: RunDirectory) -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(ROWS, 16))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float16)
    necessity = random.gamma(2, size=ROWS).astype(np.float32)
    schema = score_schema(16)
    columns = [
        pa.array(np.arange(ROWS), pa.uint64()),
        pa.array(necessity),
        pa.array(np.ones(ROWS), pa.uint32()),
        pa.array(necessity),
        pa.nulls(ROWS, pa.utf8()),
        pa.array([[]] * ROWS, schema.field("missing").type),
        pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), type=schema.field("embedding").type),
    ]
    write_arrow(run.score_part(0), pa.table(columns, schema=schema))
    write_arrow(run.seed_rows, pa.table({"row": pa.array([], pa.uint64())}))


def test_reading_picking_and_reporting_take_a_quarter_of_the_pool(pool: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    at = ["--run-dir", str(run)]
    done = limited("ingest", str(pool), *at)
    assert done.returncode == 0, done.stderr
    with RunDirectory(run) as held:
        write_scores(held)
        held.stages |= {"seed": StageRecord("done", "seed"), "export": StageRecord("done", "export")}
        held.stages["score"] = StageRecord("done", "score", counts={"scored": ROWS})
        held.save()
    for command in (["pick", "--budget", "40%"], ["report"]):
        done = limited(*command, *at)
        assert done.returncode == 0, done.stderr
    assert (run / "subset.jsonl").stat().st_size > QUARTER


# Given 8 MB more than it has, for what needs more.
EXHAUSTED = """
import pathlib, resource
import numpy as np
from mllm_selector import k_center
X = np.random.default_rng(0).normal(size=(400_000, 64)).astype(np.float32)
status = pathlib.Path("/proc/self/status").read_text()
most = (int(status.partition("VmData:")[2].split()[0]) << 10) + (8 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
k_center(X, 10, threads=1)
"""


@pytest.mark.parametrize("backtrace", ["0", "1"])
def test_a_lack_of_memory_in_rust_ends_the_process_with_a_message(backtrace: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", EXHAUSTED],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"RUST_BACKTRACE": backtrace},
    )
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr.startswith("mllm-selector: out of memory, ")


NO_THREAD = """
import sys, threading
from mllm_selector.cli import main
threading.stack_size(1 << 46)  # more than a process can have
sys.exit(main(["doctor"]))
"""


def test_a_thread_that_the_system_refuses_ends_the_command_with_a_message() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", NO_THREAD], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("mllm-selector: the system refuses another thread, ")
    assert len(ended.stderr.splitlines()) == 1


def test_the_limit_is_felt() -> None:
    """A process that asks for as much as the limit does not get it."""
    ended = run_limited([sys.executable, "-c", f"bytearray({QUARTER})"])
    assert "MemoryError" in ended.stderr

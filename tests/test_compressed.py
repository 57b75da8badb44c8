"""Compressed pools: read as the text that they hold, and written back in the same way."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mllm_selector import formats
from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.pipeline import build_options, run_stages
from mllm_selector.pool import Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord, fingerprint_inputs, read_manifest
from mllm_selector.stages import ingest

RECORDS = [
    json.dumps(
        {
            "id": number,
            "conversations": [
                {"from": "human", "value": f"{number}? " + "é\n" * (number % 50)},
                {"from": "gpt", "value": "!" * (number % 9 + 1)},
            ],
        },
        ensure_ascii=bool(number % 2),
    ).encode()
    for number in range(20_000)
]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def unzstd(path: Path) -> bytes:
    with pa.input_stream(str(path), compression="zstd") as stream:
        return stream.read()


COMPRESS = {".gz": gzip.compress, ".zst": zstd}
EXPAND = {".gz": lambda path: gzip.decompress(path.read_bytes()), ".zst": unzstd}


def ingested(run: RunDirectory, pool: object) -> Pool:
    options = IngestOptions(pool=pool)
    counts = ingest.run(run, options, SilentProgress())
    inputs = {"pool": fingerprint_inputs(options.pool)}
    run.stages["ingest"] = StageRecord("done", "", options=options.as_json(), inputs=inputs, counts=counts)
    return Pool.of(run)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("framing", ["json", "jsonl"])
def test_a_compressed_pool_is_the_pool_of_its_text(kind, framing, tmp_path):
    text = b"\n".join(RECORDS) if framing == "jsonl" else b"[" + b" ,".join(RECORDS) + b"]"
    (tmp_path / "plain").write_bytes(text)
    # Two members or frames, cut inside a record.
    half = len(text) // 2
    (tmp_path / "packed").write_bytes(COMPRESS[kind](text[:half]) + COMPRESS[kind](text[half:]))
    with RunDirectory(tmp_path / "one") as one, RunDirectory(tmp_path / "other") as other:
        plain, packed = ingested(one, tmp_path / "plain"), ingested(other, tmp_path / "packed")
        assert packed.format == f"llava-{framing}"
        columns = ["id", "messages", "images", "file", "offset", "length"]
        assert packed.table.select(columns).equals(plain.table.select(columns))
        assert other.need("ingest").counts["bytes"] == (tmp_path / "packed").stat().st_size
        rows = np.random.default_rng(0).permutation(len(RECORDS))[:700]
        rows = np.append(rows, rows[:3])
        assert formats.subset_suffix(other) == f".{framing}{kind}"
        for order in (np.sort(rows), rows):
            formats.write_subset(one, order, tmp_path / "subset")
            formats.write_subset(other, order, tmp_path / f"subset{kind}")
            assert EXPAND[kind](tmp_path / f"subset{kind}") == (tmp_path / "subset").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_inputs_are_identified_by_what_was_read_of_them(tmp_path):
    contents = {
        "pool.json": b"\xef\xbb\xbf[" + b",".join(RECORDS) + b"] \n",
        "pool.jsonl": b"\n".join(RECORDS),
        "pool.jsonl.gz": gzip.compress(b"\n".join(RECORDS)),
        "pool.jsonl.zst": zstd(b"\n".join(RECORDS)),
    }
    for name, content in contents.items():
        source = tmp_path / name
        source.write_bytes(content)
        directory = tmp_path / f"run-{name}"
        options = build_options({"pool": source}, ["ingest"])
        run_stages(directory, options)
        record = read_manifest(directory)["ingest"]
        assert record.inputs["pool"] == fingerprint_inputs(options["ingest"].pool)
        # The key is that of a run that has read the inputs before.
        written = (directory / "pool.arrow").stat().st_mtime_ns
        run_stages(directory, options)
        assert (directory / "pool.arrow").stat().st_mtime_ns == written
        source.write_bytes(content[:-1])
        with pytest.raises(UsageError, match="it was made with another pool"):
            run_stages(directory, options)


def test_a_killed_ingest_is_done_again(tmp_path):
    source = tmp_path / "pool.jsonl"
    source.write_bytes(b"\n".join(RECORDS))
    options = build_options({"pool": source}, ["ingest"])

    class Killed(SilentProgress):
        def update(self, done, **facts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path / "run", options, Killed())
    if (tmp_path / "run").exists():
        assert read_manifest(tmp_path / "run")["ingest"].state == "running"
    run_stages(tmp_path / "run", options)
    assert read_manifest(tmp_path / "run")["ingest"].state == "done"


def test_inputs_compressed_in_different_ways_give_a_plain_subset(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(RECORDS[0] + b"\n" + RECORDS[1]))
    (tmp_path / "b.zst").write_bytes(zstd(RECORDS[2]))
    (tmp_path / "c").write_bytes(RECORDS[3])
    with RunDirectory(tmp_path / "run") as run:
        pool = ingested(run, [tmp_path / "a.jsonl.gz", tmp_path / "b.zst", tmp_path / "c"])
        assert pool.table["source"].to_pylist() == ["a", "a", "b", "c"]
        assert formats.subset_suffix(run) == ".jsonl"
        formats.write_subset(run, np.array([3, 1, 2, 0]), tmp_path / "subset")
    chosen = [RECORDS[row] for row in (3, 1, 2, 0)]
    assert (tmp_path / "subset").read_bytes() == b"".join(record + b"\n" for record in chosen)


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_cut_off_or_damaged_file_is_an_error(kind, tmp_path):
    whole = COMPRESS[kind](b"\n".join(RECORDS))
    for content, message in [
        (whole[: len(whole) // 2], "has been cut off"),
        (whole[:-1], "has been cut off"),
        (whole[:2000] + b"\0" * 64 + whole[2064:], "cannot be decompressed"),
    ]:
        (tmp_path / "pool").write_bytes(content)
        with RunDirectory(tmp_path / "run") as run, pytest.raises(PoolError, match=message) as caught:
            ingested(run, tmp_path / "pool")
        assert str(tmp_path / "pool") in str(caught.value)


def test_a_file_that_expands_without_bound_is_refused(tmp_path):
    # 1 GB of spaces in 30 kB.
    bomb = zstd(RECORDS[0] + b"\n" + b" " * (1 << 30))
    assert len(bomb) < 200_000
    (tmp_path / "pool").write_bytes(bomb)
    with RunDirectory(tmp_path / "run") as run, pytest.raises(PoolError, match="expands to more than"):
        ingested(run, tmp_path / "pool")


def test_progress_of_a_compressed_file_is_in_its_own_bytes(tmp_path):
    (tmp_path / "pool").write_bytes(gzip.compress(b"\n".join(RECORDS)))

    class Notes(SilentProgress):
        done: list[int] = []  # noqa: RUF012 - one test's own

        def update(self, done):
            self.done.append(done)

    progress = Notes()
    with RunDirectory(tmp_path / "run") as run:
        ingest.run(run, IngestOptions(pool=tmp_path / "pool"), progress)
    assert progress.done[-1] == (tmp_path / "pool").stat().st_size


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mllm_selector", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_line_reads_several_inputs(tmp_path):
    (tmp_path / "parts").mkdir()
    for number in range(3):
        part = b"\n".join(RECORDS[10 * number : 10 * number + 10])
        (tmp_path / "parts" / f"{number}.jsonl.gz").write_bytes(gzip.compress(part))
    (tmp_path / "more=.jsonl").write_bytes(RECORDS[30] + b"\n" + RECORDS[0])
    inputs = [f"chat={tmp_path}/parts/*.gz", tmp_path / "more=.jsonl"]
    done = command("ingest", *inputs, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "32 samples from 2 sources; 1 with an id taken before, renamed" in done.stderr
    again = command("ingest", *inputs, "--run-dir", tmp_path / "run")
    assert "done before" in again.stderr
    other = command("ingest", *inputs[1:], "--run-dir", tmp_path / "run")
    assert other.returncode == 2
    assert "it was made with another pool (chat=" in other.stderr
    strict = command(
        "ingest", *inputs, "--strict", "--duplicate-ids", "reject", "--run-dir", tmp_path / "other"
    )
    assert strict.returncode == 1
    assert "more=.jsonl: record 1 " in strict.stderr
    assert "duplicate-id" in strict.stderr
    assert not (tmp_path / "other").exists()
    unknown = command("ingest", *inputs, "--format", "llava", "--run-dir", tmp_path / "other")
    assert unknown.returncode == 2
    assert "--format: 'llava' is not one of auto, llava-json," in unknown.stderr

"""Chosen records come back byte for byte."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_selector import _internal, formats
from mllm_selector.artifacts import write_arrow
from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError, RunDirectoryError, UsageError
from mllm_selector.pool import Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord, fingerprint_inputs
from mllm_selector.stages import ingest

TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]


def ingested(run: RunDirectory, pool: Path | list[Path]) -> None:
    options = IngestOptions(pool=pool)
    counts = ingest.run(run, options, SilentProgress())
    inputs = {"pool": fingerprint_inputs(options.pool)}
    run.stages["ingest"] = StageRecord("done", "", options=options.as_json(), inputs=inputs, counts=counts)


def frame(records: list[bytes], suffix: str) -> bytes:
    if suffix == ".json":
        return b"[\n" + b",\n".join(records) + b"\n]\n"
    return b"".join(record + b"\n" for record in records)


unknown_values = st.recursive(
    st.none() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), unknown=st.lists(unknown_values, min_size=1, max_size=12), is_array=st.booleans())
def test_records_are_written_as_they_are_read(data, unknown, is_array, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    indent = data.draw(st.sampled_from([None, 2])) if is_array else None
    records = [
        json.dumps(
            {"x": value, "conversations": TURNS}, indent=indent, ensure_ascii=bool(number % 2)
        ).encode()
        for number, value in enumerate(unknown)
    ]
    suffix = ".json" if is_array else ".jsonl"
    pool = folder / "pool"
    pool.write_bytes(b"[" + b" ,\r\n ".join(records) + b"]" if is_array else b" \r\n".join(records))
    rows = data.draw(st.permutations(range(len(records))))
    with RunDirectory(folder / "run") as run:
        ingested(run, pool)
        assert formats.subset_suffix(run) == suffix
        formats.write_subset(run, np.arange(len(records)), folder / "new" / "all")
        formats.write_subset(run, np.array(rows), folder / "permuted")
    assert (folder / "new" / "all").read_bytes() == frame(records, suffix)
    assert (folder / "permuted").read_bytes() == frame([records[row] for row in rows], suffix)


@pytest.fixture
def run(tmp_path):
    pool = tmp_path / "pool.json"
    pool.write_text(json.dumps([{"id": f"{number:03}", "conversations": TURNS} for number in range(100)]))
    with RunDirectory(tmp_path / "run") as run:
        ingested(run, pool)
        yield run


def test_a_subset_is_a_pool_again(run, tmp_path):
    formats.write_subset(run, np.array([99, 3, 50]), tmp_path / "subset.json")
    with RunDirectory(tmp_path / "again") as again:
        ingested(again, tmp_path / "subset.json")
        assert Pool.of(again).table["id"].to_pylist() == ["099", "003", "050"]


def test_records_come_from_the_inputs_that_hold_them(tmp_path):
    records = [json.dumps({"id": number, "conversations": TURNS}).encode() for number in range(6)]
    for name, start in (("b", 0), ("a", 2), ("c", 4)):
        (tmp_path / name).write_bytes(b"\n".join(records[start : start + 2]))
    with RunDirectory(tmp_path / "run") as run:
        ingested(run, [tmp_path / name for name in "bac"])
        formats.write_subset(run, np.array([5, 0, 3]), tmp_path / "subset")
        with pytest.raises(UsageError, match="is the pool itself"):
            formats.write_subset(run, np.array([0]), tmp_path / "c")
    assert (tmp_path / "subset").read_bytes() == frame([records[row] for row in (5, 0, 3)], ".jsonl")


def test_a_long_record_is_copied_in_pieces(tmp_path):
    pool = tmp_path / "pool.jsonl"
    records = [
        json.dumps({"x": "é" * size, "conversations": TURNS}).encode() for size in (200_000, 1, 43_690)
    ]
    pool.write_bytes(b"\n".join(records))
    with RunDirectory(tmp_path / "run") as run:
        ingested(run, pool)
        formats.write_subset(run, np.arange(3), tmp_path / "subset")
    assert (tmp_path / "subset").read_bytes() == frame(records, ".jsonl")


def test_no_rows_are_an_empty_array(run, tmp_path):
    formats.write_subset(run, np.array([], dtype=np.int64), tmp_path / "subset.json")
    assert json.loads((tmp_path / "subset.json").read_text()) == []


def test_a_touched_but_unchanged_pool_is_accepted(run, tmp_path):
    os.utime(tmp_path / "pool.json", (1, 1))
    formats.write_subset(run, np.array([1]), tmp_path / "subset.json")
    assert json.loads((tmp_path / "subset.json").read_text())[0]["id"] == "001"


def test_a_changed_pool_is_refused(run, tmp_path):
    text = (tmp_path / "pool.json").read_text()
    (tmp_path / "pool.json").write_text(text.replace("007", "700"))
    with pytest.raises(PoolError, match="has changed since it was ingested"):
        formats.write_subset(run, np.array([1]), tmp_path / "subset.json")
    (tmp_path / "pool.json").unlink()
    with pytest.raises(PoolError, match="cannot be read"):
        formats.write_subset(run, np.array([1]), tmp_path / "subset.json")
    assert not (tmp_path / "subset.json").exists()


def test_wrong_rows_and_places_leave_nothing(run, tmp_path):
    out = tmp_path / "subset.json"
    with pytest.raises(UsageError, match="rows: 100 is not in the pool of 100 samples"):
        formats.write_subset(run, np.array([0, 100]), out)
    with pytest.raises(UsageError, match="is the pool itself"):
        formats.write_subset(run, np.array([0]), tmp_path / "pool.json")
    table = Pool.of(run).table
    pool_size = (tmp_path / "pool.json").stat().st_size
    for offset, length, message in [
        (0, 10, "row 0 is not an object"),
        (1, 20, "row 0 is not an object"),
        (pool_size - 5, 6, "row 0 lies outside of the file"),
        (2**64 - 1, 2, "row 0 lies outside of the file"),
        (1, 0, "row 0 lies outside of the file"),
    ]:
        lying = table.set_column(5, table.schema.field(5), pa.array([offset] * 100, pa.uint64()))
        lying = lying.set_column(6, table.schema.field(6), pa.array([length] * 100, pa.uint64()))
        write_arrow(run.pool, lying)
        with pytest.raises(PoolError, match=message):
            formats.write_subset(run, np.array([0]), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.json", "run"]


def test_a_run_without_a_pool_says_so(tmp_path):
    with RunDirectory(tmp_path / "run") as run, pytest.raises(RunDirectoryError, match="ingest"):
        formats.write_subset(run, np.array([0]), tmp_path / "subset")


def test_another_arrow_file_is_no_pool(tmp_path):
    write_arrow(
        tmp_path / "other.arrow",
        pa.table({"file": pa.array([0], pa.uint32()), "offset": pa.array([0], pa.uint64())}),
    )
    (tmp_path / "pool.json").write_text("[]")
    with pytest.raises(PoolError, match="no column 'length'"):
        _internal.write_subset(
            tmp_path / "other.arrow", np.array([0], np.uint64), [tmp_path / "pool.json"], tmp_path / "out"
        )

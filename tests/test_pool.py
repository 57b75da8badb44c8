"""The pool as the other stages read it."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mllm_selector.artifacts import write_arrow
from mllm_selector.errors import PoolError, RunDirectoryError, SampleError, UsageError
from mllm_selector.families.images import load_image
from mllm_selector.pool import POOL_SCHEMA, ImageRange, Pool, Sample
from mllm_selector.rundir import RunDirectory, StageRecord

SCHEMA = POOL_SCHEMA.with_metadata({"mllm_selector.pool_version": "2", "mllm_selector.format": "llava-json"})


def row(number: int) -> dict:
    return {
        "id": f"id-{number}",
        "source": ["b", "a", "c"][number % 3],
        "messages": [
            {"role": "user", "content": f"<image>{number}"},
            {"role": "assistant", "content": "é" * number},
        ],
        "images": [{"path": f"{number}.png", "bytes": None}]
        if number % 2
        else [{"path": None, "bytes": b"png"}],
        "file": 0,
        "offset": number,
        "length": 1,
    }


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    """A pool of three batches of 5, 1 and 4 rows."""
    path = tmp_path / "pool.arrow"
    rows = [row(number) for number in range(10)]
    with pa.ipc.new_file(path, SCHEMA) as writer:
        for start, end in ((0, 5), (5, 6), (6, 10)):
            writer.write_table(pa.Table.from_pylist(rows[start:end], SCHEMA))
    return path


def test_every_row_is_a_sample(pool_file):
    pool = Pool.open(pool_file, Path("pictures"))
    expected = [
        Sample(
            row=number,
            id=f"id-{number}",
            source=["b", "a", "c"][number % 3],
            messages=(("user", f"<image>{number}"), ("assistant", "é" * number)),
            images=(Path(f"pictures/{number}.png") if number % 2 else b"png",),
        )
        for number in range(10)
    ]
    assert len(pool) == 10
    assert list(pool) == expected
    assert [pool.sample(number) for number in (9, 0, 5, 6, 4)] == [expected[n] for n in (9, 0, 5, 6, 4)]
    assert pool.sample(np.int64(3)) == expected[3]
    assert Pool.open(pool_file).sample(1).images == (Path("1.png"),)


@pytest.mark.parametrize("number", [-1, 10])
def test_a_row_outside_is_an_index_error(pool_file, number):
    with pytest.raises(IndexError, match=f"row {number} is not in a pool of 10"):
        Pool.open(pool_file).sample(number)


def test_columns_of_many_rows(pool_file):
    pool = Pool.open(pool_file)
    assert pool.ids([7, 0, 7]) == ["id-7", "id-0", "id-7"]
    assert pool.ids(np.array([9], dtype=np.uint64)) == ["id-9"]
    assert pool.ids([]) == []
    codes, names = pool.sources()
    assert codes.dtype == np.int32
    assert names == ["b", "a", "c"]
    assert codes.tolist() == [number % 3 for number in range(10)]
    assert [batch.num_rows for batch in pool.batches()] == [5, 1, 4]
    assert pa.Table.from_batches(pool.batches()).equals(pool.table)
    assert pool.format == "llava-json"


def test_rows_in_any_order(pool_file):
    pool = Pool.open(pool_file)
    every = list(pool)
    assert pool[3] == pool[np.uint8(3)] == pool[-7] == every[3]
    assert pool.rows([9, 0, 9, 5]) == [every[9], every[0], every[9], every[5]]
    assert pool.rows(np.arange(10, dtype=np.uint16)) == every
    assert pool.rows([]) == []
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            pool[wrong]
    for rows in ([0, 10], [-1], np.array([2**63], dtype=np.uint64)):
        with pytest.raises(IndexError, match="is not in a pool of 10"):
            pool.rows(rows)
    for rows in ([0.5], [[1]], ["1"]):
        with pytest.raises(UsageError, match="whole numbers"):
            pool.rows(rows)
    with pytest.raises(TypeError):
        pool["id"]


def test_columns_are_not_copied(pool_file):
    pool = Pool.open(pool_file)
    first, again = (pool.column("offset") for _ in range(2))
    assert [chunk.to_numpy(zero_copy_only=True).tolist() for chunk in first.chunks] == [
        [0, 1, 2, 3, 4],
        [5],
        [6, 7, 8, 9],
    ]
    assert first.chunk(0).buffers()[1].address == again.chunk(0).buffers()[1].address
    assert pool.column("id").to_pylist() == [f"id-{number}" for number in range(10)]
    with pytest.raises(UsageError, match="column 'more' is not one of id, source, messages"):
        pool.column("more")


def test_any_arrow_consumer_takes_a_pool(pool_file):
    pool = Pool.open(pool_file)
    with pa.ipc.open_file(pool_file) as file:
        expected = file.read_all()
    assert pa.table(pool).equals(expected)
    assert pa.table(pool).schema.metadata == expected.schema.metadata
    assert pool.table.equals(expected)
    # What was exported outlives the pool.
    reader = pa.RecordBatchReader.from_stream(pool)
    del pool
    assert reader.read_all().equals(expected)


def test_batches_of_some_columns(pool_file):
    batches = list(Pool.open(pool_file).batches(["length", "id"]))
    assert [batch.num_rows for batch in batches] == [5, 1, 4]
    assert batches[0].schema.names == ["length", "id"]


def test_sources_are_counted(pool_file):
    assert Pool.open(pool_file).source_counts() == {"b": 4, "a": 3, "c": 3}


def test_a_damaged_batch_is_an_error_for_every_reader(pool_file):
    content = pool_file.read_bytes()
    at = content.index("éééé".encode())
    pool_file.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    pool = Pool.open(pool_file)
    for use in (
        lambda: pool.table,
        lambda: pool.column("messages"),
        lambda: list(pool.batches()),
        lambda: list(pool),
    ):
        with pytest.raises(PoolError, match="is damaged"):
            use()
    with pytest.raises(pa.ArrowInvalid, match="is damaged"):
        pa.table(pool)
    assert pool.column("id").to_pylist()[4] == "id-4"
    assert pool[9].id == "id-9"


def test_inputs_that_are_not_listed_are_an_error(tmp_path):
    image = {"path": "0.png", "offset": 7, "length": 2}
    path = tmp_path / "pool.arrow"
    write_arrow(path, pa.Table.from_pylist([row(0) | {"images": [image], "file": 3}], schema=SCHEMA))
    with pytest.raises(PoolError, match="names input 3 of 0"):
        Pool.open(path)[0]
    for listed in ("{", "[1]", "[{}]", "3"):
        schema = SCHEMA.with_metadata({**SCHEMA.metadata, "mllm_selector.inputs": listed})
        write_arrow(path, schema.empty_table())
        with pytest.raises(PoolError, match="does not list its inputs"):
            Pool.open(path)


def test_a_pool_of_a_run_knows_its_images_folder(pool_file, tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        with pytest.raises(RunDirectoryError, match="stage 'ingest' is not done"):
            Pool.of(run)
        run.pool.write_bytes(pool_file.read_bytes())
        run.stages["ingest"] = StageRecord("done", "", options={"images": "/pictures"})
        assert Pool.of(run).sample(1).images == (Path("/pictures/1.png"),)
        run.stages["ingest"] = StageRecord("done", "", options={"images": None})
        assert Pool.of(run).sample(1).images == (Path("1.png"),)


def test_an_image_may_be_a_part_of_an_input(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    content = buffer.getvalue()
    inputs = [{"path": str(tmp_path / name), "source": None} for name in ("a.tar", "b.tar")]
    (tmp_path / "b.tar").write_bytes(b"\0" * 7 + content + b"\0")
    image = {"path": "0.png", "offset": 7, "length": len(content)}
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, "mllm_selector.inputs": json.dumps(inputs)})
    records = [row(0) | {"images": [image], "file": 1}]
    write_arrow(tmp_path / "pool.arrow", pa.Table.from_pylist(records, schema=schema))
    (found,) = Pool.open(tmp_path / "pool.arrow").sample(0).images
    assert found == ImageRange(tmp_path / "b.tar", 7, len(content), "0.png")
    assert found.read() == content
    assert load_image(found).size == (3, 2)
    moved = Pool.open(tmp_path / "pool.arrow", inputs=[Path("x"), Path("y")]).sample(0).images
    assert moved == (ImageRange(Path("y"), 7, len(content), "0.png"),)
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(SampleError, match=r"image-unreadable: .*b\.tar: 0\.png: .* ends inside the image"):
        load_image(found)


def test_an_empty_pool_is_a_pool(tmp_path):
    write_arrow(tmp_path / "pool.arrow", SCHEMA.empty_table())
    pool = Pool.open(tmp_path / "pool.arrow")
    assert (len(pool), list(pool), pool.ids([])) == (0, [], [])
    codes, names = pool.sources()
    assert (codes.tolist(), names) == ([], [])


def test_a_file_that_is_no_pool_is_an_error(tmp_path):
    path = tmp_path / "pool.arrow"
    with pytest.raises(RunDirectoryError, match="is missing"):
        Pool.open(path)
    path.write_bytes(b"ARROW1\0\0")
    with pytest.raises(PoolError, match="is not a whole Arrow file"):
        Pool.open(path)
    for schema, message in [
        (POOL_SCHEMA, "is not a pool of version 2 (it says nothing)"),
        (SCHEMA.with_metadata({"mllm_selector.pool_version": "1", "mllm_selector.format": "x"}), "it says 1"),
        (SCHEMA.remove(1), "the columns of a pool (missing or of another type: source)"),
        (SCHEMA.set(5, pa.field("offset", pa.int64(), nullable=False)), "of another type: offset)"),
        (SCHEMA.append(pa.field("more", pa.int8())), "(it has extra ones)"),
    ]:
        write_arrow(path, schema.empty_table())
        with pytest.raises(PoolError) as caught:
            Pool.open(path)
        assert message in str(caught.value)


def test_lying_offsets_are_noticed_before_they_are_followed(pool_file):
    whole = pool_file.read_bytes()
    # The offsets of the ids: 0, 4, 8, ... as 64-bit numbers, made to point far outside.
    at = whole.index(b"".join(int(offset).to_bytes(8, "little") for offset in (0, 4, 8, 12)))
    damaged = whole[: at + 8] + (1 << 40).to_bytes(8, "little") + whole[at + 16 :]
    pool_file.write_bytes(damaged)
    pool = Pool.open(pool_file)
    for use in (lambda: pool.sample(0), lambda: pool.ids([0]), lambda: list(pool)):
        with pytest.raises(PoolError, match="is damaged"):
            use()
    assert pool.sample(7).id == "id-7"

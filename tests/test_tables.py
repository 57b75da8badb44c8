"""Formats of rows: Parquet, Arrow IPC and Hugging Face datasets folders, in and out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from format_fixtures import (
    IMAGE,
    SCHEMA,
    TURN,
    picture,
    record,
    table,
    write_datasets,
    write_file,
    write_parquet,
    write_stream,
)
from mllm_selector import formats
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.families.images import load_image
from mllm_selector.formats import parquet
from mllm_selector.pipeline import build_options, run_stages
from mllm_selector.pool import ImageRange, Pool
from mllm_selector.rundir import RunDirectory

SUFFIXES = {"parquet": ".parquet", "arrow": ".arrow", "stream": ".arrow", "lz4": ".arrow", "datasets": ""}


def write_as(kind: str, path: Path, content: pa.Table) -> Path:
    writers: dict[str, Callable[[Path, pa.Table], Path]] = {
        "parquet": write_parquet,
        "arrow": write_file,
        "stream": write_stream,
        "lz4": lambda path, content: write_file(path, content, compression="lz4"),
        "datasets": write_datasets,
    }
    return writers[kind](path.with_suffix(SUFFIXES[kind]), content)


def read_back(kind: str, path: Path) -> pa.Table:
    if kind == "parquet":
        return pq.read_table(path)
    if kind == "datasets":
        return datasets.load_from_disk(str(path)).data.table
    reader = pa.ipc.open_stream(path) if kind == "stream" else pa.ipc.open_file(path)
    return reader.read_all()


def ingested(folder: Path, pool: Any, **options: Any) -> Path:
    run_stages(folder, build_options({"pool": pool, **options}, ["ingest"]))
    return folder


def pool_of(folder: Path) -> Pool:
    with RunDirectory(folder) as run:
        return Pool.of(run)


def rejected(run: Path) -> list[tuple[str | None, int, str]]:
    lines = [json.loads(line) for line in (run / "rejected.jsonl").open()]
    assert all(line["detail"] for line in lines)
    return [(line["id"], line["record"], line["reason"]) for line in lines]


def assert_is_sample(sample: Any, number: int) -> None:
    expected = record(number)
    assert sample.id == str(number)
    assert sample.messages == tuple((turn["role"], turn["content"]) for turn in expected["messages"])
    decoded = [np.asarray(load_image(image)) for image in sample.images]
    wanted = [np.asarray(load_image(image["bytes"])) for image in expected["images"]]
    assert len(decoded) == len(wanted)
    assert all(np.array_equal(one, other) for one, other in zip(decoded, wanted, strict=True))


@pytest.mark.parametrize("kind", SUFFIXES)
def test_all_rows_are_samples_with_their_images(tmp_path, kind):
    pool = pool_of(ingested(tmp_path / "run", write_as(kind, tmp_path / "mix", table(range(50)))))
    assert pool.format == {"stream": "arrow", "lz4": "arrow"}.get(kind, kind)
    assert len(pool) == 50
    for number, sample in enumerate(pool):
        assert_is_sample(sample, number)
        kinds = {type(image) for image in sample.images}
        # Where the file is mapped, an image stays there.
        assert kinds <= ({bytes} if kind in ("parquet", "lz4") else {ImageRange})


@pytest.mark.parametrize("kind", SUFFIXES)
def test_all_rows_come_back_with_schema_and_metadata(tmp_path, kind):
    source = write_as(kind, tmp_path / "mix", table(range(50)))
    out = (tmp_path / "out").with_suffix(SUFFIXES[kind])
    with RunDirectory(ingested(tmp_path / "run", source)) as run:
        assert formats.subset_suffix(run) == SUFFIXES[kind]
        formats.write_subset(run, np.arange(50), out)
    before, after = read_back(kind, source), read_back(kind, out)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.equals(before)


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize("rows", [[3], [4, 5, 6, 30, 49], [49, 0, 7, 8, 6], []])
def test_chosen_rows_come_back_in_their_order(tmp_path, kind, rows):
    source = write_as(kind, tmp_path / "mix", table(range(50)))
    out = (tmp_path / "out").with_suffix(SUFFIXES[kind])
    with RunDirectory(ingested(tmp_path / "run", source)) as run:
        formats.write_subset(run, np.array(rows, dtype=np.int64), out)
    expected = read_back(kind, source).take(pa.array(rows, pa.int64()))
    assert read_back(kind, out).equals(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run", source.name, out.name])


def test_parquet_keeps_compression_and_size_of_row_groups(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", table(range(60)), rows=20, compression="gzip")
    with RunDirectory(ingested(tmp_path / "run", source)) as run:
        formats.write_subset(run, np.arange(0, 60, 2), tmp_path / "out.parquet")
    metadata = pq.ParquetFile(tmp_path / "out.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [20, 10]
    assert {metadata.row_group(0).column(column).compression for column in range(metadata.num_columns)} == {
        "GZIP"
    }


def test_a_datasets_folder_comes_back_as_a_dataset(tmp_path):
    source = write_datasets(tmp_path / "set", table(range(30)), shards=3)
    with RunDirectory(ingested(tmp_path / "run", source)) as run:
        formats.write_subset(run, np.arange(1, 30, 3), tmp_path / "one")
        formats.write_subset(run, np.arange(1, 30, 3), tmp_path / "two")
    original, subset = datasets.load_from_disk(str(source)), datasets.load_from_disk(str(tmp_path / "one"))
    assert subset.features == original.features
    assert subset["id"][:] == original["id"][1::3]
    image = subset[1]["images"][0]
    assert np.array_equal(np.asarray(image), np.asarray(load_image(picture(8))))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_split_must_be_named_where_there_are_several(tmp_path):
    for split in ("train", "test"):
        write_datasets(tmp_path / "both" / split, table(range(20)), shards=1)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UsageError, match="holds the splits train, test: choose one with --split"):
        ingested(tmp_path / "run", tmp_path / "both")
    with pytest.raises(UsageError, match="no split 'dev'; there are train, test"):
        ingested(tmp_path / "run", tmp_path / "both", split="dev")
    assert len(pool_of(ingested(tmp_path / "run", tmp_path / "both", split="test"))) == 20
    assert len(pool_of(ingested(tmp_path / "other", tmp_path / "both" / "train"))) == 20


def test_many_files_are_one_pool_in_the_order_given(tmp_path):
    parts = [range(10), range(10, 15), range(15, 40)]
    paths = [write_parquet(tmp_path / f"{place}.parquet", table(part)) for place, part in enumerate(parts)]
    run = ingested(tmp_path / "run", {"x": paths[0], "y": paths[1:]})
    pool = pool_of(run)
    assert [sample.id for sample in pool] == [str(number) for number in range(40)]
    assert [sample.source for sample in pool] == ["x"] * 10 + ["y"] * 30
    matched = pool_of(ingested(tmp_path / "matched", f"{tmp_path}/*.parquet"))
    assert matched.ids(range(40)) == pool.ids(range(40))
    with RunDirectory(run) as opened:
        formats.write_subset(opened, np.array([30, 12, 3]), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [30, 12, 3]


def test_columns_that_some_files_lack_are_null_in_their_rows(tmp_path):
    less = write_parquet(tmp_path / "a.parquet", table(range(5)).drop_columns(["extra"]))
    more = write_parquet(tmp_path / "b.parquet", table(range(5, 10)))
    with RunDirectory(ingested(tmp_path / "run", [less, more])) as run:
        formats.write_subset(run, np.arange(10), tmp_path / "out.parquet")
    extra = pq.read_table(tmp_path / "out.parquet")["extra"].to_pylist()
    assert extra == [None] * 5 + [record(number)["extra"] for number in range(5, 10)]


def test_files_that_no_subset_could_hold_are_refused_before_they_are_read(tmp_path):
    one = write_parquet(tmp_path / "a.parquet", table(range(5)))
    texts = [{**record(number), "id": f"n{number}"} for number in range(5)]
    other = write_parquet(
        tmp_path / "b.parquet", pa.Table.from_pylist(texts, SCHEMA.set(0, pa.field("id", pa.string())))
    )
    with pytest.raises(PoolError, match="columns of one name and different types"):
        ingested(tmp_path / "run", [one, other])


TALK = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
SEEN = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "!"}]


def column_types() -> dict[str, tuple[pa.Table, int]]:
    """Return tables of one sample in the types that are met, with the images it has."""
    turns = pa.list_(TURN)
    from_value = pa.list_(pa.struct([("from", pa.string()), ("value", pa.large_string())]))
    parts = pa.list_(
        pa.struct(
            [
                ("role", pa.string()),
                (
                    "content",
                    pa.list_(pa.struct([("type", pa.string()), ("text", pa.string()), ("image", IMAGE)])),
                ),
            ]
        )
    )
    in_parts = [
        {
            "role": "user",
            "content": [
                {"type": "image", "text": None, "image": {"bytes": picture(1), "path": None}},
                {"type": "text", "text": "?", "image": None},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "!", "image": None}]},
    ]
    marked = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "!"}]},
    ]
    spoken = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]
    both = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("from", pa.string()), ("value", pa.string())]
    )
    bare = pa.array([picture(1)], pa.binary())
    paths = pa.array([["a.png"]], pa.list_(pa.string()))
    views = pa.list_(pa.struct([("role", pa.dictionary(pa.int8(), pa.string())), ("content", pa.string())]))

    def talk(kind: pa.DataType) -> pa.Table:
        return pa.table({"messages": pa.array([TALK], kind)})

    def seen(**columns: Any) -> pa.Table:
        return pa.table({"messages": pa.array([SEEN], turns), **columns})

    def struct(bytes_: bytes | None, path: str | None) -> pa.Array:
        return pa.array([{"bytes": bytes_, "path": path}], IMAGE)

    return {
        "text only": (talk(turns), 0),
        "large": (talk(pa.large_list(TURN)), 0),
        "dictionary": (talk(views), 0),
        "fixed": (talk(pa.list_(TURN, 2)), 0),
        "from and value": (pa.table({"conversations": pa.array([spoken], from_value), "image": bare}), 1),
        "all four": (pa.table({"conversations": pa.array([SEEN], pa.list_(both)), "image": bare}), 1),
        "binary view": (seen(image=bare.cast(pa.binary_view())), 1),
        "list of binary": (seen(images=pa.array([[picture(1)]], pa.list_(pa.binary()))), 1),
        "one struct": (seen(image=struct(picture(1), "x")), 1),
        "paths": (seen(images=paths), 1),
        "path": (seen(image=["a.png"]), 1),
        "struct with path": (seen(image=struct(None, "a.png")), 1),
        "images in parts": (pa.table({"messages": pa.array([in_parts], parts)}), 1),
        "marks in parts": (pa.table({"messages": pa.array([marked], parts), "images": paths}), 1),
        "no images": (talk(turns).append_column("images", pa.nulls(1)), 0),
    }


@pytest.mark.parametrize("name", column_types())
def test_columns_of_all_types_that_are_met(tmp_path, name):
    content, images = column_types()[name]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(1))
    path = write_file(tmp_path / "a.arrow", content)
    pool = pool_of(ingested(tmp_path / "run", path, images=tmp_path / "pictures"))
    (sample,) = pool
    assert (sample.id, sample.source) == ("row-0", "a")
    assert sample.messages == (("user", "<image>" * images + "?"), ("assistant", "!"))
    for image in sample.images:
        assert np.array_equal(np.asarray(load_image(image)), np.asarray(load_image(picture(1))))
    assert len(sample.images) == images


def test_columns_are_read_by_the_names_given(tmp_path):
    turns = [{"who": "user", "says": "<image>?"}, {"who": "assistant", "says": "!"}]
    kind = pa.list_(pa.struct([("who", pa.string()), ("says", pa.string())]))
    columns = {
        "messages": [[]],
        "dialogue": pa.array([turns], kind),
        "pics": pa.array([[picture(3)]], pa.list_(pa.binary())),
        "images": [["nowhere.png"]],
        "key": [7],
        "task": ["ocr"],
        "prompt": ["Be brief."],
    }
    path = write_parquet(tmp_path / "a.parquet", pa.table(columns))
    names = "messages=dialogue,images=pics,id=key,source=task,system=prompt,role=who,content=says"
    (sample,) = pool_of(ingested(tmp_path / "run", path, columns=names))
    assert (sample.id, sample.source, len(sample.images)) == ("7", "ocr", 1)
    assert sample.messages == (("system", "Be brief."), ("user", "<image>?"), ("assistant", "!"))
    with pytest.raises(PoolError, match="--columns images=photos: there is no such column among messages, "):
        ingested(tmp_path / "other", path, columns="messages=dialogue,images=photos")


def test_rows_are_judged_as_records_of_text_are(tmp_path):
    turns = [
        None,
        [],
        [None],
        [{"role": "judge", "content": "a"}],
        [{"role": None, "content": "a"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "a"}],
        SEEN,
        [TALK[0], {"role": "assistant", "content": "<image>"}],
    ]
    reasons = (
        ["no-conversations"] * 2 + ["bad-turn"] * 4 + ["no-answer"] + ["image-marks"] * 2 + ["duplicate-id"]
    )
    good = [TALK] * 20
    ids = [*(f"bad-{number}" for number in range(len(turns))), *map(str, range(len(good))), "3"]
    content = pa.table({"id": ids, "messages": pa.array([*turns, *good, TALK], pa.list_(TURN))})
    path = write_parquet(tmp_path / "a.parquet", content)
    run = ingested(tmp_path / "run", path, duplicate_ids="reject")
    assert [reason for _, _, reason in rejected(run)] == reasons
    assert [name for name, _, _ in rejected(run)] == [*ids[: len(turns)], "3"]
    assert pool_of(run).ids(range(len(good))) == [str(number) for number in range(len(good))]
    lines = [json.loads(line) for line in (run / "rejected.jsonl").open()]
    assert [(line["offset"], line["length"]) for line in lines] == [(line["record"], 1) for line in lines]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_rows_of_more_than_64_mib_are_set_aside(tmp_path, kind):
    long = "y" * (33 << 20)
    short = [{"id": name, "messages": TALK, "images": []} for name in "abc"]
    rows = [
        *short,
        {"id": "long", "messages": [TALK[0], {"role": "assistant", "content": long}] * 2, "images": []},
        {"id": long * 2, "messages": TALK, "images": []},
        {"id": "half", "messages": [TALK[0], {"role": "assistant", "content": long}], "images": []},
        {"id": "heavy", "messages": SEEN, "images": [{"bytes": bytes(65 << 20), "path": None}]},
    ]
    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(TURN)), ("images", pa.list_(IMAGE))])
    run = ingested(tmp_path / "run", write_as(kind, tmp_path / "mix", pa.Table.from_pylist(rows, schema)))
    # An image that stays in the mapped file is not held; it is told by its bytes.
    heavy = "too-large" if kind == "parquet" else "image-unknown"
    assert rejected(run) == [("long", 3, "too-large"), (None, 4, "too-large"), ("heavy", 6, heavy)]
    assert pool_of(run).ids(range(4)) == ["a", "b", "c", "half"]


def test_texts_that_are_not_utf8_are_set_aside(tmp_path):
    path = write_file(tmp_path / "a.arrow", table(range(9)))
    whole = path.read_bytes()
    assert whole.count(b"Nummer 4.") == 1
    path.write_bytes(whole.replace(b"Nummer 4.", b"Nummer \xff."))
    run = ingested(tmp_path / "run", path)
    assert rejected(run) == [("4", 4, "broken-utf8")]
    with RunDirectory(run) as opened:
        formats.write_subset(opened, np.arange(8), tmp_path / "out.arrow")
    assert read_back("arrow", tmp_path / "out.arrow")["id"].to_pylist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_files_cut_off_are_errors(tmp_path, kind):
    path = write_as(kind, tmp_path / "mix", table(range(50)))
    whole = path.read_bytes()
    for size in [*range(7, len(whole), len(whole) // 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises((PoolError, UsageError), match="mix"):
            ingested(tmp_path / "run", path)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "lz4"])
def test_damaged_files_end_in_an_error_or_in_samples(tmp_path, kind):
    path = write_as(kind, tmp_path / "mix", table(range(20)))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        for at in random.integers(8, len(whole) - 8, size=1 + number % 4):
            damaged[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 0x10])
        path.write_bytes(damaged)
        try:
            run = ingested(tmp_path / f"run-{number}", path)
        except (PoolError, UsageError):
            continue
        assert len(list(pool_of(run))) == len(pool_of(run))


def test_lying_offsets_are_noticed_before_they_are_followed(tmp_path):
    path = write_file(tmp_path / "a.arrow", table(range(40)), rows=40)
    whole = path.read_bytes()
    # Offsets of the turns: 0, 2, 4, ... as 32-bit numbers; one in the middle points far outside.
    at = whole.index(b"".join(offset.to_bytes(4, "little") for offset in range(0, 20, 2)))
    for lie in (1 << 30, -5 & 0xFFFFFFFF):
        path.write_bytes(whole[: at + 12] + lie.to_bytes(4, "little") + whole[at + 16 :])
        with pytest.raises(PoolError, match=r"row [23] is damaged: an offset in it leads out of its column"):
            ingested(tmp_path / "run", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pa.table({"text": ["a"]}), "there is no column 'messages' or 'conversations'"),
        (pa.table({"messages": ["a"]}), "column 'messages' is Utf8; it must be a list of structs"),
        (pa.table({"messages": [[{"role": 1, "content": "a"}]]}), "it must be a list of structs with a role"),
        (pa.table({"messages": [[{"role": "a", "content": 1}]]}), "it must be a list of structs with a role"),
        (pa.table({"messages": [[{"role": "a"}]]}), "it must be a list of structs with a role"),
        (
            pa.table({"messages": [TALK], "images": [[1]]}),
            "column 'images' is List.*; it must be a path, bytes",
        ),
    ],
)
def test_columns_that_cannot_be_read_are_errors_that_say_why(tmp_path, content, message):
    with pytest.raises(PoolError, match=message):
        ingested(tmp_path / "run", write_parquet(tmp_path / "a.parquet", content))


def test_a_missing_shard_of_a_dataset_is_an_error(tmp_path):
    folder = write_datasets(tmp_path / "set", table(range(20)), shards=2)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(PoolError, match=r"lists data-00001-of-00002\.arrow, which is not there"):
        ingested(tmp_path / "run", folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(PoolError, match="does not list the data files"):
        ingested(tmp_path / "run", folder)


def test_threads_do_not_change_a_byte(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", table(range(3000)), rows=700)
    written = []
    for threads in (1, 4):
        run = ingested(tmp_path / str(threads), path, threads=threads)
        written.append((run / "pool.arrow").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("ahead_bytes", [0, 1500, 1 << 20], ids=["none", "some", "all"])
def test_row_groups_come_in_order_however_many_are_decoded_ahead(tmp_path, monkeypatch, ahead_bytes):
    path = tmp_path / "a.parquet"
    texts = [[str(row) * (row % 97) for row in range(first, first + 50)] for first in range(0, 500, 50)]
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for group, part in enumerate(texts):
            short = part if group % 3 else [text[:1] for text in part]
            writer.write_table(pa.table({"text": short}), row_group_size=50)
    sizes = [pq.ParquetFile(path).metadata.row_group(group).total_byte_size for group in range(10)]
    assert min(sizes) <= 1500 < max(sizes)
    monkeypatch.setattr(parquet, "AHEAD_BYTES", ahead_bytes)
    whole = pq.read_table(path)["text"].to_pylist()
    for wanted in (None, np.array([3, 170, 171, 499])):
        batches = list(parquet.Parquet().open(path).batches(None, wanted))
        rows = [first + at for first, batch in batches for at in range(len(batch))]
        assert rows == sorted(set(rows))
        assert set(rows) >= set(range(500) if wanted is None else wanted.tolist())
        got = [text for _, batch in batches for text in batch["text"].to_pylist()]
        assert got == [whole[row] for row in rows]


def test_reading_that_is_given_up_leaves_no_thread(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", table(range(300)), rows=10)
    batches = parquet.Parquet().open(path).batches(None, None)
    assert next(batches)[0] == 0
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_changed_file_is_not_copied_from(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", table(range(20)))
    run = ingested(tmp_path / "run", path)
    write_parquet(path, table(range(1, 21)))
    with RunDirectory(run) as opened, pytest.raises(PoolError, match="has changed since it was ingested"):
        formats.write_subset(opened, np.arange(5), tmp_path / "out.parquet")

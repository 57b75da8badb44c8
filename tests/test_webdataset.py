"""WebDataset shards: read by byte range, hostile ones survived, samples copied whole."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from format_fixtures import add, members, picture, record, write_tar
from mllm_selector import formats
from mllm_selector.errors import PoolError
from mllm_selector.families.images import load_image
from mllm_selector.pipeline import build_options, run_stages
from mllm_selector.pool import ImageRange, Pool
from mllm_selector.rundir import RunDirectory

TALK = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
SEEN = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]


def read(folder: Path, pool: Any, **options: Any) -> Path:
    run_stages(folder, build_options({"pool": pool, **options}, ["ingest"]))
    return folder


def rejected(run: Path) -> list[tuple[str | None, str]]:
    lines = [json.loads(line) for line in (run / "rejected.jsonl").open()]
    assert all(line["detail"] for line in lines)
    return [(line["id"], line["reason"]) for line in lines]


def pool_of(folder: Path) -> Pool:
    with RunDirectory(folder) as run:
        return Pool.of(run)


def tar_of(path: Path, samples: dict[str, dict[str, bytes]], good: int = 0) -> Path:
    """Write samples, and some good ones so that not too many are rejected."""
    with tarfile.open(path, "w") as tar:
        for number in range(good):
            add(tar, f"good-{number}.json", json.dumps({"conversations": TALK}).encode())
        for key, parts in samples.items():
            for ending, content in parts.items():
                add(tar, f"{key}.{ending}", content)
    return path


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_read_in_order_with_their_images(tmp_path, tar_format):
    shard = write_tar(tmp_path / "a.tar", range(40), tar_format)
    pool = pool_of(read(tmp_path / "run", shard))
    assert pool.format == "webdataset"
    assert len(pool) == 40
    for number, sample in enumerate(pool):
        expected = record(number)
        assert (sample.id, sample.source) == (f"w{number}", "a")
        assert [content for _, content in sample.messages] == [
            turn["content"] for turn in expected["messages"]
        ]
        assert all(isinstance(image, ImageRange) for image in sample.images)
        decoded = [np.asarray(load_image(image)) for image in sample.images]
        wanted = [np.asarray(load_image(image["bytes"])) for image in expected["images"]]
        assert len(decoded) == len(wanted)
        assert all(np.array_equal(one, other) for one, other in zip(decoded, wanted, strict=True))


def test_long_names_dialects_and_keys_with_dots_in_folders(tmp_path):
    long = "v1.5/" + "x" * 300
    texts = {
        long: {"conversations": SEEN},
        "sharegpt": {"conversations": SEEN, "images": ["anything.jpg"]},
        "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    }
    samples = {key: {"json": json.dumps(text).encode()} for key, text in texts.items()}
    samples[long]["jpg"] = samples["sharegpt"]["seg.PNG"] = picture(1)
    pool = pool_of(read(tmp_path / "run", tar_of(tmp_path / "a.tar", samples)))
    assert [sample.id for sample in pool] == list(texts)
    assert [len(sample.images) for sample in pool] == [1, 1, 0]


def test_a_record_that_names_its_members_says_their_order(tmp_path):
    images = {"0.png": picture(0), "1.png": picture(1)}
    turns = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "!"}]
    samples = {
        key: {"json": json.dumps({"conversations": turns, "image": names}).encode(), **images}
        for key, names in {
            "a": ["1.png", "0.png"],
            "b": ["elsewhere/b.1.png", "elsewhere\\b.0.png"],
            "c": ["b.1.png", "b.0.png"],
            "d": ["1.png", "2.png"],
            "e": ["x.png"],
        }.items()
    }
    run = read(tmp_path / "run", tar_of(tmp_path / "a.tar", samples, good=1))
    found = {sample.id: [image.name for image in sample.images] for sample in pool_of(run)}
    assert found == {
        "good-0": [],
        "a": ["a.1.png", "a.0.png"],
        "b": ["b.1.png", "b.0.png"],
        "c": ["c.0.png", "c.1.png"],
    }
    assert rejected(run) == [("d", "image-missing"), ("e", "image-missing")]


def test_samples_without_a_conversation_are_set_aside(tmp_path):
    samples = {
        "caption": {"txt": b"a dog", "jpg": picture(0)},
        "bare": {"jpg": picture(0)},
        "broken": {"json": b'{"conversations": [}'},
        "utf8": {"json": b'{"a": "\xff"}'},
        "list": {"json": b"[]"},
        "marks": {"json": json.dumps({"conversations": SEEN}).encode()},
    }
    run = read(tmp_path / "run", tar_of(tmp_path / "a.tar", samples, good=10))
    assert rejected(run) == [
        ("caption", "no-conversations"),
        ("bare", "no-conversations"),
        (None, "invalid-json"),
        (None, "broken-utf8"),
        (None, "not-an-object"),
        ("marks", "image-marks"),
    ]
    assert "a caption in .txt is not a conversation" in (run / "rejected.jsonl").read_text()


def test_members_that_cannot_be_trusted_are_set_aside(tmp_path):
    text = json.dumps({"conversations": TALK}).encode()
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(20):
            add(tar, f"good-{number}.json", text)
        add(tar, "../up.json", text)
        add(tar, "/etc/root.json", text)
        add(tar, "a/../../b.json", text)
        add(tar, "link.json", type=tarfile.SYMTYPE, linkname="good-0.json")
        add(tar, "hard.json", text)
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="good-0.json")
        add(tar, "twice.json", text)
        add(tar, "twice.json", text)
        add(tar, "fifo.json", type=tarfile.FIFOTYPE)
        add(tar, "sparse.json", text, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
        add(tar, "many.json", text)
        for number in range(5000):
            add(tar, f"many.{number}")
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "README", b"not a sample")
        add(tar, ".hidden", b"not a sample")
        add(tar, "last.json", text)
    run = read(tmp_path / "run", path)
    assert rejected(run) == [
        ("../up", "bad-member"),
        ("/etc/root", "bad-member"),
        ("a/../../b", "bad-member"),
        ("link", "bad-member"),
        ("hard", "bad-member"),
        ("twice", "bad-member"),
        ("fifo", "bad-member"),
        ("sparse", "bad-member"),
        ("many", "too-large"),
    ]
    assert [sample.id for sample in pool_of(run)] == [*(f"good-{number}" for number in range(20)), "last"]


def test_sparse_members_of_gnu_tars_do_not_shift_what_follows(tmp_path):
    text = json.dumps({"conversations": TALK}).encode()
    path = tmp_path / "a.tar"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "a.json", text)
        add(tar, "c.json", text)
    whole = buffer.getvalue()
    header = bytearray(tarfile.TarInfo("b.json").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % 512  # what is stored
    header[386:410] = b"%011o\0%011o\0" % (0, 512)  # one block of data at 0
    header[482:483] = b"\1"  # one more header of blocks follows
    header[483:495] = b"%011o\0" % 512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(whole[:1024] + bytes(header) + bytes(512) + b"x" * 512 + whole[1024:])
    run = read(tmp_path / "run", path)
    assert rejected(run) == [("b", "bad-member")]
    assert [sample.id for sample in pool_of(run)] == ["a", "c"]
    with RunDirectory(run) as opened:
        formats.write_subset(opened, np.arange(2), tmp_path / "out.tar")
    assert contents(tmp_path / "out.tar") == {"a.json": text, "c.json": text}


def test_a_record_too_large_is_set_aside_without_being_read(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "good.json", json.dumps({"conversations": TALK}).encode())
    with path.open("r+b") as file:
        # A hole in the file: 1 GiB that takes no space on the disk.
        file.seek(1024)
        info = tarfile.TarInfo("huge.json")
        info.size = 1 << 30
        file.write(info.tobuf())
        file.truncate(file.tell() + info.size)
    assert rejected(read(tmp_path / "run", path)) == [("huge", "too-large")]


def test_every_truncation_is_survived(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", range(4)).read_bytes()
    for size in range(600, len(whole), 333):
        path = tmp_path / f"{size}.tar"
        path.write_bytes(whole[:size])
        run = tmp_path / f"run-{size}"
        try:
            read(run, path)
        except PoolError as error:
            assert "more than half" in str(error) or "no samples" in str(error)  # noqa: PT017
            continue
        pool = pool_of(run)
        assert [sample.id for sample in pool] == [f"w{number}" for number in range(len(pool))]
        # What is cut off is set aside; without the marks of a missing image it may look whole.
        ids = {None, f"train/{len(pool):05d}", f"w{len(pool)}"}
        reasons = {"bad-member", "image-marks", "no-conversations"}
        assert all(name in ids and reason in reasons for name, reason in rejected(run))
        for sample in pool:
            for image in sample.images:
                load_image(image)


def test_a_damaged_header_is_an_error_that_says_where(tmp_path):
    path = write_tar(tmp_path / "a.tar", range(6), tarfile.USTAR_FORMAT)
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[5].offset
    damaged = bytearray(path.read_bytes())
    damaged[middle + 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(PoolError, match=f"a.tar: byte {middle}: not the header of a tar member"):
        read(tmp_path / "run", path)


def test_headers_without_end_are_an_error(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "a.json", json.dumps({"conversations": TALK}).encode())
        add(tar, "x" * (3 << 20) + ".json", b"{}")
    with pytest.raises(PoolError, match="more than 1024 KiB"):
        read(tmp_path / "run", path)


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar.getmembers()}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_samples_come_back_as_they_were(tmp_path, tar_format):
    shard = write_tar(tmp_path / "a.tar", range(30), tar_format)
    with RunDirectory(read(tmp_path / "run", shard)) as run:
        assert formats.subset_suffix(run) == ".tar"
        formats.write_subset(run, np.arange(30), tmp_path / "out.tar")
        assert list(contents(tmp_path / "out.tar").items()) == list(contents(shard).items())
        formats.write_subset(run, np.array([20, 3, 4]), tmp_path / "some.tar")
    expected = {
        f"train/{number:05d}.{ending}": content
        for number in (20, 3, 4)
        for ending, content in members(number).items()
    }
    assert list(contents(tmp_path / "some.tar").items()) == list(expected.items())


def test_several_shards_give_shards_of_bounded_size(tmp_path):
    shards = [write_tar(tmp_path / f"{place}.tar", range(place * 10, place * 10 + 10)) for place in range(3)]
    with RunDirectory(read(tmp_path / "run", shards)) as run:
        assert formats.subset_suffix(run) == ""
        formats.write_subset(run, np.arange(29, -1, -2), tmp_path / "out")
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == [f"{number:06d}.tar" for number in range(len(written))]
    assert len(written) > 1
    assert max(path.stat().st_size for path in written) <= max(path.stat().st_size for path in shards)
    found = [name for path in written for name in contents(path)]
    assert found == [
        f"train/{number:05d}.{ending}" for number in range(29, -1, -2) for ending in members(number)
    ]

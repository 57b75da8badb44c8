"""Ingest against an independent reading of the same records with Python's own `json`."""

import json
import os
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from ingest_reference import Rejected, pools, reference
from mllm_selector import _internal, formats
from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.pool import POOL_SCHEMA, Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import ingest


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    root = folder / "root"
    (root / "coco" / "train").mkdir(parents=True)
    for name in ("a.png", "coco/b.png", "coco/train/é c.png", "back\\slash.png"):
        Image.new("RGB", (3, 2), "red").save(root / name, "PNG")
    (folder / "secret.png").write_bytes(b"x")
    os.mkfifo(root / "fifo.png")
    (root / "out.png").symlink_to("../secret.png")
    (root / "up").symlink_to("..")
    (root / "link.png").symlink_to("coco/b.png")
    return root


def run_ingest(text: bytes, pool_format: str, folder: Path, **options: object) -> tuple[Path, Path, dict]:
    suffix = ".json" if pool_format == "llava-json" else ".jsonl"
    source = folder / f"mix{suffix}"
    source.write_bytes(text)
    out, rejected = folder / "pool.arrow", folder / "rejected.jsonl"
    return out, rejected, _internal.ingest([(source, None)], pool_format, out, rejected, **options)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pool=pools())
def test_samples_and_reasons_are_those_of_the_reference(pool, image_folder, tmp_path_factory):
    text, pool_format, records = pool
    folder = tmp_path_factory.mktemp("reference")
    samples, reasons, seen = [], [], set()
    given = {"images": image_folder, "renames_duplicates": False}
    for number, record in enumerate(records):
        try:
            samples.append(reference(record, number, image_folder, seen, "mix") | {"record": record})
        except Rejected as rejected:
            reasons.append((number, str(rejected), record))
    if 2 * len(reasons) > len(records):
        with pytest.raises(PoolError, match="more than half"):
            run_ingest(text, pool_format, folder, **given)
        assert not (folder / "pool.arrow").exists()
    else:
        out, _, counts = run_ingest(text, pool_format, folder, **given)
        assert counts["samples"] == len(samples)
        assert sum(counts["rejected"].values()) == len(reasons)
        assert_samples(out, text, samples)
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").open()]
    assert [(line["record"], line["reason"]) for line in lines] == [reason[:2] for reason in reasons]
    for line, (_, _, record) in zip(lines, reasons, strict=True):
        assert text[line["offset"] : line["offset"] + line["length"]] == record
        assert line["detail"]


def assert_samples(out: Path, text: bytes, samples: list[dict]) -> None:
    rows = Pool.open(out).table.to_pylist()
    for row, sample in zip(rows, samples, strict=True):
        record = sample.pop("record")
        assert text[row["offset"] : row["offset"] + row["length"]] == record
        assert {name: row[name] for name in sample} == sample


def simple(number: int, **fields: object) -> dict:
    turns = [
        {"from": "human", "value": f"Wie? {'é' * (number % 40)}"},
        {"from": "gpt", "value": "So.\n" * (number % 9 + 1)},
    ]
    return {"id": number, "conversations": turns, **fields}


@pytest.fixture(scope="module")
def large() -> list[bytes]:
    """Records of several blocks, with duplicates far apart and bad ones in between."""
    records = []
    for number in range(30_000):
        record = simple(number, padding='[{\\"' * (number % 50 + 50))
        if number % 1000 == 999:
            record["id"] = number - 900
        if number % 77 == 0:
            record["conversations"] = []
        records.append(json.dumps(record, ensure_ascii=number % 2 == 0).encode())
    return records


def test_threads_do_not_change_a_byte(large, tmp_path):
    text = b"[" + b",\n".join(large) + b"]"
    assert len(text) > 1 << 23, "the pool must be larger than one block"
    written = []
    for threads in (1, 2, 8):
        out, rejected, counts = run_ingest(
            text, "llava-json", tmp_path, threads=threads, renames_duplicates=False
        )
        written.append((out.read_bytes(), rejected.read_bytes(), counts))
    assert written[0] == written[1] == written[2]
    blank = set(range(0, 30_000, 77))
    repeated = {
        number for number in range(999, 30_000, 1000) if number not in blank and number - 900 not in blank
    }
    assert written[0][2]["rejected"] == {"duplicate-id": len(repeated), "no-conversations": len(blank)}


def test_an_array_and_lines_give_the_same_pool(large, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    array, array_rejected, _ = run_ingest(b"[" + b",".join(large) + b"]", "llava-json", tmp_path / "a")
    lines, lines_rejected, _ = run_ingest(b"\r\n".join(large), "llava-jsonl", tmp_path / "b")
    one, other = Pool.open(array), Pool.open(lines)
    assert (one.format, other.format) == ("llava-json", "llava-jsonl")
    columns = ["id", "source", "messages", "images", "length"]
    assert one.table.select(columns).equals(other.table.select(columns))
    assert max(batch.num_rows for batch in one.batches()) <= 8192
    reasons = [
        [(line["record"], line["id"], line["reason"]) for line in map(json.loads, path.open())]
        for path in (array_rejected, lines_rejected)
    ]
    assert reasons[0] == reasons[1]


def test_pool_file_has_the_documented_schema(tmp_path):
    out, _, _ = run_ingest(json.dumps([simple(0)]).encode(), "llava-json", tmp_path)
    inputs = [{"path": str(tmp_path / "mix.json"), "source": None}]
    with pa.ipc.open_file(out) as file:
        assert file.schema.equals(POOL_SCHEMA)
        assert file.schema.metadata == {
            b"mllm_selector.pool_version": b"2",
            b"mllm_selector.format": b"llava-json",
            b"mllm_selector.inputs": json.dumps(inputs, separators=(",", ":")).encode(),
        }


def test_source_comes_from_the_record_the_option_the_folder_or_the_file(image_folder, tmp_path):
    def image(path):
        return {
            "image": path,
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}],
        }

    records = [
        image("coco/train/é c.png") | {"source": "own"},
        image("coco\\b.png"),
        image("a.png"),
        simple(3),
    ]
    text = json.dumps(records).encode()
    out, _, counts = run_ingest(text, "llava-json", tmp_path, images=image_folder)
    assert Pool.open(out).table["source"].to_pylist() == ["own", "coco", "mix", "mix"]
    assert counts["sources"] == {"own": 1, "coco": 1, "mix": 2}
    out, _, _ = run_ingest(text, "llava-json", tmp_path, images=image_folder, source="given")
    assert Pool.open(out).table["source"].to_pylist() == ["own", "given", "given", "given"]


def test_counts_say_what_the_pool_holds(image_folder, tmp_path):
    def turns(question, answers=1):
        more = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}] * (answers - 1)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": "x"}, *more]

    records = [
        {"image": "a.png", "conversations": turns("<image>")},
        {"images": ["a.png", "coco/b.png"], "conversations": turns("<image><image>", 2)},
        {"image": ["coco\\b.png"], "conversations": turns("<image>")},
        {"image": None, "conversations": turns("?", 3)},
    ]
    text = json.dumps(records).encode()
    _, _, counts = run_ingest(text, "llava-json", tmp_path, images=image_folder)
    assert counts == {
        "samples": 4,
        "rejected": {},
        "renamed": 0,
        "text_only": 1,
        "multi_image": 1,
        "multi_turn": 2,
        "images": 2,
        "sources": {"mix": 3, "coco": 1},
        "bytes": len(text),
    }


GOOD = json.dumps(simple(0)).encode()
NO_TEXT = b"\xff\xfe[\0{\0"

WHOLE_FILE_FAULTS = {
    "not-json": (
        b"PK\x03\x04",
        PoolError,
        "byte 0: this is not JSON: found 'P', but a JSON array begins with '['",
    ),
    "utf-16": (NO_TEXT, PoolError, "byte 0: this is not JSON: found byte 0xff"),
    "empty": (b"", PoolError, "the file is empty"),
    "blank": (b" \n\n", PoolError, "nothing but white space"),
    "no-samples": (b"[ ]", PoolError, "the pool holds no samples"),
    "cut-off": (
        b"[" + GOOD + b", " + GOOD[:30],
        PoolError,
        f"inside record 1, which begins at byte {len(GOOD) + 3}; it has been cut off",
    ),
    "cut-off-between": (
        b"[" + GOOD + b",",
        PoolError,
        "before the ']' that closes the array, after 1 records",
    ),
    "no-comma": (
        b"[" + GOOD + b" " + GOOD + b"]",
        PoolError,
        f"byte {len(GOOD) + 2}, after record 0: found '{{' where ',' or ']' should be",
    ),
    "damaged": (
        b"[" + GOOD + b',{"a" 1}]',
        PoolError,
        f"byte {len(GOOD) + 7}, record 1: not JSON: found '1', expected ':' after a key",
    ),
    "more-after": (
        b"[" + GOOD + b"]]",
        PoolError,
        "found ']' after the ']' that closes the array of 1 records",
    ),
    "one-object": (b'{\n"a": [1]\n}', PoolError, "byte 1, record 0: not JSON: found the end of the record"),
    "deep-open": (b"[" * 1_000_000, PoolError, "it has been cut off"),
}


@pytest.mark.parametrize("name", WHOLE_FILE_FAULTS)
def test_a_faulty_file_is_an_error_that_says_where(name, tmp_path):
    text, error, message = WHOLE_FILE_FAULTS[name]
    (tmp_path / "pool").write_bytes(text)
    with RunDirectory(tmp_path / "run") as run, pytest.raises(error) as caught:
        ingest.run(run, IngestOptions(pool=tmp_path / "pool"), SilentProgress())
    assert message in str(caught.value)
    assert str(tmp_path / "pool") in str(caught.value)
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "none.json"}, "there is no such file"),
        ({"pool": "folder"}, "this is a folder"),
        ({"pool": "pool.json"}, "names the image 'a.png': give the folder of the images with --images DIR"),
        ({"pool": "pool.json", "images": "none"}, "--images: "),
        ({"pool": "pool.json", "images": "pool.json"}, "is not a folder"),
    ],
)
def test_wrong_usage_is_said_with_the_way_out(options, message, tmp_path):
    (tmp_path / "folder").mkdir()
    record = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}],
    }
    (tmp_path / "pool.json").write_text(json.dumps([simple(0), record]))
    given = IngestOptions(**{name: tmp_path / path for name, path in options.items()})
    with RunDirectory(tmp_path / "run") as run, pytest.raises(UsageError, match=message):
        ingest.run(run, given, SilentProgress())
    assert not run.path.exists()


def test_a_pool_without_images_needs_no_folder(tmp_path):
    _, _, counts = run_ingest(json.dumps([simple(0)]).encode(), "llava-json", tmp_path)
    assert (counts["samples"], counts["text_only"]) == (1, 1)


def test_a_pool_that_is_mostly_bad_shows_why(tmp_path):
    records = [
        simple(0),
        simple(1),
        simple(1),
        simple(1),
        *[{"id": number} for number in range(5, 9)],
        "text",
    ]
    (tmp_path / "pool.arrow").write_text("of an earlier run")
    with pytest.raises(PoolError) as caught:
        run_ingest(json.dumps(records).encode(), "llava-json", tmp_path, renames_duplicates=False)
    lines = str(caught.value).splitlines()
    assert "7 of 9 records were rejected, more than half" in lines[0]
    assert lines[1] == "  no-conversations: 4, e.g. record 4 (id '5'): the list of turns is missing"
    assert lines[2] == "  duplicate-id: 2, e.g. record 2 (id '1'): an earlier sample has the id '1'"
    assert lines[3] == "  not-an-object: 1, e.g. record 8: the record is a string, not an object"
    assert str(tmp_path / "rejected.jsonl") in lines[4]
    assert len(list((tmp_path / "rejected.jsonl").open())) == 7
    assert not (tmp_path / "pool.arrow").exists()


def test_half_rejected_is_still_a_pool(tmp_path):
    _, _, counts = run_ingest(json.dumps([simple(0), 1]).encode(), "llava-json", tmp_path)
    assert counts["rejected"] == {"not-an-object": 1}


def test_bad_lines_are_set_aside_and_reading_goes_on(tmp_path):
    text = b"\n".join(
        [GOOD, b'{"a": 1', b"", GOOD.replace(b'"id": 0', b'"id": 1') + b" }", GOOD[:-1] + b', "id": 2}']
    )
    out, rejected, _ = run_ingest(text, "llava-jsonl", tmp_path)
    assert Pool.open(out).table["id"].to_pylist() == ["0", "2"]
    lines = [json.loads(line) for line in rejected.open()]
    assert [(line["record"], line["reason"]) for line in lines] == [(1, "invalid-json"), (2, "invalid-json")]
    assert "expected ',' or '}' after a value" in lines[0]["detail"]
    assert "expected the end of the record" in lines[1]["detail"]


@pytest.mark.parametrize("depth", [900, 1_000_000])
def test_deep_nesting_does_no_harm(depth, tmp_path):
    deep = b'{"id": "deep", "x": ' + b"[" * depth + b"]" * depth + b", " + GOOD[1:].replace(b'"id": 0, ', b"")
    _, rejected, counts = run_ingest(b"[" + GOOD + b"," + deep + b"]", "llava-json", tmp_path)
    if depth < 1000:
        assert counts["samples"] == 2
        return
    (line,) = [json.loads(line) for line in rejected.open()]
    assert (line["id"], line["reason"]) == ("deep", "invalid-json")
    assert "nested deeper than 1000 levels" in line["detail"]


def test_huge_numbers_do_no_harm(tmp_path):
    digits = b"7" * 1_000_000
    records = [
        GOOD.replace(b'"id": 0', b'"id": ' + digits),
        GOOD.replace(b'"id": 0', b'"id": 1e' + digits + b', "x": -0.' + digits),
    ]
    out, _, _ = run_ingest(b"\n".join(records), "llava-jsonl", tmp_path)
    assert Pool.open(out).table["id"].to_pylist() == [digits.decode(), "row-1"]


def test_a_record_over_the_size_limit_is_set_aside(tmp_path):
    long = b'{"id": "long", "x": "' + b"y" * (65 << 20) + b'"}'
    for pool_format, text in [
        ("llava-json", b"[" + GOOD + b"," + long + b"," + GOOD.replace(b"0", b"1") + b"]"),
        ("llava-jsonl", b"\n".join([GOOD, long, GOOD.replace(b"0", b"1")])),
    ]:
        out, rejected, _ = run_ingest(text, pool_format, tmp_path)
        (line,) = [json.loads(line) for line in rejected.open()]
        assert (line["record"], line["reason"], line["length"]) == (1, "too-large", len(long))
        assert Pool.open(out).table["id"].to_pylist() == ["0", "1"]


def test_a_stop_leaves_nothing_half_written(tmp_path):
    class Stop(Exception):  # noqa: N818 - raised by the signal
        pass

    def stop(*_):
        raise Stop

    # A line of NULs in a sparse file: it takes no disk but seconds to read.
    source = tmp_path / "pool.jsonl"
    source.write_bytes(GOOD + b"\n")
    os.truncate(source, 64 << 30)
    before = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(Stop):
            _internal.ingest(
                [(source, None)], "llava-jsonl", tmp_path / "pool.arrow", tmp_path / "rejected.jsonl"
            )
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


def test_an_error_of_the_progress_callback_stops_the_call(tmp_path):
    source = tmp_path / "pool.jsonl"
    source.write_bytes(GOOD + b"\n")
    os.truncate(source, 64 << 30)

    def fail(done, total):
        assert total == 64 << 30
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _internal.ingest(
            [(source, None)],
            "llava-jsonl",
            tmp_path / "pool.arrow",
            tmp_path / "rejected.jsonl",
            progress=fail,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


def test_progress_ends_with_all_bytes(tmp_path):
    calls = []
    text = json.dumps([simple(0)]).encode()
    run_ingest(text, "llava-json", tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(text), len(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"[]", "llava-json"), (b'\xef\xbb\xbf \n{"a":1}', "llava-jsonl"), (b"junk", "llava-json")],
)
def test_a_format_is_recognised_by_content(text, expected, tmp_path):
    (tmp_path / "pool").write_bytes(text)
    assert formats.find(IngestOptions(pool=tmp_path / "pool")).name == expected
    forced = IngestOptions(pool=tmp_path / "pool", format="llava-jsonl")
    assert formats.find(forced).name == "llava-jsonl"


def test_several_inputs_are_one_pool(tmp_path):
    parts = [
        [simple(0), {"id": "bad"}],
        [{"conversations": simple(1)["conversations"]}],
        [simple(2), simple(0)],
    ]
    for name, records in zip(("a.json", "b.json", "c.json"), parts, strict=True):
        (tmp_path / name).write_text(json.dumps(records))
    inputs = {"ocr": tmp_path / "a.json", "chat": [tmp_path / "c.json", tmp_path / "b.json"]}
    with RunDirectory(tmp_path / "run") as run:
        counts = ingest.run(run, IngestOptions(pool=inputs, duplicate_ids="reject"), SilentProgress())
        pool = Pool.open(run.pool)
        rejected = [json.loads(line) for line in run.rejected.open()]
    assert counts["sources"] == {"ocr": 1, "chat": 2}
    table = pool.table
    # The record without an id is the fifth of all inputs.
    assert table["id"].to_pylist() == ["0", "2", "row-4"]
    assert table["file"].to_pylist() == [0, 1, 2]
    assert [(line["input"], line["record"], line["reason"]) for line in rejected] == [
        (str(tmp_path / "a.json"), 1, "no-conversations"),
        (str(tmp_path / "c.json"), 1, "duplicate-id"),
    ]
    texts = [(tmp_path / name).read_bytes() for name in ("a.json", "c.json", "b.json")]
    for row in table.to_pylist():
        record = json.loads(texts[row["file"]][row["offset"] : row["offset"] + row["length"]])
        assert str(record.get("id", row["id"])) == row["id"]


def test_the_earliest_fault_of_several_inputs_is_told(tmp_path):
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    (tmp_path / "bad.jsonl").write_bytes(b"[1]")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with RunDirectory(tmp_path / "run") as run:
        for names, message in [
            (("good", "bad"), "bad.jsonl: byte 0: found '['"),
            (("bad", "empty"), "empty.jsonl: the file is empty"),
        ]:
            options = IngestOptions(pool=[tmp_path / f"{name}.jsonl" for name in names], format="llava-jsonl")
            with pytest.raises(PoolError, match=message.replace("[", r"\[")):
                ingest.run(run, options, SilentProgress())


def test_inputs_of_several_formats_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b"]")
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    message = "a.json is llava-json, .*b.jsonl is llava-jsonl; one pool has one format"
    with pytest.raises(UsageError, match=message):
        formats.find(IngestOptions(pool=[tmp_path / "a.json", tmp_path / "b.jsonl"]))


def test_the_stage_reports_what_it_did(image_folder, tmp_path):
    class Notes(SilentProgress):
        lines: list[str] = []  # noqa: RUF012 - one test's own

        def finish(self, text):
            self.lines.append(text)

    (tmp_path / "pool.json").write_text(json.dumps([simple(0), simple(1), simple(1), simple(2), 5, 6]))
    progress = Notes()
    with RunDirectory(tmp_path / "run") as run:
        options = IngestOptions(pool=tmp_path / "pool.json", duplicate_ids="reject")
        counts = ingest.run(run, options, progress)
    assert counts["format"] == "llava-json"
    assert progress.lines == [
        "3 samples from 1 source; 3 set aside in rejected.jsonl (2 not-an-object, 1 duplicate-id)"
    ]

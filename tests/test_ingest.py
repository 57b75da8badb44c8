"""Ingest against an independent reading of the same records with Python's own `json`."""

import json
import os
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_selector import _internal, formats
from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.pool import POOL_SCHEMA, Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import ingest

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}


class Rejected(Exception):  # noqa: N818 - it is a verdict
    """Why the reference sets a record aside."""


# The reference: what CONTRIBUTING.md says of a record, in plain Python.


def reference(record: bytes, number: int, root: Path, seen: set[str], stem: str) -> dict:
    try:
        value = json.loads(record.decode())
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise Rejected("broken-utf8") from None
    if not isinstance(value, dict):
        raise Rejected("not-an-object")
    turns = reference_turns(value.get("conversations"))
    if not any(role == "assistant" and content.strip() for role, content in turns):
        raise Rejected("no-answer")
    paths = reference_paths(value)
    asked = sum(content.count("<image>") for role, content in turns if role != "assistant")
    answered = sum(content.count("<image>") for role, content in turns if role == "assistant")
    if answered or asked != len(paths):
        raise Rejected("image-marks")
    images = [reference_image(path, root) for path in paths]
    given = value.get("id")
    is_id = (isinstance(given, str) and given) or (isinstance(given, int) and not isinstance(given, bool))
    sample_id = str(given) if is_id else f"row-{number}"
    if sample_id in seen:
        raise Rejected("duplicate-id")
    seen.add(sample_id)
    source = value.get("source")
    if not (isinstance(source, str) and source):
        folders = (
            [part for part in images[0].split("/")[:-1] if part not in ("", ".", "..")] if images else []
        )
        source = folders[0] if folders else stem
    return {
        "id": sample_id,
        "source": source,
        "messages": [{"role": role, "content": content} for role, content in turns],
        "images": [{"path": path, "bytes": None} for path in images],
    }


def reference_turns(conversations: object) -> list[tuple[str, str]]:
    if not isinstance(conversations, list) or not conversations:
        raise Rejected("no-conversations")
    turns = []
    for turn in conversations:
        if not isinstance(turn, dict):
            raise Rejected("bad-turn")
        role = turn["from"] if "from" in turn else turn.get("role")
        content = turn["value"] if "value" in turn else turn.get("content")
        if not isinstance(role, str) or role.lower() not in ROLES or not isinstance(content, str):
            raise Rejected("bad-turn")
        turns.append((ROLES[role.lower()], content))
    return turns


def reference_paths(value: dict) -> list[str]:
    field = value.get("image") or None
    if field is None and "image" in value and value["image"] not in (None, "", []):
        raise Rejected("image-missing")
    if field is None:
        field = value.get("images")
        if field is None or field in ("", []):
            return []
    paths = [field] if isinstance(field, str) else field
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Rejected("image-missing")
    return paths


def reference_image(path: str, root: Path) -> str:
    slashed = path.replace("\\", "/")
    for form in (path, slashed):
        if Path(form).is_absolute() or os.path.normpath(form).split("/")[0] == "..":
            raise Rejected("image-outside")
        real = os.path.realpath(root / form)
        if not os.path.lexists(root / form):
            continue
        if Path(os.path.realpath(root)) not in (Path(real), *Path(real).parents):
            raise Rejected("image-outside")
        if not Path(real).is_file():
            raise Rejected("image-missing")
        return form
    raise Rejected("image-missing")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    root = folder / "root"
    (root / "coco" / "train").mkdir(parents=True)
    for name in ("a.png", "coco/b.png", "coco/train/é c.png", "back\\slash.png"):
        (root / name).write_bytes(b"x")
    (folder / "secret.png").write_bytes(b"x")
    os.mkfifo(root / "fifo.png")
    (root / "out.png").symlink_to("../secret.png")
    (root / "up").symlink_to("..")
    (root / "link.png").symlink_to("coco/b.png")
    return root


PATHS = [
    *[
        "a.png",
        "coco/b.png",
        "./coco//b.png",
        "coco/train/é c.png",
        "back\\slash.png",
        "coco\\b.png",
        "link.png",
    ],
    *[
        "coco/../a.png",
        "../secret.png",
        "out.png",
        "up/secret.png",
        "/dev/null",
        "none.png",
        "coco",
        "fifo.png",
    ],
]

pieces = ["<image>", "a", '"', "\\", "\n", "é", "😀", " ", "<imag", "}", "]"]
plain_texts = st.text(max_size=20) | st.lists(st.sampled_from(pieces), max_size=6).map("".join)
# Halves of surrogate pairs; two of them may make a whole one.
halves = st.lists(st.sampled_from(["a", "\ud83d", "\ude00"]), max_size=3).map("".join)
texts = st.integers(0, 20).flatmap(lambda odd: halves if odd == 0 else plain_texts)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
image_fields = st.one_of(
    st.sampled_from(PATHS[:7]),
    st.sampled_from(PATHS),
    st.lists(st.sampled_from(PATHS), max_size=3),
    json_values,
)


@st.composite
def turns(draw: st.DrawFn) -> object:
    odd = draw(st.integers(0, 30))
    if odd == 0:
        return draw(json_values)
    turn = draw(st.dictionaries(texts, json_values, max_size=1))
    role_key, content_key = draw(
        st.sampled_from([("from", "value"), ("role", "content"), ("from", "content")])
    )
    if odd != 1:
        turn[role_key] = draw(st.sampled_from([*ROLES, "Human", "GPT"])) if odd != 2 else draw(json_values)
    if odd != 3:
        turn[content_key] = draw(texts) if odd != 4 else draw(json_values)
    return turn


@st.composite
def good_records(draw: st.DrawFn) -> dict:
    """Records that mostly become samples: marks and images agree."""
    paths = draw(st.lists(st.sampled_from(PATHS[:7]), max_size=2))
    question = "<image>" * len(paths) + draw(texts).replace("<image>", "")
    answer = draw(texts).replace("<image>", "") + "."
    record = {
        "id": draw(st.integers(0, 40) | texts),
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }
    if len(paths) == 1:
        record["image"] = draw(st.sampled_from([paths[0], paths]))
    elif paths:
        record[draw(st.sampled_from(["image", "images"]))] = paths
    return record


@st.composite
def any_records(draw: st.DrawFn) -> object:
    if draw(st.integers(0, 20)) == 0:
        return draw(json_values)
    record = draw(st.dictionaries(texts, json_values, max_size=2))
    optional = {
        "id": st.integers(0, 20) | texts | json_values,
        "source": texts | json_values,
        "image": image_fields,
        "images": image_fields,
        "conversations": st.lists(turns(), max_size=4) | json_values,
    }
    for name, values in optional.items():
        if draw(st.booleans()):
            record[name] = draw(values)
    return record


@st.composite
def written(draw: st.DrawFn, record: object, *, one_line: bool) -> bytes:
    """Write a record as JSON in one of many ways, now and then not as UTF-8."""
    indent = None if one_line else draw(st.sampled_from([None, 0, 2]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")]))
    text = json.dumps(record, ensure_ascii=draw(st.booleans()), indent=indent, separators=separators)
    data = text.encode(errors="surrogatepass")
    return data.replace(b"e", b"\xff", 1) if draw(st.integers(0, 30)) == 0 else data


@st.composite
def pools(draw: st.DrawFn) -> tuple[bytes, str, list[bytes]]:
    pool_format = draw(st.sampled_from(["llava-json", "llava-jsonl"]))
    one_line = pool_format == "llava-jsonl"
    objects = draw(st.lists(good_records() | any_records(), min_size=1, max_size=12))
    objects = [*draw(st.lists(good_records(), min_size=1, max_size=6)), *objects]
    records = [draw(written(record, one_line=one_line)) for record in objects]
    space = draw(st.sampled_from([b"", b" ", b"\t"] if one_line else [b"", b" ", b"\n", b"\r\n  "]))
    ending = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
    if one_line:
        text = ending.join(space + record + space for record in records) + draw(
            st.sampled_from([b"", ending])
        )
    else:
        inside = b",".join(space + record + space for record in records)
        text = space + b"[" + inside + b"]" + ending
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text, pool_format, records


def run_ingest(text: bytes, pool_format: str, folder: Path, **options: object) -> tuple[Path, Path, dict]:
    suffix = ".json" if pool_format == "llava-json" else ".jsonl"
    source = folder / f"mix{suffix}"
    source.write_bytes(text)
    out, rejected = folder / "pool.arrow", folder / "rejected.jsonl"
    return out, rejected, _internal.ingest(source, pool_format, out, rejected, **options)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pool=pools())
def test_samples_and_reasons_are_those_of_the_reference(pool, image_folder, tmp_path_factory):
    text, pool_format, records = pool
    folder = tmp_path_factory.mktemp("reference")
    samples, reasons, seen = [], [], set()
    for number, record in enumerate(records):
        try:
            samples.append(reference(record, number, image_folder, seen, "mix") | {"record": record})
        except Rejected as rejected:
            reasons.append((number, str(rejected), record))
    if 2 * len(reasons) > len(records):
        with pytest.raises(PoolError, match="more than half"):
            run_ingest(text, pool_format, folder, images=image_folder)
        assert not (folder / "pool.arrow").exists()
    else:
        out, _, counts = run_ingest(text, pool_format, folder, images=image_folder)
        assert counts["samples"] == len(samples)
        assert sum(counts["rejected"].values()) == len(reasons)
        assert_samples(out, text, samples)
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
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
        out, rejected, counts = run_ingest(text, "llava-json", tmp_path, threads=threads)
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
    with pa.ipc.open_file(out) as file:
        assert file.schema.equals(POOL_SCHEMA)
        assert file.schema.metadata == {
            b"mllm_selector.pool_version": b"1",
            b"mllm_selector.format": b"llava-json",
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
        return [{"role": "user", "content": question}, *[{"role": "assistant", "content": "x"}] * answers]

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
        b"PAR1\x15\x04",
        PoolError,
        "byte 0: this is not JSON: found 'P', but a LLaVA JSON array begins with '['",
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
    assert [path.name for path in run.path.iterdir()] == ["lock"]


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
    assert [path.name for path in run.path.iterdir()] == ["lock"]


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
        run_ingest(json.dumps(records).encode(), "llava-json", tmp_path)
    lines = str(caught.value).splitlines()
    assert "7 of 9 records were rejected, more than half" in lines[0]
    assert lines[1] == "  no-conversations: 4 records, e.g. record 4 (id '5'): 'conversations' is missing"
    assert lines[2] == "  duplicate-id: 2 records, e.g. record 2 (id '1'): an earlier sample has the id '1'"
    assert lines[3] == "  not-an-object: 1 records, e.g. record 8: the record is a string, not an object"
    assert str(tmp_path / "rejected.jsonl") in lines[4]
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 7
    assert not (tmp_path / "pool.arrow").exists()


def test_half_rejected_is_still_a_pool(tmp_path):
    _, _, counts = run_ingest(json.dumps([simple(0), 1]).encode(), "llava-json", tmp_path)
    assert counts["rejected"] == {"not-an-object": 1}


def test_bad_lines_are_set_aside_and_reading_goes_on(tmp_path):
    text = b"\n".join(
        [GOOD, b'{"a": 1', b"", GOOD.replace(b'"id": 0', b'"id": 1') + b" }", GOOD[:-1] + b', "id": 2}']
    )
    out, rejected, _ = run_ingest(text, "llava-jsonl", tmp_path)
    assert Pool.open(out).table["id"].to_pylist() == ["0", "2"] or rejected
    lines = [json.loads(line) for line in rejected.read_text().splitlines()]
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
    (line,) = [json.loads(line) for line in rejected.read_text().splitlines()]
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
        (line,) = [json.loads(line) for line in rejected.read_text().splitlines()]
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
            _internal.ingest(source, "llava-jsonl", tmp_path / "pool.arrow", tmp_path / "rejected.jsonl")
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
            source, "llava-jsonl", tmp_path / "pool.arrow", tmp_path / "rejected.jsonl", progress=fail
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


def test_the_stage_reports_what_it_did(image_folder, tmp_path):
    class Notes(SilentProgress):
        lines: list[str] = []  # noqa: RUF012 - one test's own

        def finish(self, text):
            self.lines.append(text)

    (tmp_path / "pool.json").write_text(json.dumps([simple(0), simple(1), simple(1), simple(2), 5, 6]))
    progress = Notes()
    with RunDirectory(tmp_path / "run") as run:
        counts = ingest.run(run, IngestOptions(pool=tmp_path / "pool.json"), progress)
    assert counts["format"] == "llava-json"
    assert progress.lines == [
        "3 samples from 1 source; 3 set aside in rejected.jsonl (2 not-an-object, 1 duplicate-id)"
    ]

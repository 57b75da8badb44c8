"""Dialects: conversations written in each of the ways that frameworks read give the same samples."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from format_fixtures import picture
from mllm_selector import _internal, formats
from mllm_selector.config import IngestOptions
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.pool import Pool
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import ingest

NAMES = ["a.png", "b/c.png", "é.png"]
MARK = "<image>"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "b").mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(picture(number))
    return folder


# A conversation is a list of turns, a turn its role and its pieces: texts, and images as (name,).

words = st.text(max_size=12).filter(lambda text: MARK not in text)
image = st.sampled_from(NAMES).map(lambda name: (name,))


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, list]]:
    turns = []
    if draw(st.booleans()):
        turns.append(("system", [draw(words) + "."]))
    for _ in range(draw(st.integers(1, 3))):
        turns.append(("user", draw(st.lists(words | image, max_size=4))))
        turns.append(("assistant", [draw(words) + "!"]))
    return turns


def text_of(pieces: list) -> str:
    return "".join(MARK if isinstance(piece, tuple) else piece for piece in pieces)


def images_of(turns: list) -> list[str]:
    return [piece[0] for _, pieces in turns for piece in pieces if isinstance(piece, tuple)]


def expected(turns: list) -> tuple[list, list]:
    return [(role, text_of(pieces)) for role, pieces in turns], images_of(turns)


def as_llava(turns: list, draw: st.DrawFn) -> dict:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    record = {
        "conversations": [{"from": names[role], "value": text_of(pieces)} for role, pieces in turns],
        "image": images_of(turns),
    }
    if len(record["image"]) == 1 and draw(st.booleans()):
        record["image"] = record["image"][0]
    return record


def as_sharegpt(turns: list, draw: st.DrawFn) -> dict:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    if draw(st.booleans()):
        names |= {"user": "observation", "assistant": "function_call"}
    record = {"images": images_of(turns)}
    if turns[0][0] == "system" and draw(st.booleans()):
        record["system"] = text_of(turns[0][1])
        turns = turns[1:]
    record["conversations"] = [{"from": names[role], "value": text_of(pieces)} for role, pieces in turns]
    return record


def as_messages(turns: list, draw: st.DrawFn) -> dict:
    """Texts with marks, parts with images of their own, or parts whose images stand in the list."""
    kind = draw(st.sampled_from(["text", "own", "listed", "both"]))
    record = {"messages": []}
    for role, pieces in turns:
        as_text = kind == "text" or (draw(st.booleans()) and not any(isinstance(p, tuple) for p in pieces))
        parts = [part(piece, kind, draw) for piece in pieces]
        record["messages"].append({"role": role, "content": text_of(pieces) if as_text else parts})
    if kind != "own":
        record["images"] = [
            draw(st.sampled_from([name, {"path": name, "bytes": None}])) for name in images_of(turns)
        ]
    return record


def part(piece: object, kind: str, draw: st.DrawFn) -> dict:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    if kind == "listed":
        return draw(st.sampled_from([{"type": "image"}, {"type": "image", "text": None, "image": None}]))
    (name,) = piece
    return draw(
        st.sampled_from(
            [
                {"type": "image", "image": name},
                {"type": "image_url", "image_url": {"url": name, "detail": "low"}},
                {"type": "image_url", "image_url": name},
                {"image": name},
                {"type": "image", "path": name},
            ]
        )
    )


WRITERS = {"llava": as_llava, "sharegpt": as_sharegpt, "messages": as_messages}


def read(records: list, name: str, folder: Path, **options: object) -> tuple[Pool, dict]:
    if name.endswith("-json"):
        text = json.dumps(records, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(record) for record in records)
    (folder / "mix").write_text(text)
    out = folder / "pool.arrow"
    counts = _internal.ingest([(folder / "mix", None)], name, out, folder / "rejected.jsonl", **options)
    return Pool.open(out), counts


def reasons(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").open()]
    return [(line["record"], line["reason"]) for line in lines]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), talks=st.lists(conversations(), min_size=1, max_size=6))
@pytest.mark.parametrize("dialect", WRITERS)
def test_every_way_of_writing_gives_the_same_samples(data, talks, dialect, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialect")
    name = f"{dialect}-{data.draw(st.sampled_from(['json', 'jsonl']))}"
    records = [WRITERS[dialect](turns, data.draw) for turns in talks]
    pool, counts = read(records, name, folder, images=pictures)
    assert counts["rejected"] == {}
    assert pool.format == name
    for sample, turns in zip(pool, talks, strict=True):
        assert (list(sample.messages), [str(path) for path in sample.images]) == expected(turns)


QUESTION, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
TALK = [QUESTION, ANSWER]
SHARED = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"messages": TALK}], "messages"),
        ([{"messages": TALK, "images": []}], "messages"),
        ([{"conversations": SHARED}], "llava"),
        ([{"conversations": SHARED, "image": "x"}], "llava"),
        ([{"conversations": SHARED}, {"conversations": SHARED, "images": []}], "sharegpt"),
        ([{"conversations": SHARED, "system": "."}], "sharegpt"),
        ([{"conversations": SHARED, "images": []}, {"conversations": SHARED, "image": "x"}], "llava"),
        ([{"x": 1}], "llava"),
    ],
)
@pytest.mark.parametrize("framing", ["json", "jsonl"])
def test_a_dialect_is_recognised_by_content(records, expected, framing, tmp_path):
    lines = [json.dumps(record) for record in records]
    text = "[" + ",".join(lines) + "]" if framing == "json" else "\n".join(lines)
    (tmp_path / "pool").write_text(text)
    assert formats.find(IngestOptions(pool=tmp_path / "pool")).name == f"{expected}-{framing}"


def test_files_are_recognised_together(tmp_path):
    for name, record in {
        "plain": {"conversations": SHARED},
        "shown": {"conversations": SHARED, "images": []},
        "other": {"messages": TALK},
    }.items():
        (tmp_path / name).write_text(json.dumps(record))
    both = IngestOptions(pool=[tmp_path / "plain", tmp_path / "shown"])
    assert formats.find(both).name == "sharegpt-jsonl"
    with pytest.raises(UsageError, match=r"plain is llava-jsonl, .*other is messages-jsonl"):
        formats.find(IngestOptions(pool=[tmp_path / "plain", tmp_path / "other"]))
    with pytest.raises(UsageError, match="--format: 'x' is not one of auto, llava-json"):
        formats.find(IngestOptions(pool=tmp_path / "plain", format="x"))


def test_columns_may_have_other_names(pictures, tmp_path):
    record = {
        "key": 7,
        "dataset": "charts",
        "pics": "a.png",
        "dialogue": [{"speaker": "human", "text": "<image>?"}, {"speaker": "gpt", "text": "!"}],
        "images": ["gone.png"],
        "id": "other",
    }
    (tmp_path / "pool.jsonl").write_text(json.dumps(record))
    columns = "messages=dialogue,images=pics,id=key,source=dataset,role=speaker,content=text"
    with RunDirectory(tmp_path / "run") as run:
        options = IngestOptions(pool=tmp_path / "pool.jsonl", images=pictures, columns=columns)
        ingest.run(run, options, SilentProgress())
        (sample,) = Pool.open(run.pool)
    assert (sample.id, sample.source) == ("7", "charts")
    assert sample.messages == (("user", "<image>?"), ("assistant", "!"))
    assert sample.images == (Path("a.png"),)
    with pytest.raises(UsageError, match="--columns: 'x' is not one of messages, images"):
        IngestOptions(pool="p", columns="x=y")
    with pytest.raises(UsageError, match="--columns: 'messages' is not of the form"):
        IngestOptions(pool="p", columns="messages")
    with pytest.raises(UsageError, match="--columns: 'id' is given twice"):
        IngestOptions(pool="p", columns=["id=a", "id=b"])


def test_images_may_stand_in_the_record_itself(tmp_path):
    content = picture(1)
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "?"}]
    records = [
        {"messages": [{"role": "user", "content": parts}, ANSWER]},
        {"messages": [{"role": "user", "content": MARK}, ANSWER], "images": [address]},
    ]
    pool, counts = read(records, "messages-jsonl", tmp_path)
    assert [sample.images for sample in pool] == [(content,), (content,)]
    assert counts["images"] == 1


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ANSWER, QUESTION], "turn-order"),
        ([QUESTION, QUESTION, ANSWER], "turn-order"),
        ([QUESTION, ANSWER, ANSWER], "turn-order"),
        ([QUESTION, {"role": "system", "content": "."}, ANSWER], "turn-order"),
        ([{"role": "system", "content": "."}, ANSWER], "turn-order"),
        ([{"role": "system", "content": "."}] * 2 + TALK, "turn-order"),
        ([QUESTION, ANSWER, QUESTION], None),
        (
            [QUESTION, ANSWER, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, ANSWER],
            None,
        ),
        ([QUESTION, {"role": "assistant", "content": " "}, QUESTION, ANSWER], None),
        ([QUESTION, {"role": "assistant", "content": "\n\u3000"}], "no-answer"),
        ([QUESTION, {"role": "assistant", "content": []}], "no-answer"),
        ([QUESTION, {"role": "assistant", "content": None}], "bad-turn"),
        ([QUESTION, {"role": "narrator", "content": "x"}], "bad-turn"),
        ([{"role": "user", "content": [{"type": "video", "video": "v"}]}, ANSWER], "bad-turn"),
        ([{"role": "user", "content": [{"type": "text"}]}, ANSWER], "bad-turn"),
        ([{"role": "user", "content": [5]}, ANSWER], "bad-turn"),
        ([{"role": "user", "content": ["a", {"text": "b"}]}, ANSWER], None),
    ],
)
def test_turns_that_no_template_takes(turns, reason, tmp_path):
    good = {"messages": TALK}
    _, counts = read([good, {"messages": turns}], "messages-json", tmp_path)
    assert reasons(tmp_path) == ([(1, reason)] if reason else [])
    assert counts["samples"] == 2 - bool(reason)
    if reason == "turn-order":
        assert (
            read([good, {"messages": turns}], "messages-json", tmp_path, turns_alternate=False)[1]["samples"]
            == 2
        )


@pytest.mark.parametrize(
    ("question", "images", "expected"),
    [
        ("?", ["a.png"], "<image>?"),
        ("?", ["a.png", "a.png"], "<image><image>?"),
        ("<image>?", ["a.png", "a.png"], None),
        ("<image><image>?", ["a.png"], None),
        ("<image>?", [], None),
    ],
)
def test_marks_that_are_missing_are_inserted_or_refused(question, images, expected, pictures, tmp_path):
    good = {"messages": TALK}
    record = {"messages": [{"role": "user", "content": question}, ANSWER, QUESTION, ANSWER], "images": images}
    pool, _ = read([good, record], "messages-json", tmp_path, images=pictures)
    assert [sample.messages[0][1] for sample in pool] == ["?", expected][: len(pool)]
    assert reasons(tmp_path) == ([] if expected else [(1, "image-marks")])
    read([good, record], "messages-json", tmp_path, images=pictures, inserts_marks=False)
    assert reasons(tmp_path) == [(1, "image-marks")]
    # LLaVA leaves such images out, and LLaMA-Factory refuses the record.
    llava = {"conversations": record["messages"], "images": images}
    pool, _ = read([{"conversations": TALK}, llava], "llava-json", tmp_path, images=pictures)
    assert reasons(tmp_path) == [(1, "image-marks")]


def test_a_mark_may_stand_in_a_later_question_but_in_no_answer(pictures, tmp_path):
    later = [QUESTION, ANSWER, {"role": "user", "content": MARK}, ANSWER]
    answer = [QUESTION, {"role": "assistant", "content": f"{MARK}!"}]
    records = [{"messages": later, "images": ["a.png"]}, {"messages": answer, "images": ["a.png"]}]
    pool, _ = read(records, "messages-json", tmp_path, images=pictures)
    assert [len(sample.images) for sample in pool] == [1]
    assert reasons(tmp_path) == [(1, "image-marks")]


def test_images_are_found_by_the_paths_that_users_write(pictures, tmp_path):
    paths = ["b\\c.png", str(pictures / "b/c.png"), f"file://{pictures}/a.png"]
    bad = ["https://example.org/a.png", "/etc/hostname", "C:\\a.png", "data:image/png,x"]
    question = {"role": "user", "content": MARK}
    records = [{"messages": [question, ANSWER], "images": [path]} for path in paths + bad]
    pool, _ = read([*records, *[{"messages": TALK}] * 3], "messages-json", tmp_path, images=pictures)
    found = [str(sample.images[0]) for sample in pool if sample.images]
    assert found == ["b/c.png", "b/c.png", "a.png"]
    missing = ["image-missing", "image-outside", "image-missing", "image-missing"]
    assert reasons(tmp_path) == list(enumerate(missing, start=3))


def test_duplicate_ids_are_refused_or_renamed(tmp_path):
    ids = ["a", "b", "a", "a-2", "a", None, "row-5", "b"]
    records = [{"id": name, "messages": TALK} for name in ids]
    pool, counts = read(records, "messages-jsonl", tmp_path, renames_duplicates=False)
    assert pool.ids(range(len(pool))) == ["a", "b", "a-2", "row-5"]
    assert counts["rejected"] == {"duplicate-id": 4}
    pool, counts = read(records, "messages-jsonl", tmp_path)
    # The ids that stand in the records go first.
    assert pool.ids(range(len(pool))) == ["a", "b", "a-3", "a-2", "a-4", "row-5", "row-5-2", "b-2"]
    assert (counts["renamed"], counts["rejected"]) == (4, {})


def test_strict_stops_at_the_first_bad_record(tmp_path):
    records = [
        {"id": 3, "messages": TALK},
        {"id": "x", "messages": [QUESTION]},
        5,
        {"id": 3, "messages": TALK},
    ]
    with pytest.raises(PoolError) as caught:
        read(records, "messages-json", tmp_path, strict=True)
    text = (tmp_path / "mix").read_text()
    place = f"{tmp_path / 'mix'}: record 1 (byte {text.index(json.dumps(records[1]))}) (id 'x') is rejected"
    assert str(caught.value).startswith(place)
    assert str(caught.value).endswith("--strict allows none: no-answer: no assistant turn has any text")
    assert [path.name for path in tmp_path.iterdir()] == ["mix"]


def test_a_long_text_is_kept(tmp_path):
    question = {"role": "user", "content": "é\n" * 100_000}
    pool, _ = read([{"messages": [question, ANSWER]}], "messages-json", tmp_path)
    assert pool.sample(0).messages[0][1] == question["content"]

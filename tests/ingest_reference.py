"""The reference that ingest is tested against, and pools made at random.

`reference` says in plain Python what CONTRIBUTING.md says of a record.
"""

import json
import os
from pathlib import Path

from hypothesis import strategies as st

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
    check_order([role for role, _ in turns])
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
        "images": [{"path": path, "bytes": None, "offset": None, "length": None} for path in images],
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
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise Rejected("bad-turn")
        turns.append((ROLES[role.lower()], reference_content(content)))
    return turns


def reference_content(content: object) -> str:
    """Content is a text or a list of texts; the generated records hold no other parts."""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, str) for part in parts):
        raise Rejected("bad-turn")
    return "".join(parts)


def check_order(roles: list[str]) -> None:
    spoken = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * len(spoken)
    if spoken != expected[: len(spoken)]:
        raise Rejected("turn-order")


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

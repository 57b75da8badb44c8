"""The NLVR pool: every answer against a second evaluator that reads the corpus's own lines."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_selector.demo import nlvr
from mllm_selector.errors import PoolError

ORDERS = ["012", "021", "102", "120", "201", "210"]
RGB = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}
SIZE = {"small": 10, "medium": 20, "large": 30}
THING = r"(?:an? )?((?:small |medium |large )?(?:black |blue |yellow )?(?:circle|square|triangle|object)s?)"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path]:
    pool, images = nlvr.write_pool(tmp_path_factory.mktemp("nlvr"))
    return json.loads(pool.read_text()), images


@pytest.fixture(scope="module")
def corpus(shipped: tuple[list[dict], Path]) -> dict[str, dict]:
    lines = (shipped[1] / "dev" / "dev.json").read_text().splitlines()
    return {record["identifier"]: record for record in map(json.loads, lines)}


def boxes_of(image: str, corpus: dict[str, dict]) -> list[list[dict]]:
    identifier, order = re.fullmatch(r"dev-(.+)-(\d)", Path(image).stem).groups()
    boxes = corpus[identifier]["structured_rep"]
    return [boxes[int(position)] for position in ORDERS[int(order)]]


def colour_of(item: dict) -> str:
    return "blue" if item["color"] == "#0099ff" else item["color"].lower()


def described(item: dict) -> tuple[str, str, int]:
    return colour_of(item), item["type"], item["size"]


def matching(items: list[dict], thing: str) -> list[dict]:
    for word in thing.split():
        word = word.removesuffix("s")
        if word in RGB:
            items = [item for item in items if colour_of(item) == word]
        elif word in SIZE:
            items = [item for item in items if item["size"] == SIZE[word]]
        elif word != "object":
            items = [item for item in items if item["type"] == word]
    return items


def as_list(colours: set[str]) -> str:
    return re.sub(r", (\w+)$", r" and \1", ", ".join(sorted(colours)))


def boxes_told(text: str) -> list[list[dict]]:
    """Read the boxes back from the words of a text-only sample."""
    boxes = []
    for sentence in re.findall(r"holds ([^.]*)\.", text):
        found = re.findall(r"(\d+) (small|medium|large) (\w+) (\w+?)s?\b", sentence)
        items = [
            {"type": shape, "color": "#0099ff" if colour == "blue" else colour, "size": SIZE[size]}
            for number, size, colour, shape in found
            for _ in range(int(number))
        ]
        boxes.append(items)
    return boxes


def expected(question: str, scenes: list[list[list[dict]]], record: dict | None) -> str:
    """Answer a question of the pool, one pattern a wording."""
    boxes = scenes[0]
    items = [item for box in boxes for item in box]
    place = {"left": 0, "middle": 1, "right": 2}

    def match(pattern: str) -> re.Match[str] | None:
        return re.fullmatch(pattern, question)

    if record is not None and record["sentence"].strip() in question:
        return record["label"].capitalize()
    if found := match(
        rf"(?:Is there|Does any box hold) {THING}(?: in the picture)?\?(?:\s?Answer yes or no\.)?"
    ):
        return "Yes" if matching(items, found[1]) else "No"
    if found := match(rf"Can you see {THING} in this picture\?"):
        article = "an" if found[1][0] in "aeiou" else "a"
        there = bool(matching(items, found[1]))
        return f"Yes, there is {article} {found[1]}." if there else f"No, there is no {found[1]}."
    if found := match(rf"How many {THING} are there in (?:the picture\?\nAnswer with a number\.|all\?)"):
        return str(len(matching(items, found[1])))
    if found := match(rf"How many (?:of the three )?boxes hold {THING}\?"):
        return str(sum(bool(matching(box, found[1])) for box in boxes))
    if found := match(rf"Is there {THING} in every box\?"):
        return "Yes" if all(matching(box, found[1]) for box in boxes) else "No"
    if found := match(rf"Count the {THING}\."):
        count = len(matching(items, found[1]))
        thing = found[1].removesuffix("s")
        return f"There is 1 {thing}." if count == 1 else f"There are {count or 'no'} {thing}s."
    if question in (
        "Which colours are in the picture?",
        "Name the colours of the objects.",
        "Which colours can you see?",
    ):
        return as_list({colour_of(item) for item in items})
    if found := match(r"What colours do the (\w+)s have\?"):
        return as_list({colour_of(item) for item in items if item["type"] == found[1]})
    if question == "Which colour do most objects have?":
        (first, most), *rest = Counter(map(colour_of, items)).most_common()
        assert all(count < most for _, count in rest)
        return first
    if found := match(r"How many objects are in the (\w+) box\?"):
        return str(len(boxes[place[found[1]]]))
    if found := match(rf"Is there {THING} in the (\w+) box\?\nAnswer yes or no\."):
        return "Yes" if matching(boxes[place[found[2]]], found[1]) else "No"
    if match("Which box holds the most objects: the left, the middle or the right one\\?"):
        (full,) = [name for name, at in place.items() if len(boxes[at]) == max(map(len, boxes))]
        return f"The {full} one."
    if found := match(r"What is the colour of the block at the (\w+) of the tower in the (\w+) box\?"):
        box = boxes[place[found[2]]]
        heights = sorted(item["y_loc"] for item in box)
        assert {item["x_loc"] for item in box} == {40}
        assert set(np.diff(heights)) == {21}, "a tower is gapless"
        wanted = heights[0] if found[1] == "top" else heights[-1]
        return next(colour_of(item) for item in box if item["y_loc"] == wanted)
    if found := match(rf"Do both pictures show {THING}\?\nAnswer yes or no\."):
        both = all(matching([item for box in scene for item in box], found[1]) for scene in scenes)
        return "Yes" if both else "No"
    if found := match(rf"Which picture has more {THING}, the first or the second\?"):
        one, two = (sum(len(matching(box, found[1])) for box in scene) for scene in scenes)
        return "Both the same." if one == two else "The first." if one > two else "The second."
    if match(r"How many objects are there in all\?"):
        return str(len(items))
    if found := match(r"And how many of them are (\w+)\?"):
        return str(len(matching(items, found[1])))
    if found := match(r"In how many boxes is there something (\w+)\?"):
        return str(sum(bool(matching(box, found[1])) for box in boxes))
    pytest.fail(f"no rule answers {question!r}")


def test_every_answer_is_right(shipped, corpus):
    records, _ = shipped
    for record in records:
        images = record.get("image", [])
        images = [images] if isinstance(images, str) else images
        turns = record["conversations"]
        asked, answers = turns[::2], turns[1::2]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(asked)
        assert asked[0]["value"].count("<image>") == len(images)
        questions = [turn["value"].replace("<image>", "").strip() for turn in asked]
        if record["source"] == "nlvr-text":
            assert not images
            assert "image" not in record
            text, questions[0] = questions[0].split("\n")
            scenes = [boxes_told(text)]
            own = boxes_of(record["id"].removeprefix("nlvr-")[:-2], corpus)
            assert [Counter(map(described, box)) for box in scenes[0]] == [
                Counter(map(described, box)) for box in own
            ]
        else:
            scenes = [boxes_of(image, corpus) for image in images]
        statement = None
        if record["source"] == "nlvr-statement":
            statement = corpus[Path(images[0]).stem.removeprefix("dev-")[:-2]]
        for position, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if question == "How many?":
                thing = re.fullmatch(rf"Is there {THING}\?", questions[position - 1])[1]
                right = str(len(matching([item for box in scenes[0] for item in box], thing)))
            else:
                right = expected(question, scenes, statement)
            assert answer["value"] == right, (record["id"], question)


def test_images_show_the_boxes_in_the_order_of_their_number(shipped, corpus):
    _, folder = shipped
    area = {"square": 1.0, "circle": np.pi / 4, "triangle": 0.5}
    paths = sorted((folder / "dev" / "images").iterdir())
    assert len(paths) > 400
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        shown = np.array(
            [
                [(np.abs(pixels[:, left : left + 100] - rgb).max(axis=-1) < 40).sum() for rgb in RGB.values()]
                for left in (0, 150, 300)
            ]
        )
        identifier, order = path.stem.removeprefix("dev-").rsplit("-", 1)
        painted = np.array(
            [
                [sum(area[i["type"]] * i["size"] ** 2 for i in box if colour_of(i) == name) for name in RGB]
                for box in corpus[identifier]["structured_rep"]
            ]
        )
        errors = [np.abs(painted[[int(position) for position in text]] - shown).sum() for text in ORDERS]
        # Boxes of equal contents make orders that cannot be told apart.
        assert errors[int(order)] <= min(errors) + 25, path.name


def test_ids_and_questions_are_unique(shipped):
    records, folder = shipped
    assert len({record["id"] for record in records}) == len(records)
    asked = Counter((str(record.get("image")), record["conversations"][0]["value"]) for record in records)
    with_image = {key: count for key, count in asked.items() if key[0] != "None"}
    assert max(with_image.values()) == 1
    for record in records:
        images = record.get("image", [])
        for image in [images] if isinstance(images, str) else images:
            assert (folder / image).is_file()


def test_the_mix_is_skewed_and_has_every_source(shipped):
    records, _ = shipped
    assert 1500 <= len(records) <= 2500
    counts = Counter(record["source"] for record in records)
    assert set(counts) == set(nlvr.SOURCES)
    assert counts.most_common(1)[0][0] == "nlvr-exists"
    assert max(counts.values()) > 5 * min(counts.values())
    answers = Counter(
        record["conversations"][1]["value"].split(",")[0].rstrip(".")
        for record in records
        if record["source"] == "nlvr-exists"
    )
    assert 0.35 < answers["Yes"] / answers.total() < 0.65


def test_the_same_bytes_every_time(shipped, tmp_path):
    _, images = shipped
    pool, _ = nlvr.write_pool(tmp_path)
    assert pool.read_bytes() == (images.parent / "pool.json").read_bytes()
    statements = nlvr.read_statements(images)
    assert list(nlvr.samples(statements, 1, seed=1)) != list(nlvr.samples(statements, 1, seed=2))


def test_a_statement_does_not_depend_on_the_others(shipped):
    statements = nlvr.read_statements(shipped[1])
    alone = [r for r in nlvr.samples(statements[:1], 3) if r["source"] != "nlvr-pair"]
    together = list(nlvr.samples(statements, 3))
    assert alone
    assert alone[0] in together


def test_images_in_numbered_folders_are_found(shipped, tmp_path):
    # The layout of the corpus's repository.
    line = json.loads((shipped[1] / "dev" / "dev.json").read_text().splitlines()[0]) | {"directory": "7"}
    folder = tmp_path / "dev" / "images" / "7"
    folder.mkdir(parents=True)
    (tmp_path / "dev" / "dev.json").write_text(json.dumps(line))
    name = f"dev-{line['identifier']}-3.png"
    (folder / name).write_bytes(b"")
    (statement,) = nlvr.read_statements(tmp_path)
    assert statement.images == {3: f"dev/images/7/{name}"}


def test_what_is_not_nlvr_is_refused(tmp_path):
    with pytest.raises(PoolError, match=r"not an NLVR folder.*dev/dev\.json"):
        nlvr.read_statements(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dev.json").write_text('{"identifier": "1-0"}\n')
    with pytest.raises(PoolError, match=r"dev\.json, line 1"):
        nlvr.read_statements(tmp_path)


def test_the_shipped_part_can_be_in_an_archive(shipped, tmp_path):
    _, images = shipped
    archive = shutil.make_archive(str(tmp_path / "package"), "zip", images)
    nlvr.copy_tree(zipfile.Path(archive), tmp_path / "copy")
    assert nlvr.read_statements(tmp_path / "copy") == nlvr.read_statements(images)


def test_the_shipped_part_is_small_and_says_whose_it_is():
    folder = Path(str(resources.files("mllm_selector.demo") / "data" / "nlvr"))
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 1_500_000
    note = (folder / "ATTRIBUTION.md").read_text()
    for part in ("CC-BY-4.0", "Suhr", "2017", "subset"):
        assert part in note

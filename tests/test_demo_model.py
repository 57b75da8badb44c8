"""The demo's scenes and its model made by code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TINY
from mllm_selector import demo
from mllm_selector.artifacts import atomic_folder
from mllm_selector.demo.model import ModelSize, make_model, pretrain
from mllm_selector.demo.scenes import BOXES, COLOURS, Item, Scene, draw_scene
from mllm_selector.progress import SilentProgress

seeds = st.integers(0, 2**32)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@given(seeds)
def test_a_picture_shows_every_object_in_its_box(seed: int) -> None:
    scene = draw_scene(generator(seed))
    pixels = np.asarray(scene.picture())
    assert pixels.shape == (100, 400, 3)
    for index, box in enumerate(BOXES):
        part = pixels[:, index * 150 : index * 150 + 100]
        shown = {name for name, rgb in COLOURS.items() if (part == rgb).all(axis=-1).any()}
        assert shown == {item.colour for item in scene.items(box)}
        for item in scene.items(box):
            # The middle of the lower edge belongs to all three shapes.
            assert tuple(part[item.y + item.side - 2, item.x + item.side // 2]) == COLOURS[item.colour]
    assert (pixels[:, 100:150] == 128).all()


@given(seeds)
def test_objects_do_not_overlap(seed: int) -> None:
    for items in draw_scene(generator(seed)).boxes:
        covered = np.zeros((100, 100), dtype=int)
        for item in items:
            assert min(item.x, item.y) >= 0
            covered[item.y : item.y + item.side, item.x : item.x + item.side] += 1
        assert covered.max() == 1
        assert covered.sum() == sum(item.side**2 for item in items)


@given(seeds)
def test_a_caption_counts_what_is_there(seed: int) -> None:
    scene = draw_scene(generator(seed))
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4}
    for sentence, box in zip(scene.caption().rstrip(".").split(". "), BOXES, strict=True):
        contents = sentence.removeprefix(f"The {box} box has ")
        said = {}
        for part in contents.split(" and "):
            number, colour, shape = part.split()
            said[colour, shape.removesuffix("s")] = numbers[number]
        assert said == Counter((item.colour, item.shape) for item in scene.items(box))


def test_answers_about_a_known_scene() -> None:
    low, high = Item("circle", "blue", "small", 10, 80), Item("square", "blue", "medium", 50, 5)
    scene = Scene(((low, high), (Item("triangle", "black", "large", 0, 0),), (low,)))
    answers = dict(turn for seed in range(300) for turn in scene.turns(generator(seed)))
    assert answers["What is in the left box?"] == "One blue square and one blue circle."
    assert answers["How many blue objects are in the left box?"] == "2"
    assert answers["How many yellow objects are in the middle box?"] == "0"
    assert answers["Is there a black object in the middle box?"] == "Yes"
    assert answers["Is there a black object in the right box?"] == "No"
    assert answers["What is the highest object in the left box?"] == "A blue square."


def test_the_directory_loads_and_its_answer_mask_covers_the_answers(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    picture = draw_scene(generator(0)).picture()
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two boxes."}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "None."},
    ]
    # By the tokenizer: the processor's own mask is wrong beside images before transformers 5.23.
    text = processor.tokenizer.apply_chat_template(
        chat,
        chat_template=processor.chat_template,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    mask = torch.as_tensor(text["assistant_masks"]).reshape(-1).bool()
    assert processor.tokenizer.decode(text["input_ids"][0][mask]) == "Two boxes.</s>None.</s>"
    encoded = processor.apply_chat_template([chat], tokenize=True, return_dict=True, return_tensors="pt")
    assert (encoded["input_ids"] == model.config.image_token_index).sum() == 16
    with torch.no_grad():
        logits = model(**encoded).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.3, "the logits are almost equal, so losses would mean nothing"


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    texts = ["one yellow square", "two blue circles"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_model(tmp_path / name, texts, size=TINY, seed=seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    tokenizers = {(tmp_path / name / "tokenizer.json").read_bytes() for name in "abc"}
    assert len(tokenizers) == 1


def test_pretraining_makes_the_picture_matter(tmp_path: Path) -> None:
    random = generator(1)
    texts = [text for _ in range(100) for turn in draw_scene(random).turns(random) for text in turn]
    make_model(tmp_path, texts, size=ModelSize(hidden=96, vision_layers=2, text_layers=2, vocabulary=400))
    result = pretrain(tmp_path, steps=120, batch_size=16, learning_rate=3e-3)
    assert result.right < 0.6
    assert result.right < result.wrong - 0.02


def test_pretraining_is_repeatable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_model(tmp_path / name, ["one yellow square"], size=TINY)
        pretrain(tmp_path / name, steps=3, batch_size=4, seed=5)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_prepare_unpacks_the_sample_and_keeps_a_model_that_is_there(tmp_path: Path, tiny_model: Path) -> None:
    import json
    import shutil

    shutil.copytree(tiny_model, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    options = demo.prepare(tmp_path, None, SilentProgress())
    assert options["model"] == str(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    records = json.loads(options["pool"].read_bytes())
    assert len(records) > 1000
    assert (
        options["images"] / next(r["image"] for r in records if isinstance(r.get("image"), str))
    ).is_file()

    named = demo.prepare(tmp_path, "someone/else", SilentProgress())
    assert named["model"] == "someone/else"
    assert "seed_learning_rate" not in named


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def cut_off() -> None:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "whole").touch()
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "newer").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["newer"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

"""Which tokens stay when a sample is read without its images, without its instruction or after an example."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_selector.errors import SampleError
from mllm_selector.families.chat import ChatEncoder
from mllm_selector.families.variants import after_example, without_images, without_instruction
from mllm_selector.metrics import Variant
from mllm_selector.pool import Sample
from mllm_selector.scoring.readings import read_as
from model_fixtures import CHATML_TEMPLATE, LLAVA_TEMPLATE, tokenizer

TALK = (
    ("system", "You are helpful."),
    ("user", "<image>\n<image>\nWhat is shown?"),
    ("assistant", "There are three."),
    ("user", "Is <image> red?"),
    ("assistant", "yes"),
)


@pytest.fixture(scope="module")
def chatml() -> ChatEncoder:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
    return ChatEncoder(tokenizer(special, begin=None, end="<|im_end|>"), CHATML_TEMPLATE)


@pytest.fixture(scope="module")
def llava() -> ChatEncoder:
    return ChatEncoder(tokenizer(("<s>", "</s>", "<image>"), begin="<s>", end="</s>"), LLAVA_TEMPLATE)


def answers(encoder: ChatEncoder, messages: tuple[tuple[str, str], ...]) -> tuple[str, list[str]]:
    chat = encoder.render(messages)
    return chat.text, [chat.text[start:end] for start, end in chat.answers]


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("<image>\n<image>\nWhat?", "What?"),
        ("First: <image>\nSecond: <image>\nEqual?", "First: Second: Equal?"),
        ("Look.\n<image>\nWhat?", "Look.\nWhat?"),
        ("the <image> is", "the  is"),
        ("<image>", ""),
        ("No picture\n", "No picture\n"),
    ],
)
def test_a_mark_goes_with_one_line_break(content: str, left: str) -> None:
    assert without_images((("user", content),)) == (("user", left),)


def test_without_images_only_the_images_are_gone(chatml: ChatEncoder, llava: ChatEncoder) -> None:
    text, spoken = answers(chatml, without_images(TALK))
    assert text == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhat is shown?<|im_end|>\n"
        "<|im_start|>assistant\nThere are three.<|im_end|>\n<|im_start|>user\nIs  red?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    assert spoken == answers(chatml, TALK)[1]
    plain = (("user", "<image>\nhow many"), ("assistant", "two"))
    assert answers(llava, without_images(plain)) == ("USER: how many ASSISTANT: two ", [" two "])


def test_without_instruction_images_and_answers_stay(chatml: ChatEncoder) -> None:
    text, spoken = answers(chatml, without_instruction(TALK))
    assert text == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n<image><image><|im_end|>\n"
        "<|im_start|>assistant\nThere are three.<|im_end|>\n<|im_start|>user\n<image><|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    assert spoken == answers(chatml, TALK)[1]


def test_after_an_example_only_the_samples_answers_count(chatml: ChatEncoder) -> None:
    example = (("system", "Other."), ("user", "<image>\nHow many?"), ("assistant", "two"))
    text, spoken = answers(chatml, after_example(TALK, example))
    assert text == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
        "<|im_start|>assistant\ntwo<|im_end|>\n" + answers(chatml, TALK[1:])[0]
    )
    assert spoken == ["There are three.<|im_end|>\n", "yes<|im_end|>\n"]
    bare = answers(chatml, after_example(TALK[1:], example))[0]
    assert bare.startswith("<|im_start|>user\n<image>How many?")


def test_the_same_answer_tokens_count_in_every_reading(chatml: ChatEncoder) -> None:
    example = (("user", "How many?"), ("assistant", "two"))
    expected = chatml.encode(TALK)
    for messages in (without_images(TALK), without_instruction(TALK), after_example(TALK, example)):
        tokens = chatml.encode(messages)
        assert np.array_equal(tokens.ids[tokens.is_answer], expected.ids[expected.is_answer])


def test_images_of_the_example_come_first() -> None:
    sample = Sample(3, "a", "s", TALK, (b"1", b"2", b"3"))
    example = Sample(9, "b", "s", (("user", "<image>x"), ("assistant", "y")), (b"4",))
    reading = read_as(Variant.ONE_SHOT, sample, example)
    assert reading.images == (b"4", b"1", b"2", b"3")
    assert reading.places == ((9, 0), (3, 0), (3, 1), (3, 2))
    assert read_as(Variant.FULL, sample).places == reading.places[1:]
    assert read_as(Variant.NO_INSTRUCTION, sample).images == sample.images
    assert read_as(Variant.NO_IMAGE, sample).images == ()


def test_what_cannot_be_read_so_has_a_reason() -> None:
    sample = Sample(0, "a", "s", (("user", "x"), ("assistant", "y")), ())
    with pytest.raises(SampleError, match=r"^no-image: "):
        read_as(Variant.NO_IMAGE, sample)
    with pytest.raises(SampleError, match=r"^no-example: "):
        read_as(Variant.ONE_SHOT, sample)

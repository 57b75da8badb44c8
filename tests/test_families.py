"""Chat text, answer tokens, images and the registry of model families."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from mllm_selector import families
from mllm_selector.errors import ModelError, SampleError, UsageError
from mllm_selector.families import chat, images
from mllm_selector.families.chat import ChatEncoder, TokenizedChat, encode_for_training
from mllm_selector.families.llava import LlavaFamily
from mllm_selector.families.loading import load_model, to_precision
from model_fixtures import CHATML_TEMPLATE, clip_llama, picture, siglip_qwen2, tokenizer

# The ChatML template with the marks by which transformers itself finds the assistant's tokens.
CHATML_WITH_MARKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endgeneration %}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Talk:
    messages: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...] = ()


TWO_TURNS = Talk(
    (
        ("user", "<image>\nHow many boxes are there?"),
        ("assistant", "There are three."),
        ("user", "And in\n<image>?"),
        ("assistant", "yes"),
    ),
    (b"\x01", b"\x02"),
)


def open_picture(image: bytes) -> Image.Image:
    return picture(image[0], size=(40 + image[0], 50))


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_llama(tmp_path_factory.mktemp("models") / "clip_llama")


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip_qwen2(tmp_path_factory.mktemp("models") / "siglip_qwen2")


@pytest.fixture(scope="module")
def qwen2_vl() -> Qwen2VLProcessor:
    """A processor whose images differ in their number of tokens."""
    special = (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
    )
    text = tokenizer((*special, "<|vision_end|>"), begin=None, end="<|im_end|>")
    template = CHATML_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}
    return Qwen2VLProcessor(
        Qwen2VLImageProcessorPil(size=size), text, Qwen2VLVideoProcessor(size=size), chat_template=template
    )


def answers(encoder: ChatEncoder, tokens: TokenizedChat) -> list[str]:
    """The text of each run of answer tokens."""
    edges = np.flatnonzero(np.diff(tokens.is_answer.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [
        "".join(encoder.tokenizer.convert_ids_to_tokens(tokens.ids[first:last].tolist())).replace("Ġ", " ")
        for first, last in edges
    ]


# Which tokens count


def test_answers_in_the_llava_template(llama_folder: Path) -> None:
    encoder = ChatEncoder.of(AutoProcessor.from_pretrained(llama_folder))
    rendered = encoder.render(TWO_TURNS.messages)
    assert rendered.text == (
        "USER: <image>\nHow many boxes are there? ASSISTANT: There are three. "
        "USER: <image>\nAnd in ? ASSISTANT: yes "
    )
    assert [rendered.text[start:end] for start, end in rendered.answers] == [" There are three. ", " yes "]
    tokens = encoder.tokenize(rendered)
    assert answers(encoder, tokens) == [" There are three. ", " yes "]
    assert encoder.tokenizer.convert_ids_to_tokens(int(tokens.ids[0])) == "<s>"
    assert tokens.is_image.sum() == 2


def test_answers_in_chatml_take_the_end_mark_along(qwen_folder: Path) -> None:
    encoder = ChatEncoder.of(AutoProcessor.from_pretrained(qwen_folder))
    tokens = encoder.encode(TWO_TURNS.messages)
    assert answers(encoder, tokens) == ["There are three.<|im_end|>Ċ", "yes<|im_end|>Ċ"]


def test_the_fallback_is_vicunas_format(llama_folder: Path) -> None:
    text = AutoProcessor.from_pretrained(llama_folder).tokenizer
    encoder = ChatEncoder(text, None)
    system = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the human's questions. "
    )
    rendered = encoder.render(TWO_TURNS.messages)
    assert rendered.text == system + (
        "USER: <image>\nHow many boxes are there? ASSISTANT: There are three.</s>"
        "USER: <image>\nAnd in? ASSISTANT: yes</s>"
    )
    assert [rendered.text[start:end] for start, end in rendered.answers] == [
        " There are three.</s>",
        " yes</s>",
    ]
    own_system = encoder.render((("system", "Be brief."), ("user", "hi"), ("assistant", "yes")))
    assert own_system.text == "Be brief. USER: hi ASSISTANT: yes</s>"


WORDS = st.text(alphabet="abc XY.\n?é猫", max_size=12)


@settings(max_examples=60)
@given(
    turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
    shown=st.integers(0, 3),
    system=st.booleans(),
)
def test_answers_are_those_that_transformers_marks(
    qwen_folder: Path, turns: list[tuple[str, str]], shown: int, system: bool
) -> None:
    processor = _with_marks(qwen_folder)
    messages = [("system", "Be brief.")] if system else []
    for index, (question, answer) in enumerate(turns):
        messages += [("user", "<image>" * (shown if index == 0 else 0) + question), ("assistant", answer)]
    sample = Talk(tuple(messages), tuple(bytes([i]) for i in range(shown)))

    parts = [
        {"role": role, "content": _parts(content, iter(sample.images) if index <= system else iter(()))}
        for index, (role, content) in enumerate(messages)
    ]
    expected = processor.apply_chat_template(parts, tokenize=True, return_dict=True, return_tensors="pt")
    encoded = encode_for_training(processor, sample, open_picture)
    assert torch.equal(encoded["input_ids"], expected["input_ids"][0])
    # By the tokenizer: the processor's own mask is wrong beside images before transformers 5.23.
    tokens = processor.tokenizer.apply_chat_template(
        parts, chat_template=CHATML_WITH_MARKS, return_dict=True, return_assistant_tokens_mask=True
    )
    is_image = np.array(tokens["input_ids"]) == processor.image_token_id
    rows = int((expected["input_ids"] == processor.image_token_id).sum()) // max(shown, 1)
    is_answer = np.repeat(tokens["assistant_masks"], np.where(is_image, rows, 1)) == 1
    assert (encoded["labels"] >= 0).tolist() == is_answer.tolist()
    marked = encoded["labels"] >= 0
    assert torch.equal(encoded["labels"][marked], encoded["input_ids"][marked])


_PROCESSORS: dict[Path, Any] = {}


def _with_marks(folder: Path) -> Any:
    if folder not in _PROCESSORS:
        _PROCESSORS[folder] = AutoProcessor.from_pretrained(folder)
        _PROCESSORS[folder].chat_template = CHATML_WITH_MARKS
    return _PROCESSORS[folder]


def _parts(content: str, shown: Any) -> list[dict[str, Any]]:
    """Content as transformers wants it, images included; line breaks beside a mark are left out."""
    pieces = content.split("<image>")
    if len(pieces) > 1:
        pieces = [piece.strip("\n") for piece in pieces]
    parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for piece in pieces[1:]:
        parts += [{"type": "image", "image": open_picture(next(shown))}, {"type": "text", "text": piece}]
    return parts


def test_a_first_word_merged_with_the_generation_prompt_counts(llama_folder: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: "
        "{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %} "
        "{% else %}A: {{ m.content[0].text }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    encoder = ChatEncoder(AutoProcessor.from_pretrained(llama_folder).tokenizer, template)
    tokens = encoder.encode((("user", "many"), ("assistant", "yes")))
    assert answers(encoder, tokens) == [" yes "]


def test_templates_for_plain_strings(llama_folder: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoder = ChatEncoder(AutoProcessor.from_pretrained(llama_folder).tokenizer, template)
    rendered = encoder.render((("user", "<image>\nmany"), ("assistant", "yes")))
    assert rendered.text == "user: <image>\nmany\nassistant: yes\n"
    assert rendered.answers == ((len("user: <image>\nmany\nassistant:"), len(rendered.text)),)


def test_unusable_templates_are_refused(llama_folder: Path) -> None:
    text = AutoProcessor.from_pretrained(llama_folder).tokenizer
    only_last = "{{ messages[-1].content[-1].text }}"
    with pytest.raises(ModelError, match="chat template cannot be used"):
        ChatEncoder(text, only_last)
    with pytest.raises(ModelError, match="chat template cannot be used"):
        ChatEncoder(text, "{{ raise_exception('no images here') }}")
    with pytest.raises(ModelError, match="no image token '<picture>'"):
        ChatEncoder(text, None, "<picture>")


def test_conversations_that_a_template_refuses_are_set_aside(qwen_folder: Path) -> None:
    text = AutoProcessor.from_pretrained(qwen_folder).tokenizer
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    encoder = ChatEncoder(text, strict + CHATML_TEMPLATE)
    with pytest.raises(SampleError, match=r"chat-template: .*no system turn"):
        encoder.encode((("system", "x"), ("user", "y"), ("assistant", "z")))
    with pytest.raises(SampleError, match="begins with an answer"):
        encoder.encode((("assistant", "z"),))
    # As of reasoning models: earlier turns are shortened once a later one is there.
    forgetful = CHATML_TEMPLATE.replace(
        "{{ part.text }}", "{{ part.text if loop.last or 'think' not in part.text else '' }}"
    ).replace("{% for message in messages %}", "{% for message in messages %}{% set last = loop.last %}")
    forgetful = forgetful.replace("loop.last or", "last or")
    encoder = ChatEncoder(text, forgetful)
    with pytest.raises(SampleError, match="turn 1 does not follow"):
        encoder.encode((("user", "a"), ("assistant", "think b"), ("user", "c"), ("assistant", "d")))


# Training


def test_training_with_a_llava_processor(llama_folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(llama_folder)
    encoded = encode_for_training(processor, TWO_TURNS, open_picture)
    labels = encoded["labels"]
    assert set(encoded) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert encoded["input_ids"].shape == labels.shape == encoded["attention_mask"].shape
    assert encoded["pixel_values"].shape == (2, 3, 32, 32)
    assert (encoded["input_ids"] == processor.image_token_id).sum() == 2 * 16
    text = "".join(processor.tokenizer.convert_ids_to_tokens(labels[labels >= 0].tolist())).replace("Ġ", " ")
    assert text == " There are three.  yes "
    loss = load_model(llama_folder)(
        input_ids=encoded["input_ids"][None], labels=labels[None], pixel_values=encoded["pixel_values"]
    ).loss
    assert torch.isfinite(loss)


def test_training_with_images_of_different_length(qwen2_vl: Qwen2VLProcessor) -> None:
    encoded = encode_for_training(qwen2_vl, Talk(TWO_TURNS.messages, (b"\x01", b"\x96")), open_picture)
    ids, labels = encoded["input_ids"], encoded["labels"]
    patches = encoded["image_grid_thw"].prod(-1)
    assert patches[0] != patches[1]
    assert (ids == qwen2_vl.image_token_id).sum() == patches.sum() // 4
    assert encoded["mm_token_type_ids"].shape == ids.shape
    assert encoded["pixel_values"].shape[0] == patches.sum()
    text = "".join(qwen2_vl.tokenizer.convert_ids_to_tokens(labels[labels >= 0].tolist())).replace("Ġ", " ")
    assert text == "There are three.<|im_end|>Ċyes<|im_end|>Ċ"


def test_a_placeholder_written_by_a_user_is_set_aside(qwen2_vl: Qwen2VLProcessor) -> None:
    sample = Talk((("user", "<image>what is <|image_pad|>?"), ("assistant", "a token")), (b"\x01",))
    with pytest.raises(SampleError, match=r"image-marks: 1 images, 1 <image> marks, 2 '<\|image_pad\|>'"):
        encode_for_training(qwen2_vl, sample, open_picture)


def tokens_of(ids: list[int], answers: list[int]) -> TokenizedChat:
    """Tokens with 9 as image placeholder."""
    array = np.array(ids)
    return TokenizedChat(array, np.isin(np.arange(len(ids)), answers), array == 9)


def test_answers_are_found_after_expansion() -> None:
    carry = chat._answers_after_expansion
    plain = tokens_of([1, 9, 2, 3, 9, 4, 5], [3, 6])
    assert np.flatnonzero(carry(plain, np.array([1, 9, 9, 9, 2, 3, 9, 9, 4, 5]))).tolist() == [5, 9]
    # As Gemma's processor does: line breaks around the image merge with the text's.
    merged = tokens_of([1, 7, 9, 7, 2, 3], [5])
    assert np.flatnonzero(carry(merged, np.array([1, 77, 9, 9, 77, 2, 3]))).tolist() == [6]
    with pytest.raises(ModelError, match="do not belong together"):
        carry(plain, np.array([1, 9, 9, 9, 2, 8, 9, 9, 4, 5]))
    with pytest.raises(ModelError, match="do not belong together"):
        carry(plain, np.array([1, 9, 9, 9, 2, 3, 9, 9, 4, 8]))


# The LLaVA family


@pytest.mark.parametrize(
    "sample",
    [TWO_TURNS, Talk(TWO_TURNS.messages[2:], (b"\x03",)), Talk((("user", "hi"), ("assistant", "yes")))],
)
@pytest.mark.parametrize("model", ["llama_folder", "qwen_folder"])
def test_scoring_reads_what_training_reads(model: str, sample: Talk, request: pytest.FixtureRequest) -> None:
    family = families.load(request.getfixturevalue(model))
    encoded = family.encode(sample)
    own = encode_for_training(family.processor, sample, open_picture)
    assert encoded.ids.tolist() == own["input_ids"].tolist()
    assert np.where(encoded.is_answer, encoded.ids, -100).tolist() == own["labels"].tolist()
    assert encoded.is_image.tolist() == (own["input_ids"] == family.config.image_token_id).tolist()
    assert sum(encoded.image_tokens) == encoded.is_image.sum()
    if sample.images:
        prepared = family.vision_inputs([family.prepare(open_picture(image)) for image in sample.images])
        numbers = family.normalization.numbers(prepared["pixel_values"])
        assert np.array_equal(numbers, own["pixel_values"].numpy())


def test_the_saved_family_is_the_same(llama_folder: Path, tmp_path: Path) -> None:
    family = families.load(llama_folder)
    family.save(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    again = families.load(tmp_path)
    assert again.encode(TWO_TURNS).ids.tolist() == family.encode(TWO_TURNS).ids.tolist()
    assert again.max_positions == family.max_positions == 512
    assert again.image_backend == "pil"
    one, other = (f.prepare(picture(0))["pixel_values"] for f in (again, family))
    assert np.array_equal(one, other)


def test_padding_is_on_the_right(llama_folder: Path) -> None:
    family = families.load(llama_folder)
    long, short = family.encode(TWO_TURNS), family.encode(Talk((("user", "hi"), ("assistant", "yes"))))
    inputs = family.scorer_inputs([short, long])
    assert inputs["attention_mask"].sum(1).tolist() == [len(short), len(long)]
    assert inputs["input_ids"][0, : len(short)].tolist() == short.ids.tolist()
    assert (inputs["input_ids"][0, len(short) :] == family.pad_token_id).all()


def edited(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a model directory with some entries of a JSON file changed."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        entry = content
        for parent in parents:
            entry = entry[parent]
        entry[last] = value
    (target / file).write_text(json.dumps(content))
    return target


def test_processors_that_do_not_fit_the_model_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    wrong = edited(llama_folder, tmp_path / "a", "processor_config.json", num_additional_image_tokens=0)
    with pytest.raises(ModelError, match=r"writes 15 placeholders for an image, the model makes 16 features"):
        families.load(wrong)
    crop = {"height": 40, "width": 40}
    wrong = edited(llama_folder, tmp_path / "b", "processor_config.json", image_processor__crop_size=crop)
    with pytest.raises(ModelError, match=r"shape \(3, 40, 40\), the vision tower takes \(3, 32, 32\)"):
        families.load(wrong)
    shutil.copytree(llama_folder, tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").unlink()
    (tmp_path / "c" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="processor cannot be loaded"):
        families.load(tmp_path / "c")


def test_unknown_towers_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    wrong = edited(llama_folder, tmp_path / "a", "config.json", vision_config__model_type="pixtral")
    with pytest.raises(ModelError, match="'pixtral' cannot be scored; known: clip_vision_model, siglip"):
        families.check(wrong)


def test_pickled_weights_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    shutil.copytree(llama_folder, target)
    (target / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(target)
    model = AutoModelForImageTextToText.from_pretrained(llama_folder)
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled \(pytorch_model.bin\).*writes safetensors"):
        load_model(target)


def test_half_precision_keeps_the_frequencies_of_positions(llama_folder: Path) -> None:
    model = to_precision(load_model(llama_folder), "float16")
    loaded = load_model(llama_folder, precision="float16")
    frequencies = dict(loaded.named_buffers())
    assert frequencies
    for name, buffer in model.named_buffers():
        assert buffer.dtype == frequencies[name].dtype, name
        assert torch.equal(buffer, frequencies[name]), name
    assert {weight.dtype for weight in model.parameters()} == {torch.float16}
    assert model.state_dict().keys() == loaded.state_dict().keys()


# The registry


def test_unknown_model_types_list_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UsageError, match=r"models of type 'bert' cannot be scored; known types: gemma3, idefics3, .*smolvlm"
    ) as raised:
        families.check(tmp_path)
    assert raised.value.exit_code == 2


def test_check_reads_the_config_only(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copy(llama_folder / "config.json", tmp_path)
    assert families.check(tmp_path) is families.check(str(tmp_path))
    assert families.check(tmp_path).model_types == ("llava",)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no config.json"), ("{", "not JSON"), ("[]", "not a JSON object")]
)
def test_broken_configs_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        families.check(tmp_path)


def test_a_name_that_is_neither_folder_nor_hub_id() -> None:
    with pytest.raises(ModelError, match="neither a directory nor a hub id"):
        families.check("/no/such/folder")


HUB = """
import sys
from mllm_selector import families
from mllm_selector.errors import ModelError
try:
    families.check("nobody/nothing")
except ModelError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ([404], "RepoNotFound", "404 Not Found"),
        ([401], "", "401 Unauthorized"),
        ([403], "", "403 Forbidden"),
        ([403], "GatedRepo", "403 Forbidden"),
        ([503, 429, 404], "RepoNotFound", "404 Not Found"),  # the first two are worth another try
    ],
)
def test_a_refusal_of_the_hub_ends_at_once(tmp_path: Path, answers: list[int], code: str, says: str) -> None:
    asked: list[int] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(answers[min(len(asked), len(answers) - 1)])
            self.send_response(asked[-1])
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        environment = os.environ | hub | {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert asked == answers
    told = done.stderr.splitlines()[-1]
    assert told.startswith("nobody/nothing is neither a directory nor a hub id whose config.json can be ")
    assert says in told
    assert told.endswith(
        "check the name; a private or gated model needs access and a login, such as HF_TOKEN"
    )


def test_a_hub_out_of_reach_is_told_apart() -> None:
    with pytest.raises(ModelError, match="the hub could not be asked, so check the connection"):
        families.check("nobody/nothing")  # HF_HUB_OFFLINE is set


def test_own_families_can_be_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))

    @families.register
    class Mine(LlavaFamily):
        model_types = ("mine",)

    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert {"llava", "mine"} < set(families.known_model_types())
    assert families.check(tmp_path) is LlavaFamily


# Images


def png(size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(0, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_images_are_opened_as_upright_rgb(tmp_path: Path) -> None:
    shown = picture(0, (6, 4))
    assert np.array_equal(np.asarray(images.load_image(png())), np.asarray(shown))
    exif = Image.Exif()
    exif[0x0112] = 6
    shown.save(tmp_path / "turned.png", exif=exif)
    assert images.load_image(tmp_path / "turned.png").size == (4, 6)
    shown.convert("P").save(tmp_path / "palette.png")
    assert images.load_image(tmp_path / "palette.png").mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
def test_sizes_from_headers_are_those_of_the_pictures(kind: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture(0, (60, 40)).save(buffer, kind, exif=exif)
    content = buffer.getvalue()
    assert images.image_size(content) == images.load_image(content).size


def test_sizes_are_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(png((64, 60))[:-900])
    assert images.image_size(path) == (64, 60)
    with pytest.raises(SampleError, match=f"^image-unreadable: {tmp_path}/none.png: No such file"):
        images.image_size(tmp_path / "none.png")
    with pytest.raises(SampleError, match=r"^image-unreadable: thin: 1 x 300 pixels are narrower"):
        images.image_size(png((1, 300)), "thin")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "cannot identify"),
        (b"<svg/>", "cannot identify"),
        (png((64, 64))[:-900], "truncated"),
        (png((1, 300)), "narrower than 1:200"),
    ],
)
def test_unreadable_images_say_why(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SampleError, match=f"^image-unreadable: {path}: .*{why}"):
        images.load_image(path)


def test_decompression_bombs_are_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(SampleError, match=r"^image-unreadable: .* bytes: 6 x 4 pixels are more than 23"):
        images.load_image(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(SampleError, match="decompression bomb"):
        images.load_image(png())

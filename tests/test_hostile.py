"""Hostile input through the real command line, and what scoring does with what ingest cannot know."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from mllm_selector.config import ScoreOptions
from mllm_selector.engine import SCORER, VISION, OnnxEngine
from mllm_selector.errors import ModelError, SampleError, ScoreError
from mllm_selector.families.images import load_image
from mllm_selector.families.loading import load_config, load_processor
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import score
from model_fixtures import done, export_once, picture
from test_image_check import png_header

DEEP = 1_000_000
GOOD = 30


def line(name: str, question: str = "hi", answer: str = "yes", **more: Any) -> str:
    """A LLaVA record on a line."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"id": name, "conversations": turns, **more})


def with_raw(name: str, raw: str) -> str:
    """A record with a field that is not made by a JSON library."""
    return line(name)[:-1] + f', "extra": {raw}}}'


def animation() -> bytes:
    """Two frames that say that they are 30,000 x 20,000 pixels."""
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    small, large = struct.pack("<HH", 30, 20), struct.pack("<HH", 30_000, 20_000)
    return buffer.getvalue().replace(small, large)


def jpeg_bomb() -> bytes:
    """A picture that says that it is 65,535 x 65,535 pixels."""
    buffer = io.BytesIO()
    picture(0, (30, 40)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff" * 4
    return bytes(content)


def webp_bomb(*, animated: bool) -> bytes:
    """A picture or two frames on a canvas of 65,536 x 65,536 pixels."""
    buffer = io.BytesIO()
    frames = [Image.new("RGBA", (30, 20), colour) for colour in ("#ff000080", "#0000ff80")]
    more = {"save_all": True, "append_images": frames[1:]} if animated else {"exif": b"Exif\0\0" + bytes(9)}
    frames[0].save(buffer, "WEBP", **more)
    content = bytearray(buffer.getvalue())
    assert content[12:16] == b"VP8X"
    content[24:30] = b"\xff\xff\0" * 2
    return bytes(content)


def many_frames() -> bytes:
    """An animation of which only the first of 3,000 frames counts."""
    buffer = io.BytesIO()
    frames = [Image.new("L", (100, 100), index % 256) for index in range(3_000)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of all bad kinds, and a text outside that links lead to."""
    folder = tmp_path_factory.mktemp("hostile")
    images = folder / "images"
    images.mkdir()
    (folder / "secret.png").write_bytes(b"secret")
    picture(0, (30, 40)).save(images / "good.png")
    good = (images / "good.png").read_bytes()
    (images / "new\nline.png").write_bytes(good)
    (images / "cut.png").write_bytes(good[:-100])
    (images / "bomb.png").write_bytes(png_header(100_000, 100_000))
    (images / "bomb.gif").write_bytes(animation())
    (images / "bomb.jpg").write_bytes(jpeg_bomb())
    (images / "bomb.webp").write_bytes(webp_bomb(animated=False))
    (images / "moving.webp").write_bytes(webp_bomb(animated=True))
    (images / "long.gif").write_bytes(many_frames())
    picture(0, (100_000, 1)).save(images / "narrow.png")
    picture(0, (30, 40)).save(images / "really-jpeg.png", "JPEG")
    (images / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    os.mkfifo(images / "fifo.png")
    (images / "device.png").symlink_to("/dev/zero")
    (images / "link.png").symlink_to("../secret.png")
    return folder


CASES = {
    "deep array": (with_raw("deep array", "[" * DEEP + "]" * DEEP), "invalid-json"),
    "deep object": (with_raw("deep object", '{"a":' * DEEP + "1" + "}" * DEEP), "invalid-json"),
    "deep and open": ('{"id": "deep and open", "conversations": ' + "[" * DEEP, "invalid-json"),
    "long number": (with_raw("long number", "9" * DEEP), None),
    "long exponent": (with_raw("long exponent", "1e" + "9" * DEEP), None),
    "long text": (line("long text", "a" * 100_000_000), "too-large"),
    "newline": (line("newline", "<image>?", image="new\nline.png"), None),
    "wrong extension": (line("wrong extension", "<image>?", image="really-jpeg.png"), None),
    "narrow": (line("narrow", "<image>?", image="narrow.png"), None),
    "cut": (line("cut", "<image>?", image="cut.png"), "image-cut-off"),
    "bomb": (line("bomb", "<image>?", image="bomb.png"), "image-too-large"),
    "animated bomb": (line("animated bomb", "<image>?", image="bomb.gif"), "image-too-large"),
    "jpeg bomb": (line("jpeg bomb", "<image>?", image="bomb.jpg"), "image-too-large"),
    "webp bomb": (line("webp bomb", "<image>?", image="bomb.webp"), "image-too-large"),
    "animated webp": (line("animated webp", "<image>?", image="moving.webp"), "image-too-large"),
    "many frames": (line("many frames", "<image>?", image="long.gif"), None),
    "svg": (line("svg", "<image>?", image="drawing.svg"), "image-unknown"),
    "fifo": (line("fifo", "<image>?", image="fifo.png"), "image-missing"),
    "device": (line("device", "<image>?", image="device.png"), "image-outside"),
    "link": (line("link", "<image>?", image="link.png"), "image-outside"),
    "up": (line("up", "<image>?", image="../secret.png"), "image-outside"),
    "absolute": (line("absolute", "<image>?", image="/etc/hostname"), "image-outside"),
    "nul": (line("nul", "<image>?", image="a\0b.png"), "image-missing"),
}


def test_a_pool_of_hostile_records_is_read_and_the_rest_is_scored(folder: Path, tmp_path: Path) -> None:
    texts = [line(f"good {index}", "<image>?", image="good.png") for index in range(GOOD)]
    pool, run = tmp_path / "pool.jsonl", tmp_path / "run"
    pool.write_text("\n".join([*texts, *(text for text, _ in CASES.values())]) + "\n")
    command = [sys.executable, "-m", "mllm_selector", "ingest", str(pool), "--images", str(folder / "images")]
    ended = subprocess.run(
        [*command, "--run-dir", str(run)], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    rejected = [json.loads(text) for text in (run / "rejected.jsonl").read_text().splitlines()]
    found = {list(CASES)[entry["record"] - GOOD]: entry["reason"] for entry in rejected}
    assert found == {name: reason for name, (_, reason) in CASES.items() if reason}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stages"]["ingest"]["peak_mb"] < 500, "what is too large is not to be held"

    shutil.copytree(export_once("clip-llama").graphs, run / "onnx")
    with RunDirectory(run) as held:
        held.stages |= {"seed": done(), "export": done(), "score": StageRecord("running", "key")}
        counts = score.run(held, ScoreOptions(device="cpu"), SilentProgress())
    assert counts["scored"] == GOOD + 5
    assert counts["set_aside"] == {"image-unreadable": 1}, "the narrow one"


@pytest.mark.parametrize("name", ["fifo.png", "device.png"])
def test_an_image_that_became_something_else_does_not_hold_scoring_up(folder: Path, name: str) -> None:
    with pytest.raises(SampleError, match="no regular file"):
        load_image(folder / "images" / name)


@pytest.mark.parametrize("location", ["../secret", "absolute", "link"])
def test_graphs_cannot_read_outside_of_their_folder(tmp_path: Path, location: str) -> None:
    graphs, secret = tmp_path / "onnx", tmp_path / "secret"
    graphs.mkdir()
    secret.write_bytes(bytes(16))
    (graphs / "link").symlink_to("../secret")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location="EXTERNAL")
    place = str(secret) if location == "absolute" else location
    weights.external_data.add(key="location", value=place)
    weights.external_data.add(key="length", value="16")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y")]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "adds", ends[:1], ends[1:], [weights])
    for name in (VISION, SCORER):
        (graphs / name).write_bytes(onnx.helper.make_model(graph, ir_version=10).SerializeToString())
    with pytest.raises(ScoreError, match=r"cannot be loaded .*(escapes model directory|[Aa]bsolute path)"):
        OnnxEngine(graphs, "cpu", 1, lambda note: None)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    model, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(export_once("clip-llama").model, model)
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    for name, kinds in {
        "config.json": {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"},
        "processor_config.json": {"AutoProcessor": "evil.Evil"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.Evil", None]},
    }.items():
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | {"auto_map": kinds}))
    load_config(model)
    load_processor(model)
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"model_type": "evil"}))
    with pytest.raises(ModelError, match=r"trust_remote_code|does not recognize"):
        load_config(model)
    assert not marker.exists()

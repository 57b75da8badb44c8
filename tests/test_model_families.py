"""Every model family: ONNX graphs against the unmodified model, and the whole method with four of them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mllm_selector
from family_fixtures import BUILDERS, TORCH_ONLY
from family_parity import TALKS, Talk, differences, expected, open_picture, size_of, talk
from mllm_selector import families
from mllm_selector.config import ExportOptions
from mllm_selector.engine import OnnxEngine
from mllm_selector.errors import SampleError, UsageError
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.opening import graph_folder, open_torch
from mllm_selector.stages import export
from model_fixtures import done, picture

WHOLE_METHOD = ("llava_onevision", "qwen2_5_vl", "smolvlm", "gemma3")
WHOLE_METHOD_BY_TORCH = ("qwen3_vl_moe", "qwen3_5")
HALF = ("llava_next", "qwen3_vl", "paligemma2", "gemma3")
SEES_LATER_TOKENS = ("paligemma", "paligemma2", "gemma3")
TOLERANCE = {"float32": 1e-5, "float16": 1e-2}
"""Largest difference of a mean loss, in nats."""

_FOLDER = tempfile.TemporaryDirectory(prefix="mllm-selector-families-")


@functools.cache
def model_folder(name: str) -> Path:
    return (BUILDERS | TORCH_ONLY)[name](Path(_FOLDER.name) / name / "model")


@functools.cache
def whole_run(name: str) -> Path:
    """The run directory of the whole method on a small pool: the seed model is trained, not the one built."""
    folder = Path(_FOLDER.name) / name
    (folder / "images").mkdir(parents=True)
    records = []
    for index in range(12):
        each = talk(index, *range(index % 3))
        for image in each.images:
            open_picture(image).save(folder / "images" / f"{image[0]}.png")
        speakers = {"user": "human", "assistant": "gpt"}
        records.append(
            {
                "id": str(index),
                "image": [f"{image[0]}.png" for image in each.images],
                "conversations": [{"from": speakers[role], "value": text} for role, text in each.messages],
            }
        )
    (folder / "pool.json").write_text(json.dumps(records))
    mllm_selector.select(
        folder / "pool.json",
        images=folder / "images",
        model=model_folder(name),
        budget=5,
        run_dir=folder / "run",
        seed_size=8,
        seed_batch_size=4,
        seed_micro_batch=2,
        groups="random",
        precision="float16" if name in HALF else "float32",
        engine="torch" if name in TORCH_ONLY else "onnx",
    )
    return folder / "run"


@functools.cache
def exported(name: str) -> tuple[Path, Path]:
    """Return a model directory and its `onnx` folder; one in half precision holds float32 graphs too."""
    if name in WHOLE_METHOD:
        return whole_run(name) / "seed" / "model", whole_run(name) / "onnx"
    precision = "float16" if name in HALF else "float32"
    with RunDirectory(Path(_FOLDER.name) / name / "run") as run:
        run.stages["seed"] = done(counts={"model": str(model_folder(name))})
        export.run(run, ExportOptions(precision=precision), SilentProgress())
    return model_folder(name), run.onnx


def compare(name: str, precision: str) -> None:
    _, graphs = exported(name)
    chosen = graph_folder(graphs, "float16" if name in HALF else "float32", precision)
    engine = OnnxEngine(chosen, "cpu", threads=1)
    loss, embedding = differences(families.load(graphs / "processor"), engine, reference(name))
    assert loss <= TOLERANCE[precision]
    assert embedding <= TOLERANCE[precision]


@functools.cache
def reference(name: str) -> Any:
    return expected(exported(name)[0])


@pytest.mark.parametrize("name", BUILDERS)
def test_graphs_equal_the_unmodified_forward(name: str) -> None:
    """In batches of one and of several, with no, one, two and three images of different sizes, some shared.

    Each sample has one reference, so its scores do not depend on the batch either.
    """
    compare(name, "float32")


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_share_what_they_begin_with_where_no_token_sees_later_ones(name: str) -> None:
    assert families.load(model_folder(name)).shares_prefixes is (name not in SEES_LATER_TOKENS)


@pytest.mark.parametrize(
    ("name", "shares"), [("qwen3_vl_moe", True), ("internvl_moe", True), ("qwen3_5", False)]
)
def test_linear_attention_shares_nothing_and_experts_change_nothing(name: str, shares: bool) -> None:
    assert families.load(model_folder(name)).shares_prefixes is shares


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", TORCH_ONLY)
def test_models_without_graphs_equal_the_unmodified_forward(name: str, precision: str) -> None:
    folder = model_folder(name)
    family = families.load(folder)
    engine = open_torch(family, folder, precision, "cpu", 1)
    loss, embedding = differences(family, engine, expected(folder))
    assert loss <= TOLERANCE[precision]
    assert embedding <= TOLERANCE[precision]
    assert precision == "float32" or loss > 1e-6, "half precision that computes in float32 would show nothing"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("qwen3_5", r"in steps \(linear_attention\)"),
        ("internvl_moe", "has experts"),
        ("qwen3_vl_moe", "has experts"),
    ],
)
def test_models_without_graphs_are_refused_before_anything_is_done(
    name: str, why: str, tmp_path: Path
) -> None:
    folder = model_folder(name)
    (tmp_path / "pool.json").write_text("[]")
    with pytest.raises(
        UsageError, match=f"cannot become graphs, since its text model .*{why}.*; use --engine torch"
    ):
        mllm_selector.select(tmp_path / "pool.json", model=folder, budget=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "pool.arrow").exists()
    with RunDirectory(tmp_path / "run") as run:
        run.stages["seed"] = done(counts={"model": str(folder)})
        with pytest.raises(UsageError, match="use --engine torch"):
            export.run(run, ExportOptions(), SilentProgress())
        assert not run.onnx.exists()


@pytest.mark.parametrize("name", HALF)
def test_graphs_in_half_precision(name: str) -> None:
    compare(name, "float16")


@pytest.mark.parametrize("name", [*BUILDERS, *TORCH_ONLY])
def test_scoring_reads_what_training_reads(name: str) -> None:
    family = families.load(model_folder(name))
    for each in TALKS:
        encoded = family.encode(each, size_of)
        own = family.training_inputs(each, open_picture)
        assert encoded.ids.tolist() == own["input_ids"].tolist()
        assert np.where(encoded.is_answer, encoded.ids, -100).tolist() == own["labels"].tolist()
        assert encoded.is_image.sum() == sum(encoded.image_tokens)
        assert len(encoded.image_tokens) == len(each.images)


@pytest.mark.parametrize("name", [*WHOLE_METHOD, *WHOLE_METHOD_BY_TORCH])
def test_the_whole_method(name: str) -> None:
    selection = mllm_selector.Selection.load(whole_run(name))
    assert len(selection.rows) == 5
    assert np.isfinite(selection.necessity).all()
    counts = json.loads((whole_run(name) / "manifest.json").read_text())["stages"]
    assert counts["seed"]["counts"]["seed_samples"] == 8
    assert counts["score"]["counts"]["scored"] == 12


def test_paligemma_writes_what_its_processor_writes() -> None:
    """The processor's own way to train: a question with all its images first, and a suffix."""
    family = families.load(model_folder("paligemma"))
    sample = Talk((("user", "<image><image>how many boxes ?"), ("assistant", "two red")), ((1, 0), (2, 1)))
    pictures = [open_picture(image) for image in sample.images]
    own = family.processor(
        text=["<image><image>how many boxes ?"], images=[pictures], suffix=["two red"], return_tensors="pt"
    )
    inputs = family.training_inputs(sample, open_picture)
    assert set(inputs) == set(own)
    for key in ("input_ids", "labels", "token_type_ids", "attention_mask"):
        assert inputs[key].tolist() == own[key][0].tolist(), key
    assert torch.equal(inputs["pixel_values"], own["pixel_values"])


def test_feature_tokens_written_by_a_user_are_set_aside() -> None:
    family = families.load(model_folder("gemma3"))
    sample = Talk((("user", "<image>what is <image_soft_token>?"), ("assistant", "a token")), ((1, 0),))
    with pytest.raises(SampleError, match="image-marks: the text itself holds '<image_soft_token>'"):
        family.encode(sample, size_of)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_vl", "smolvlm", "internvl"])
def test_headers_that_lie_about_the_size_are_found_out(name: str) -> None:
    family = families.load(model_folder(name))
    rows = family.encode(talk(1, 3), size_of).image_tokens[0]
    with pytest.raises(SampleError, match="image-unreadable: its header promises another size"):
        family.prepare(picture(0, (20, 20)), rows)


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
for name in ("torch", "torchvision", "num2words", "onnx", "onnxscript", "peft", "accelerate"):
    sys.modules[name] = None
import numpy as np
from PIL import Image
from mllm_selector import families

class Talk:
    messages = (("user", "<image>how many ?"), ("assistant", "two"))
    images = (b"",)

found = {}
for name, folder in json.loads(sys.argv[1]).items():
    family = families.load(Path(folder))
    encoded = family.encode(Talk, lambda image: (200, 60))
    prepared = family.prepare(Image.new("RGB", (200, 60), "red"), encoded.image_tokens[0])
    inputs = family.vision_inputs([prepared]) | family.scorer_inputs([encoded])
    found[name] = {key: float(np.float64(value).sum()) for key, value in inputs.items()}
print(json.dumps(found))
"""


def test_scoring_needs_neither_torch_nor_torchvision(tmp_path: Path) -> None:
    for name in BUILDERS:
        families.load(model_folder(name)).save(tmp_path / name)
    folders = {name: str(tmp_path / name) for name in BUILDERS}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(folders)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, sums in json.loads(done.stdout.splitlines()[-1]).items():
        family = families.load(Path(folders[name]))
        asked = Talk((("user", "<image>how many ?"), ("assistant", "two")), (b"",))
        encoded = family.encode(asked, lambda _: (200, 60))
        shown = picture(0, (200, 60))
        shown.paste("red", (0, 0, 200, 60))
        inputs = family.vision_inputs([family.prepare(shown, encoded.image_tokens[0])])
        inputs |= family.scorer_inputs([encoded])
        assert sums == pytest.approx({key: float(np.float64(value).sum()) for key, value in inputs.items()})

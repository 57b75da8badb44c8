"""The ONNX Runtime engine: which device it really runs on, and what is said if it is not the right one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from mllm_selector import doctor, engine, families
from mllm_selector.engine import LOSS_OUTPUTS, LOSSES, SCORER, SCORER_OUTPUTS, OnnxEngine
from mllm_selector.errors import MissingPackageError, ScoreError
from model_fixtures import export_once

CPU = "CPUExecutionProvider"


@pytest.fixture
def graphs() -> Path:
    return export_once("clip-llama").graphs


@pytest.fixture
def cuda_without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of onnxruntime-gpu without a driver: CUDA is listed as available, and the session has none."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, providers: real(*given, providers=[CPU])
    )


def test_cuda_that_is_not_built_in_is_an_error(graphs: Path) -> None:
    with pytest.raises(ScoreError, match=r"has no CUDA provider; .*pip install 'mllm-selector\[gpu\]'"):
        OnnxEngine(graphs, "cuda")


@pytest.mark.usefixtures("cuda_without_driver")
def test_a_silent_fall_back_to_the_cpu_is_found(graphs: Path) -> None:
    with pytest.raises(ScoreError, match="CUDA provider is installed but does not start"):
        OnnxEngine(graphs, "cuda")
    assert engine.working_providers() == [CPU]
    notes: list[str] = []
    assert OnnxEngine(graphs, "auto", note=notes.append).provider == CPU
    assert notes == ["scoring on the CPU: ONNX Runtime finds no CUDA device that works"]


def test_the_cpu_asked_for_needs_no_note(graphs: Path) -> None:
    notes: list[str] = []
    assert OnnxEngine(graphs, "cpu", note=notes.append).provider == CPU
    assert notes == []
    assert engine.working_providers()[-1] == CPU


def test_both_packages_are_a_conflict(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.onnxruntime_conflict() is None
    monkeypatch.setattr(engine, "version", lambda name: "1.0")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(engine.onnxruntime_conflict())
    with pytest.raises(ScoreError, match="both installed"):
        OnnxEngine(graphs)


def test_onnx_runtime_does_not_report_to_its_maker(tmp_path: Path) -> None:
    """Where it reports, it makes an identifier of this machine as soon as it is loaded."""
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "XDG_CACHE_HOME"}}
    code = "from mllm_selector import engine; print(engine.working_providers())"
    kept |= {"HOME": str(tmp_path)}
    kept.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert "CPUExecutionProvider" in done.stdout
    assert list(tmp_path.rglob("*")) == []


def test_doctor_names_both_packages_and_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "version", lambda name: "1.0")
    text, healthy = doctor.examine()
    assert not healthy
    assert "overwrite each other; mend it with 'pip uninstall -y onnxruntime onnxruntime-gpu'" in text


def test_a_missing_package_is_named(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mllm-selector\[cpu\]'"):
        OnnxEngine(graphs)


def test_broken_graphs_are_named(graphs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(graphs, tmp_path / "onnx")
    (folder / "scorer.onnx.data").unlink()
    with pytest.raises(ScoreError, match=r"scorer.onnx cannot be loaded .*run 'mllm-selector export'"):
        OnnxEngine(folder)


def test_features_lie_where_they_are_told_to(graphs: Path) -> None:
    """The scorer reads a feature row by its number: moved features give the same scores, others do not."""
    device = OnnxEngine(graphs, "cpu", threads=1)
    device.reserve(100)
    draw = np.random.default_rng(0)
    pixels = {"pixel_values": draw.integers(0, 256, size=(1, 3, 32, 32), dtype=np.uint8)}
    device.see(pixels, 7, 16)
    device.see({"pixel_values": 255 - pixels["pixel_values"]}, 23, 16)
    device.see(pixels, 60, 16)
    scores = [device.read(inputs(first), SCORER_OUTPUTS) for first in (7, 23, 60)]
    assert scores[0]["token_nll"] == scores[2]["token_nll"]
    assert np.array_equal(scores[0]["sample_embedding"], scores[2]["sample_embedding"])
    assert scores[0]["token_nll"] != scores[1]["token_nll"]


def test_graphs_that_take_other_pictures_are_told_apart(graphs: Path) -> None:
    """As where transformers or this package was updated between the export and scoring."""
    family = families.load(graphs / "processor")
    device = OnnxEngine(graphs, "cpu", threads=1)
    shown = Image.new("RGB", (40, 30))
    device.check_pictures(family.vision_inputs([family.prepare(shown)]))
    numbers = family.with_numbers()
    with pytest.raises(ScoreError, match=r"vision.onnx was exported by another version of .* --run-dir"):
        device.check_pictures(numbers.vision_inputs([numbers.prepare(shown)]))
    with pytest.raises(ScoreError, match=r"vision.onnx was exported by another version"):
        device.check_pictures({"pixels": np.zeros((1, 3, 32, 32), np.uint8)})


def test_outputs_that_are_left_out_change_no_other(graphs: Path) -> None:
    device = OnnxEngine(graphs, "cpu", threads=1)
    device.reserve(100)
    device.see({"pixel_values": np.ones((1, 3, 32, 32), dtype=np.uint8)}, 7, 16)
    everything = device.read(inputs(7), SCORER_OUTPUTS)
    assert list(everything) == list(SCORER_OUTPUTS)
    for name in SCORER_OUTPUTS:
        alone = device.read(inputs(7), [name])
        assert list(alone) == [name]
        assert np.array_equal(alone[name], everything[name])


def test_the_graph_of_losses_gives_the_same_bits(graphs: Path) -> None:
    features = {"pixel_values": np.ones((1, 3, 32, 32), dtype=np.uint8)}
    whole, losses = (
        OnnxEngine(graphs, "cpu", threads=1, outputs=each) for each in (SCORER_OUTPUTS, LOSS_OUTPUTS)
    )
    for device in (whole, losses):
        device.reserve(100)
        device.see(features, 7, 16)
    expected, found = (device.read(inputs(7), LOSS_OUTPUTS) for device in (whole, losses))
    assert all(np.array_equal(expected[name], found[name]) for name in LOSS_OUTPUTS)
    kinds = [{node.op_type for node in onnx.load(graphs / name).graph.node} for name in (SCORER, LOSSES)]
    assert kinds[0] - kinds[1] >= {"ArgMax", "Exp"}, "what is not wanted is not computed"


def inputs(first: int) -> dict[str, Any]:
    """A sample of 16 image tokens and three others, of which the last is the answer."""
    return {
        "input_ids": np.array([[1, *[3] * 16, 20, 30]]),
        "attention_mask": np.ones((1, 19), dtype=np.int64),
        "image_rows": np.array([[-1, *range(first, first + 16), -1, -1]]),
        "pooled_positions": np.ones((1, 1, 19), dtype=np.int64),
        "position_ids": np.arange(19)[None],
        "branches": np.zeros((1, 19), dtype=np.int64),
        "answer_positions": np.array([17]),
        "answer_tokens": np.array([30]),
    }

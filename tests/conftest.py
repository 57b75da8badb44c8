"""Shared fixtures: a tiny model directory and a tiny pool, made by code, without a network."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# Before anything imports torch or a Hugging Face library; child processes take it over. One thread: the
# models are too small to share out, and threads that wait for each other spin.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mllm-selector-cache-")  # batch sizes found by tests
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the command line does

from mllm_selector import cli
from mllm_selector.demo.model import ModelSize, make_model
from mllm_selector.demo.scenes import Scene, draw_scene
from report_fixtures import write_real_run

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")


def pytest_unconfigure() -> None:
    """Remove the cache of this process."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


TINY = ModelSize(hidden=32, vision_layers=2, text_layers=2, image_side=32, patch_side=8, vocabulary=400)


@dataclass(frozen=True)
class TinyPool:
    """A LLaVA pool on the disk.

    Attributes
    ----------
    path : Path
        The JSON file.
    images : Path
        The folder that its image paths are relative to.
    records : list of dict
        What the file holds.
    """

    path: Path
    images: Path
    records: list[dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-type model directory with random weights, 16 tokens an image."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    random = np.random.Generator(np.random.Philox(0))
    make_model(directory, _texts(draw_scene(random) for _ in range(50)), size=TINY)
    return directory


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> TinyPool:
    """60 samples of three sources: captions, two-turn ones, and those with two images or none."""
    folder = tmp_path_factory.mktemp("pool")
    images = folder / "images"
    images.mkdir()
    random = np.random.Generator(np.random.Philox(1))
    records = [_record(index, draw_scene(random), draw_scene(random), images, random) for index in range(60)]
    path = folder / "pool.json"
    path.write_text(json.dumps(records, indent=1))
    return TinyPool(path, images, records)


@pytest.fixture(scope="session")
def tiny_select(tiny_pool: TinyPool, tiny_model: Path) -> list[str]:
    """Arguments of a run without training or graphs."""
    return [
        str(tiny_pool.path),
        *("--images", str(tiny_pool.images), "--seed-model", str(tiny_model), "--engine", "torch"),
        *("--device", "cpu", "--threads", "1", "--budget", "20%"),
    ]


@pytest.fixture(scope="session")
def tiny_run(tiny_select: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of `tiny_select`: 12 of 60 samples."""
    folder = tmp_path_factory.mktemp("tiny-run") / "run"
    assert cli.main(["select", *tiny_select, "--run-dir", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
def report_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory over real statements with made-up scores, ready for its report."""
    return write_real_run(tmp_path_factory.mktemp("report"))


def _texts(scenes: Any) -> list[str]:
    random = np.random.Generator(np.random.Philox(2))
    return [text for scene in scenes for turn in scene.turns(random) for text in turn]


def _record(
    index: int, scene: Scene, other: Scene, images: Path, random: np.random.Generator
) -> dict[str, Any]:
    kind = ("captions", "dialogues", "pairs", "pairs")[index % 4]
    shown = {"captions": [scene], "dialogues": [scene], "pairs": [scene, other] if index % 4 == 2 else []}[
        kind
    ]
    names = [f"{kind}-{index}-{place}.png" for place in range(len(shown))]
    for name, each in zip(names, shown, strict=True):
        each.picture().save(images / name)
    turns = scene.turns(random)[: 2 if kind == "dialogues" else 1]
    if kind == "pairs":
        turns = [("What is in the first picture?", scene.caption())] if shown else [("Say a colour.", "Blue")]
    marks = "<image>\n" * len(shown)
    conversations = [
        {"from": speaker, "value": (marks if (place, speaker) == (0, "human") else "") + text}
        for place, turn in enumerate(turns)
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    record: dict[str, Any] = {"id": f"{kind}-{index}", "source": kind, "conversations": conversations}
    if names:
        record["image"] = names[0] if len(names) == 1 else names
    return record

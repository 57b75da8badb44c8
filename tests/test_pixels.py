"""Pixel values are those of the model's own image processor, bit for bit, however they are found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image
from transformers import AutoImageProcessor

from family_fixtures import BUILDERS
from mllm_selector.families.parts import load_parts
from mllm_selector.families.pixels import use_tables
from model_fixtures import picture

SIZES = [(30, 100), (640, 480), (333, 500), (64, 64), (1, 7)]


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[request.param](tmp_path_factory.mktemp("model") / request.param)


def test_every_family_reads_the_pixels_of_its_models_own_processor(folder: Path) -> None:
    plain = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tabled = load_parts(folder).image_processor
    assert isinstance(tabled, type(plain))
    assert type(tabled) is not type(plain), "Pillow resizes"
    assert tabled.normalize != plain.normalize, "no table is in use"
    for seed, size in enumerate(SIZES[:4]):
        shown = [[picture(seed, size)]]
        own, ours = (each(shown, return_tensors="np") for each in (plain, tabled))
        assert own.keys() == ours.keys()
        for name in own:
            assert np.asarray(own[name]).dtype == np.asarray(ours[name]).dtype, name
            assert np.array_equal(own[name], ours[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_resize": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1e-3, 1.0, 7.0]},
    ],
)
def test_any_settings(changes: dict[str, Any]) -> None:
    plain, tabled = (hf.CLIPImageProcessorPil(**changes) for _ in range(2))
    use_tables(tabled)
    for seed, size in enumerate(SIZES):
        own, ours = (
            each(picture(seed, size), return_tensors="np")["pixel_values"] for each in (plain, tabled)
        )
        assert own.dtype == ours.dtype
        assert np.array_equal(own, ours)


def test_pixels_that_are_no_bytes_are_computed() -> None:
    plain, tabled = (hf.CLIPImageProcessorPil(do_resize=False, do_center_crop=False) for _ in range(2))
    use_tables(tabled)
    floats = np.random.default_rng(0).uniform(0, 255, (3, 20, 30)).astype(np.float32)
    own, ours = (each(floats, return_tensors="np")["pixel_values"] for each in (plain, tabled))
    assert np.array_equal(own, ours)


def test_other_processors_are_left_alone() -> None:
    class Other:
        backend = "torchvision"
        do_rescale = do_normalize = True
        rescale_factor = 1 / 255

        def rescale(self) -> None:
            """Not to be replaced."""

        normalize = rescale

    other = Other()
    use_tables(other)
    assert not vars(other)


def test_threads_share_a_table() -> None:
    tabled = hf.CLIPImageProcessorPil()
    use_tables(tabled)
    pictures = [Image.fromarray(np.full((30, 30, 3), value, dtype=np.uint8)) for value in range(0, 256, 5)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda each: tabled(each, return_tensors="np")["pixel_values"], pictures))
    plain = hf.CLIPImageProcessorPil()
    for each, pixels in zip(pictures, found, strict=True):
        assert np.array_equal(plain(each, return_tensors="np")["pixel_values"], pixels)

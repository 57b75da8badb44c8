"""Pictures resized by the core are those of Pillow, byte for byte."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import transformers as hf
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mllm_selector import _internal
from mllm_selector.errors import UsageError
from mllm_selector.families import resizing
from mllm_selector.families.resizing import resized, use_core
from model_fixtures import picture

FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
SIZE = st.tuples(st.integers(1, 200), st.integers(1, 200))


def pixels_of(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Random pixels; where the seed is odd, of black and white, whose sums go beyond a byte."""
    pixels = np.asarray(picture(seed, size))
    return np.where(pixels < 128, 0, 255).astype(np.uint8) if seed % 2 else pixels


@given(seed=st.integers(0, 1000), size=SIZE, target=SIZE, resample=st.sampled_from(FILTERS))
@example(seed=1, size=(1, 1), target=(200, 200), resample=Image.Resampling.BICUBIC)
@example(seed=1, size=(200, 1), target=(1, 200), resample=Image.Resampling.LANCZOS)
@example(seed=1, size=(60, 200), target=(50, 90), resample=Image.Resampling.BICUBIC)
@example(seed=1, size=(60, 200), target=(90, 90), resample=Image.Resampling.BILINEAR)
@example(seed=1, size=(64, 48), target=(64, 48), resample=Image.Resampling.BICUBIC)
def test_any_size_is_pillows(
    seed: int, size: tuple[int, int], target: tuple[int, int], resample: Image.Resampling
) -> None:
    pixels = pixels_of(seed, size)
    pillows = np.asarray(Image.fromarray(pixels).resize(target, resample))
    assert np.array_equal(resized(pixels, target[1], target[0], resample), pillows)


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(("size", "target"), [((640, 480), (448, 336)), ((640, 480), (644, 476))])
def test_photographs_are_pillows(
    resample: Image.Resampling, size: tuple[int, int], target: tuple[int, int]
) -> None:
    smooth = picture(0, (40, 30)).resize(size, Image.Resampling.BICUBIC)
    found = resized(np.asarray(smooth), target[1], target[0], resample)
    assert np.array_equal(found, smooth.resize(target, resample))


def test_a_part_of_a_picture_is_resized_like_a_copy_of_it() -> None:
    pixels = np.asarray(picture(0, (90, 70)))
    part = pixels[10:50, 20:80]
    assert np.array_equal(resized(part, 33, 44, 3), resized(part.copy(), 33, 44, 3))


def test_processors_resize_by_the_core_and_the_rest_by_pillow() -> None:
    plain, ours = (hf.CLIPImageProcessorPil() for _ in range(2))
    use_core(ours)
    assert isinstance(ours, hf.CLIPImageProcessorPil)
    assert type(ours) is not type(plain)
    for size in [(30, 100), (640, 480), (333, 500), (224, 224)]:
        for changes in (
            {},
            {"resample": Image.Resampling.LANCZOS},
            {"resample": Image.Resampling.BOX},
            {"size": {"height": 240, "width": 250}},
            {"size": {"shortest_edge": 230, "longest_edge": 300}},
        ):
            assert_same(plain, ours, picture(0, size), **changes)
    grey = np.random.default_rng(0).integers(0, 256, (1, 300, 250), dtype=np.uint8)
    assert_same(plain, ours, grey, do_normalize=False, do_convert_rgb=False)
    floats = np.random.default_rng(0).uniform(0, 1, (3, 300, 250))
    assert_same(plain, ours, floats, do_rescale=False, do_convert_rgb=False)


def assert_same(plain: Any, ours: Any, shown: Any, **changes: Any) -> None:
    own, found = (each(shown, return_tensors="np", **changes)["pixel_values"] for each in (plain, ours))
    assert own.dtype == found.dtype
    assert np.array_equal(own, found), changes


def test_processors_of_another_kind_are_left_alone() -> None:
    other = hf.CLIPImageProcessor()
    use_core(other)
    assert type(other) is hf.CLIPImageProcessor


def test_pillow_is_left_to_its_work_where_it_gives_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    of_pillow = Image.Image.resize

    def transposed(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        """Goes along the axes in the other order, as other versions may."""
        turned = image.transpose(Image.Transpose.TRANSPOSE)
        return of_pillow(turned, size[::-1], resample).transpose(Image.Transpose.TRANSPOSE)

    monkeypatch.setattr(Image.Image, "resize", transposed)
    resizing._is_pillows.cache_clear()
    processor = hf.CLIPImageProcessorPil()
    try:
        use_core(processor)
    finally:
        resizing._is_pillows.cache_clear()
    assert type(processor) is hf.CLIPImageProcessorPil


def test_threads_do_not_disturb_each_other() -> None:
    pictures = [np.asarray(picture(seed, (120, 90))) for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pixels: resized(pixels, 50, 70, 3), pictures))
    for pixels, result in zip(pictures, found, strict=True):
        assert np.array_equal(result, Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("shape", "interpolation", "said"),
    [((40, 30, 3), "box", "bilinear, bicubic or lanczos"), ((41, 30, 3), "bicubic", "along one axis")],
)
def test_the_core_says_what_it_cannot_do(shape: tuple[int, int, int], interpolation: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _internal.resample(np.zeros((40, 50, 3), np.uint8), np.empty(shape, np.uint8), interpolation)

"""Pixel values are those of the model's own image processor, bit for bit, however they are found."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor

from family_fixtures import BUILDERS
from mllm_selector import families
from mllm_selector.families.base import Family, Graph
from mllm_selector.families.graphs import from_bytes
from mllm_selector.families.loading import load_model
from mllm_selector.families.patches import patches, vision_positions
from mllm_selector.families.pixels import normalization
from model_fixtures import picture

SIZES = [(30, 100), (640, 480), (333, 500), (64, 64), (199, 1)]

_FOLDER = tempfile.TemporaryDirectory(prefix="mllm-selector-pixels-")


@functools.cache
def family_of(name: str) -> Family:
    return families.load(BUILDERS[name](Path(_FOLDER.name) / name))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in BUILDERS
        for size in SIZES
        # Pixtral's processor shrinks a line to nothing, which `test_sizes_are_those_of_mistral` is about.
        if not (name.endswith("stral3") and 1 in size)
    ],
)
def test_every_family_reads_the_pixels_of_its_models_own_processor(name: str, size: tuple[int, int]) -> None:
    family = family_of(name)
    plain = AutoImageProcessor.from_pretrained(family.folder, backend="pil")
    assert family.normalization is not None
    shown = picture(size[0], size)
    ours = family.prepare(shown)["pixel_values"]
    assert ours.dtype == np.uint8
    options = {"internvl": {"crop_to_patches": True}, "pixtral": {"patch_size": {"height": 16, "width": 16}}}
    kind = "pixtral" if name.endswith("stral3") else name
    own = plain([[shown]], return_tensors="np", **options.get(kind, {}))["pixel_values"]
    if kind == "pixtral":
        own = patches(own[0].transpose(1, 2, 0), 8, 2)
    found = family.normalization.numbers(ours)
    if name.startswith("qwen"):
        found = np.repeat(found[:, :, None], plain.temporal_patch_size, axis=2)
    assert np.array_equal(found.reshape(np.shape(own)), own)


@pytest.mark.parametrize("name", BUILDERS)
def test_with_numbers_the_processor_computes_them(name: str) -> None:
    family = family_of(name)
    plain = family.with_numbers()
    assert plain.normalization is None
    assert family.normalization is not None, "the family itself is as it was"
    shown = picture(0, (90, 70))
    numbers, ours = (each.prepare(shown) for each in (plain, family))
    assert numbers["pixel_values"].dtype == np.float32
    assert np.array_equal(numbers["pixel_values"], family.normalization.numbers(ours["pixel_values"]))
    assert numbers.keys() == ours.keys()
    for key in numbers.keys() - {"pixel_values"}:
        assert np.array_equal(numbers[key], ours[key]), key


def test_pictures_seen_once_beside_others() -> None:
    family = family_of("llava_onevision")
    rows = family.side**2 + 1
    plain = AutoImageProcessor.from_pretrained(family.folder, backend="pil")
    shown = picture(0, (90, 70))
    own = plain([[shown, shown]], return_tensors="np")["pixel_values"][0]
    assert np.array_equal(family.normalization.numbers(family.prepare(shown, rows)["pixel_values"]), own)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1e-3, 1.0, 7.0]},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ],
)
def test_any_settings(changes: dict[str, Any]) -> None:
    processor = hf.CLIPImageProcessorPil(**changes)
    rule = normalization(processor)
    for seed, size in enumerate(SIZES):
        shown = picture(seed, size)
        own = processor(shown, return_tensors="np")["pixel_values"]
        bytes_ = processor(shown, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
        assert bytes_.dtype == np.uint8
        assert np.array_equal(rule.numbers(bytes_), own)


def test_a_factor_that_rounds_otherwise_is_left_to_the_processor() -> None:
    factors = np.random.default_rng(0).uniform(0.001, 0.01, 50)
    found = [normalization(hf.CLIPImageProcessorPil(rescale_factor=factor)) for factor in factors.tolist()]
    assert None in found


@pytest.mark.parametrize(
    "processor",
    [
        hf.CLIPImageProcessorPil(do_rescale=False),
        hf.CLIPImageProcessorPil(do_normalize=False),
        hf.CLIPImageProcessor(),
        object(),
    ],
)
def test_other_processors_make_numbers_themselves(processor: Any) -> None:
    assert normalization(processor) is None


@pytest.mark.parametrize("name", BUILDERS)
def test_features_of_bytes_are_those_of_numbers(name: str) -> None:
    family = family_of(name)
    model = load_model(family.folder)
    shown = [picture(seed, size) for seed, size in enumerate([(90, 70), (64, 64)])]
    features = []
    for each in (family, family.with_numbers()):
        graph = each.vision_graph(model)
        inputs = each.vision_inputs([each.prepare(one) for one in shown])
        assert {key: str(value.dtype) for key, value in inputs.items()} == {
            key: str(value.dtype).removeprefix("torch.") for key, value in graph.example.items()
        }
        with torch.no_grad():
            found = graph.module.eval()(**{key: torch.from_numpy(value) for key, value in inputs.items()})
        features.append(found)
    assert torch.equal(*features)


class Seen(nn.Module):
    """Gives the numbers that it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, pixel_values: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return (pixel_values + more).to(self.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (4, 2, 3, 5, 5)])
def test_graphs_make_the_numbers_of_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rule = normalization(hf.CLIPImageProcessorPil())
    example = {"pixel_values": torch.zeros(shape), "more": torch.zeros(1)}
    axes = {"pixel_values": {0: "pictures"}}
    graph = Graph(Seen(dtype), example, axes, ("features",))
    ours = from_bytes(graph, rule)
    assert ours.axes == axes
    assert ours.outputs == ("features",)
    assert ours.example["pixel_values"].dtype == torch.uint8
    assert example["pixel_values"].dtype == torch.float32
    bytes_ = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = ours.module(pixel_values=torch.from_numpy(bytes_), more=torch.zeros(1))
    assert torch.equal(found, torch.from_numpy(rule.numbers(bytes_)).to(dtype))
    assert from_bytes(graph, None) is graph


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), side=st.integers(1, 6), merge=st.integers(1, 3))
def test_patches_are_cut_where_their_positions_say(rows: int, columns: int, side: int, merge: int) -> None:
    grid = rows * merge, columns * merge
    pixels = np.random.default_rng(0).integers(0, 256, (grid[0] * side, grid[1] * side, 3), dtype=np.uint8)
    cut = patches(pixels, side, merge)
    for patch, (row, column) in zip(cut, vision_positions(grid, merge), strict=True):
        there = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert np.array_equal(patch.transpose(1, 2, 0), there)


def test_qwens_pictures_of_any_filter() -> None:
    """A filter that the core does not have is left to Pillow."""
    family = family_of("qwen2_vl")
    box = families.load(family.folder)
    box.parts.image_processor.resample = Image.Resampling.BOX
    shown = picture(0, (90, 70))
    plain = AutoImageProcessor.from_pretrained(family.folder, backend="pil", resample=Image.Resampling.BOX)
    own = plain(shown, return_tensors="np")["pixel_values"].reshape(-1, 3, 2, *[plain.patch_size] * 2)
    found = box.normalization.numbers(box.prepare(shown)["pixel_values"])
    assert np.array_equal(found, own[:, :, 0])
    assert not np.array_equal(found, box.normalization.numbers(family.prepare(shown)["pixel_values"]))

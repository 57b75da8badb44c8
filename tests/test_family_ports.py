"""What families compute without torch, against transformers' own code for any size of picture."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import vision_utils
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from family_fixtures import BUILDERS
from mllm_selector import families
from mllm_selector.errors import SampleError
from mllm_selector.families import anyres, patches, qwen, smolvlm
from mllm_selector.families.chat import ChatText
from mllm_selector.families.loading import load_model
from model_fixtures import picture

LENGTHS = st.integers(1, 400)
GRIDS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)

_FOLDER = tempfile.TemporaryDirectory(prefix="mllm-selector-ports-")


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    """A family and its model."""
    folder = BUILDERS[name](Path(_FOLDER.name) / name)
    return families.load(folder), load_model(folder)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@settings(max_examples=60)
@given(width=LENGTHS, height=LENGTHS)
def test_tiles_are_laid_out_as_in_llava(name: str, width: int, height: int) -> None:
    family, model = built(name)
    vision = family.config.vision_config
    layout = family.layout((width, height))
    rows, columns = anyres.grid_of((width, height), family.config.image_grid_pinpoints, vision.image_size)
    features = torch.from_numpy(
        np.random.default_rng(width).normal(size=(1 + rows * columns, family.side**2, 8)).astype(np.float32)
    )
    newline = torch.full((8,), 9.0)
    sizes = torch.tensor([[height, width]])
    if name == "llava_next":
        (packed,), _ = model.model.pack_image_features([features], sizes, "default", newline)
    else:
        ratio = family.config.vision_aspect_ratio
        (packed,), _ = model.model.pack_image_features([features], sizes, newline, ratio)
    source = torch.cat([features.reshape(-1, 8), newline[None]]).numpy()
    ours = (source[layout.taps] * layout.weights[:, :, None]).sum(1)
    assert ours.shape == packed.shape
    assert np.abs(ours - packed.numpy()).max() < 1e-5


@given(width=LENGTHS, height=LENGTHS, factor=st.integers(2, 32), smallest=st.integers(1, 10_000))
def test_sizes_are_those_of_qwen(width: int, height: int, factor: int, smallest: int) -> None:
    largest = smallest + 20_000
    assume(max(width, height) / min(width, height) <= 200)
    rows, columns = smart_resize(height, width, factor, smallest, largest)
    assert qwen.smart_size((width, height), factor, smallest, largest) == (columns, rows)


@given(width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_sizes_are_those_of_mistral(width: int, height: int) -> None:
    family, _ = built("mistral3")
    rows, columns = get_resize_output_image_size(
        np.zeros((3, height, width), dtype=np.uint8), (96, 96), (16, 16), "channels_first"
    )
    assert family.grid((width, height)) == (rows // 8, columns // 8)
    if not rows * columns:
        with pytest.raises(SampleError, match=f"{width} x {height} pixels is shrunk to nothing"):
            family.image_block((width, height))


@given(grids=GRIDS, gaps=st.lists(st.integers(1, 5), min_size=5, max_size=5))
def test_positions_in_text_are_those_of_qwen(grids: list[tuple[int, int]], gaps: list[int]) -> None:
    family, model = built("qwen2_5_vl")
    pieces = [np.zeros(gaps[0], bool)]
    for (rows, columns), gap in zip(grids, gaps[1:], strict=False):
        pieces += [np.ones(rows * columns, bool), np.zeros(gap, bool)]
    is_image = np.concatenate(pieces)
    ids = torch.where(torch.from_numpy(is_image), family.feature_token_id, 0)[None]
    grid = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    theirs, _ = model.model.get_rope_index(
        ids, (ids == family.feature_token_id).int(), image_grid_thw=grid, attention_mask=torch.ones_like(ids)
    )
    assert qwen.rope_positions(is_image, grids).tolist() == theirs[:, 0].tolist()


@given(grids=GRIDS)
def test_patches_are_where_qwen_has_them(grids: list[tuple[int, int]]) -> None:
    grid = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    sizes = [(2 * rows, 2 * columns) for rows, columns in grids]
    positions = [patches.vision_positions(each, 2) for each in sizes]
    assert np.concatenate(positions).tolist() == vision_utils.get_vision_position_ids(grid, 2).tolist()

    taps, weights = zip(
        *(qwen.position_taps(each, size, 7) for each, size in zip(positions, sizes, strict=True)),
        strict=True,
    )
    theirs, shares = vision_utils.get_vision_interpolation_indices_and_weights(
        grid, 7, align_corners=True, spatial_merge_size=2
    )
    table = np.random.default_rng(0).normal(size=(49, 3))
    ours = (table[np.concatenate(taps)] * np.concatenate(weights)[:, :, None]).sum(1)
    assert np.abs(ours - (table[theirs] * shares.numpy()[:, :, None]).sum(1)).max() < 1e-6


@given(grids=GRIDS, side=st.integers(1, 4))
def test_windows_are_those_of_qwen(grids: list[tuple[int, int]], side: int) -> None:
    grid = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    index, edges = vision_utils.get_vision_window_index(grid, 2, window_size=side * 2 * 8, patch_size=8)
    merged = np.split(index.numpy(), edges.numpy()[1:-1] // 4)
    theirs = {tuple(sorted(4 * unit + place for unit in window for place in range(4))) for window in merged}
    ours, start = [], 0
    for rows, columns in grids:
        ours += [start + window for window in qwen.windows((2 * rows, 2 * columns), 2, side)]
        start += 4 * rows * columns
    assert {tuple(sorted(window.tolist())) for window in ours} == theirs
    slots, places = patches.segments(ours)
    assert sorted(places.tolist()) == np.flatnonzero(slots.reshape(-1) >= 0).tolist()
    assert slots.reshape(-1)[places].tolist() == list(range(start))
    assert slots.shape[1] % patches.ALIGNED == 0
    assert slots.shape[1] - max(map(len, ours)) < patches.ALIGNED


@pytest.mark.parametrize("splits", [True, False])
@settings(max_examples=40)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_tiles_are_those_of_smolvlm(splits: bool, width: int, height: int) -> None:
    assume(max(width, height) / min(width, height) <= 50)
    family, _ = built("smolvlm")
    processor = family.parts.image_processor
    output = processor(
        [[picture(0, (width, height))]],
        return_tensors="np",
        return_row_col_info=True,
        do_image_splitting=splits,
    )
    found = smolvlm.tiles((width, height), 96, 32) if splits else (0, 0)
    assert found == (output["rows"][0][0], output["cols"][0][0])
    assert output["pixel_values"].shape[1] == found[0] * found[1] + 1
    assert np.asarray(output["pixel_attention_mask"]).all()


@given(pieces=st.lists(st.text(alphabet="ab ", max_size=5), min_size=1, max_size=5), data=st.data())
def test_answers_keep_their_text_when_images_are_written_out(pieces: list[str], data: st.DataObject) -> None:
    text = "<image>".join(pieces)
    texts = data.draw(
        st.lists(st.text(alphabet="XY", max_size=12), min_size=len(pieces) - 1, max_size=len(pieces) - 1)
    )
    spans = []
    at = 0
    for piece in pieces:  # a piece as a whole is an answer
        spans.append((at, at + len(piece)))
        at += len(piece) + len("<image>")
    chat = ChatText(text, tuple(spans)).with_images("<image>", texts)
    assert [chat.text[start:end] for start, end in chat.answers] == pieces
    assert len(chat.text) == sum(map(len, pieces)) + sum(map(len, texts))

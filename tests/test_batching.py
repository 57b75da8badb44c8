"""The plan of a shard: batches by length, and where image features lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mllm_selector.scoring.batching import ImageUse, length_batches, plan_features


@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_batches_hold_every_sample_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = length_batches(lengths, budget)
    order = [position for batch in batches for position in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert order == sorted(order, key=lambda position: (-lengths[position], position))
    for batch in batches:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    # No batch could have taken the next sample as well.
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_batches_of_an_empty_shard() -> None:
    assert length_batches([], 100) == []


@st.composite
def image_uses(draw: st.DrawFn) -> list[list[ImageUse]]:
    """Batches over a few images, each of a size of its own."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=25))
    keys = st.lists(st.integers(0, len(sizes) - 1), unique=True, max_size=12)
    return [[ImageUse(key, sizes[key]) for key in batch] for batch in draw(st.lists(keys, max_size=12))]


@given(batches=image_uses(), capacity=st.integers(0, 60), at_once=st.integers(1, 40))
def test_features_are_where_the_plan_says(batches: list[list[ImageUse]], capacity: int, at_once: int) -> None:
    plan = plan_features(batches, capacity, at_once)
    assert plan.rows <= max([capacity, *(sum(image.rows for image in batch) for batch in batches)])
    memory: list[object] = [None] * plan.rows
    for batch, placements, starts in zip(batches, plan.encode, plan.starts, strict=True):
        for placement in placements:
            rows = sum(image.rows for image in placement.images)
            assert rows <= at_once or len(placement.images) == 1
            # The vision graph writes the images of one run one after the other.
            row = placement.starts[0]
            for image, start in zip(placement.images, placement.starts, strict=True):
                assert start == row
                memory[row : row + image.rows] = [image.key] * image.rows
                row += image.rows
        assert len(memory) == plan.rows
        for image in batch:
            first = starts[image.key]
            assert memory[first : first + image.rows] == [image.key] * image.rows


@given(batches=image_uses())
def test_with_room_enough_each_image_is_encoded_once(batches: list[list[ImageUse]]) -> None:
    room = sum({image.key: image.rows for batch in batches for image in batch}.values())
    plan = plan_features(batches, room, 20)
    encoded = [image.key for each in plan.encode for placement in each for image in placement.images]
    assert sorted(encoded) == sorted({image.key for batch in batches for image in batch})


def test_features_are_given_up_after_their_last_use() -> None:
    batches = [[ImageUse(key, 10)] for key in range(100)]
    assert plan_features(batches, 1000, 20).rows == 10


def test_the_image_needed_latest_makes_room() -> None:
    a, b, c = (ImageUse(key, 1) for key in "abc")
    plan = plan_features([[a], [b], [c], [b], [a]], capacity=2, rows_at_once=20)
    encoded = [[image.key for placement in each for image in placement.images] for each in plan.encode]
    assert encoded == [["a"], ["b"], ["c"], [], ["a"]]

"""Samples that begin alike and are read in one sequence: which, how it is laid out, and what comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable
from mllm_selector.engine import OnnxEngine, memory_errors
from mllm_selector.errors import ScoreError
from mllm_selector.families.base import BRANCHES, Encoded
from mllm_selector.scoring import groups as groups_
from mllm_selector.scoring.batching import embedding_places, split_answers
from mllm_selector.scoring.prefixes import OWN_SHARE, PrefixGroup, alone, shared_prefixes
from model_fixtures import export_once
from score_fixtures import poison

pytest_plugins = ["score_fixtures"]

IMAGE = 3


def encoded(before: list[int], image: int, own: list[int], answers: int) -> Encoded:
    """A sample that shows an image of so many rows after some tokens; its last tokens are the answer."""
    ids = np.array([*before, *[IMAGE] * image, *own], dtype=np.int64)
    places = np.arange(len(ids))
    return Encoded(
        ids=ids,
        is_answer=places >= len(ids) - min(answers, len(own)),
        is_image=ids == IMAGE,
        image_tokens=(image,) if image else (),
        per_token={"position_ids": places, BRANCHES: np.zeros_like(places)},
    )


@st.composite
def some_samples(draw: st.DrawFn) -> tuple[list[Encoded], list[tuple[int, ...]]]:
    """Samples that often begin alike, and what identifies their images."""
    tokens = st.lists(st.integers(10, 12), min_size=1, max_size=12)
    samples, images = [], []
    for _ in range(draw(st.integers(1, 14))):
        rows = draw(st.sampled_from([0, 1, 4]))
        before = draw(st.sampled_from([[], [1], [1, 2]]))
        samples.append(encoded(before, rows, draw(tokens), draw(st.integers(1, 3))))
        images.append((draw(st.integers(0, 1)),) if rows else ())
    return samples, images


def shared_start(first: Encoded, second: Encoded) -> int:
    """Tokens up to the last image token of the first, if the second begins with them; else 0."""
    prefix = max((place + 1 for place, token in enumerate(first.ids) if token == IMAGE), default=0)
    return prefix if first.ids[:prefix].tolist() == second.ids[:prefix].tolist() else 0


@given(given=some_samples(), budget=st.integers(1, 60))
def test_groups_are_of_samples_that_begin_alike(given: Any, budget: int) -> None:
    samples, images = given
    groups = shared_prefixes(samples, images, budget)
    assert sorted(chain(*groups)) == list(range(len(samples)))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    for group in groups:
        first = group[0]
        assert group == sorted(group)
        if len(group) == 1:
            continue
        prefix = shared_start(samples[first], samples[first])
        assert prefix > 0
        for place in group[1:]:
            assert images[place] == images[first]
            assert shared_start(samples[first], samples[place]) == prefix
            # Not merely equal so far: the other's last image token is there too.
            assert shared_start(samples[place], samples[first]) == prefix
        own = sum(len(samples[place]) - prefix for place in group)
        assert own <= OWN_SHARE * prefix
        assert len(PrefixGroup(tuple(samples[place] for place in group))) == prefix + own <= budget


def test_samples_of_one_image_share_it() -> None:
    samples = [encoded([1], 30, [10 + place, 20], 1) for place in range(5)]
    assert shared_prefixes(samples, [(7,)] * 5, 1000) == [[0, 1, 2, 3, 4]]
    assert shared_prefixes(samples, [(7,), (8,)] * 2 + [(7,)], 1000) == [[0, 2, 4], [1, 3]]
    assert shared_prefixes(samples, [(7,)] * 5, 36) == [[0, 1], [2, 3], [4]]


@given(given=some_samples())
def test_every_token_sees_what_it_sees_alone(given: Any) -> None:
    """The sequence, its branches and the causal order say what a token sees; compared token by token."""
    samples, images = given
    for places in shared_prefixes(samples, images, np.inf, np.inf):
        group = PrefixGroup(tuple(samples[place] for place in places))
        joined = group.joined
        assert len(joined.ids) == len(joined.is_answer) == len(joined.is_image) == len(group)
        assert joined.image_tokens == group.samples[0].image_tokens
        branches = joined.per_token[BRANCHES]
        for index, sample in enumerate(group.samples):
            where = group.places(index, np.arange(len(sample)))
            for name in ("ids", "is_answer", "is_image"):
                assert np.array_equal(getattr(joined, name)[where], getattr(sample, name))
            assert np.array_equal(joined.per_token["position_ids"][where], np.arange(len(sample)))
            for position, place in enumerate(where):
                seen = [
                    other
                    for other in range(len(group))
                    if other <= place and branches[other] in (0, branches[place])
                ]
                assert seen == where[: position + 1].tolist()


TALKS = [
    "how many red boxes ?",
    "is there a wall",
    "blue",
    "how many squares in the box",
    "red or blue ?",
    "?",
]


def pool_of(images: int, each: int, question: int = 3) -> list[Any]:
    """Samples about a few images, in turns, so that those of one are far apart."""
    draw = np.random.default_rng(images)
    return [
        (
            [("user", f"<image>\n{' '.join(draw.choice(TALKS, question))}"), ("assistant", f"yes {turn}")],
            [f"{image}.png"],
        )
        for turn in range(each)
        for image in range(images)
    ]


@pytest.fixture
def by_itself(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call something with every sample in a sequence of its own."""

    def call(what: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(
                groups_, "shared_prefixes", lambda samples, *_: [[at] for at in range(len(samples))]
            )
            return what(*arguments, **options)

    return call


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sequences and samples of each call of the scorer, as they come."""
    export_once("clip-llama")  # whose check reads as well
    found: list[tuple[int, int]] = []
    read = OnnxEngine.read

    def counted(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        samples = int(inputs["pooled_positions"].any(-1).sum())
        found.append((len(inputs["input_ids"]), samples))
        return read(self, inputs, outputs)

    monkeypatch.setattr(OnnxEngine, "read", counted)
    return found


def embeddings(table: ScoreTable) -> Any:
    return np.concatenate(table.embeddings).astype(np.float32)


def test_scores_are_those_of_samples_read_alone(
    scored: Any, by_itself: Any, rows_read: list[tuple[int, int]]
) -> None:
    pool = pool_of(9, 7, question=1)
    options = {"metrics": "nll,entropy,accuracy,visnec,ifd", "shard_size": 63}
    counts, together = scored(pool, **options)
    sequences, readings = (sum(column) for column in zip(*rows_read, strict=True))
    assert readings == 63 * 3
    assert sequences - 63 < 63, "samples of one image were not read together"  # without images each is alone
    rows_read.clear()
    _, apart = by_itself(scored, pool, **options)
    assert [sequences for sequences, _ in rows_read] == [samples for _, samples in rows_read]
    assert counts["scored"] == 63
    assert counts["images_encoded"] == 9
    for name in ("nll", "entropy", "visnec", "ifd"):
        difference = np.abs(together.column(name) - apart.column(name)).max()
        assert difference < 1e-5, name
    assert np.array_equal(together.column("accuracy"), apart.column("accuracy"))
    assert np.abs(embeddings(together) - embeddings(apart)).max() < 1e-3  # an ulp of float16 near 1


@pytest.mark.parametrize("pooled", ["image", "text"])
def test_embeddings_of_some_positions_are_each_samples_own(scored: Any, by_itself: Any, pooled: str) -> None:
    pool = pool_of(4, 6)
    _, together = scored(pool, embedding=pooled)
    _, apart = by_itself(scored, pool, embedding=pooled)
    assert np.abs(embeddings(together) - embeddings(apart)).max() < 1e-3
    same = len(np.unique(embeddings(together)[::4].round(2), axis=0)) == 1
    assert same == (pooled == "image"), "six samples of one image, whose texts differ"


def test_a_group_that_does_not_fit_is_halved_down_to_samples(
    scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(2, 12)
    _, expected = scored(pool)
    read = OnnxEngine.read

    def small(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        with memory_errors():
            if inputs["pooled_positions"].any(-1).sum() > 1:
                raise RuntimeError("std::bad_alloc")
        return read(self, inputs, outputs)

    monkeypatch.setattr(OnnxEngine, "read", small)
    counts, table = scored(pool)
    assert counts["halved_batches"] > 0
    assert counts["scored"] == 24
    assert np.abs(table.necessity - expected.necessity).max() < 1e-5


def test_one_unreadable_image_takes_all_its_samples_and_no_others(scored: Any, images: Path) -> None:
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:60])
    pool = [*pool_of(2, 5), *(([("user", "<image>\nwhat ?"), ("assistant", "no")], ["broken.png"]),) * 4]
    counts, table = scored(pool)
    assert counts["scored"] == 10
    assert counts["set_aside"] == {"image-unreadable": 4}
    assert np.isnan(table.necessity[10:]).all()


def test_a_sample_without_a_finite_score_takes_no_other_along(scored: Any, by_itself: Any) -> None:
    """Nothing of a sample but zero times its values reaches the others, and that is not zero if infinite."""
    pool = pool_of(3, 8)
    pool[4] = ([("user", "<image>\nhow \x7f many"), ("assistant", "yes")], pool[4][1])
    counts, table = scored(pool, change=lambda graphs: poison(graphs / "losses.onnx", np.inf))
    assert counts["set_aside"] == {"not-finite": 1}
    assert np.flatnonzero(np.isnan(table.necessity)).tolist() == [4]
    assert counts["rescored"] > 1
    _, apart = by_itself(scored, pool, change=lambda graphs: poison(graphs / "losses.onnx", np.inf))
    assert np.nanmax(np.abs(table.necessity - apart.necessity)) < 1e-5


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "qwen2"}, True),
        ({"model_type": "mistral", "sliding_window": None}, True),
        ({"model_type": "mistral", "sliding_window": 4096}, False),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, False),
        ({"model_type": "gemma"}, False),
        ({"model_type": "opt"}, False),
    ],
)
def test_sharing_is_for_texts_that_see_all_before_them(
    monkeypatch: pytest.MonkeyPatch, text: dict[str, Any], shares: bool
) -> None:
    from transformers import AutoConfig

    family = families.load(export_once("clip-llama").graphs / "processor")
    made = AutoConfig.for_model(**text)
    monkeypatch.setattr(type(family.config), "get_text_config", lambda _: made)
    assert family.shares_prefixes is shares


def test_graphs_of_an_earlier_version_are_told_apart(tmp_path: Path) -> None:
    import onnx

    graphs = tmp_path / "graphs"
    shutil.copytree(export_once("clip-llama").graphs, graphs)
    model = onnx.load(graphs / "scorer.onnx", load_external_data=False)
    pooled = next(node for node in model.graph.input if node.name == "pooled_positions")
    del pooled.type.tensor_type.shape.dim[1]
    for node in model.graph.node:
        if "pooled_positions" in node.input:
            unsqueezed = onnx.helper.make_node("Unsqueeze", ["pooled_positions", "one"], ["pooled_3d"])
            node.input[list(node.input).index("pooled_positions")] = "pooled_3d"
    model.graph.node.insert(0, unsqueezed)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    onnx.save(model, graphs / "scorer.onnx")
    with pytest.raises(ScoreError, match=r"exported by another version of .* --run-dir"):
        OnnxEngine(graphs, "cpu", threads=1)


def test_outputs_are_cut_into_samples() -> None:
    samples = [encoded([1], 5, [10, 20, 30][: place + 1], 1) for place in range(3)]
    groups = [PrefixGroup(tuple(samples[:2])), *alone(samples[2:])]
    assert embedding_places(groups).tolist() == [0, 1, 2]
    assert embedding_places(groups[::-1]).tolist() == [0, 2, 3]
    assert [len(each) for each in split_answers(samples, np.zeros(3))] == [1, 1, 1]

"""What scoring does when memory or the number format does not suffice, and what it counts meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from mllm_selector import engine
from mllm_selector.engine import OnnxEngine, memory_errors
from mllm_selector.errors import DeviceMemoryError, ScoreError
from mllm_selector.families import images as images_
from mllm_selector.families.llava import LlavaFamily
from mllm_selector.scoring import groups, loading
from model_fixtures import export_once
from score_fixtures import poison

pytest_plugins = ["score_fixtures"]

WORDS = ["how", "many", "red", "blue", "boxes", "squares", "is", "there", "a", "wall", "?", "yes", "no"]


def samples(count: int, seed: int = 2) -> list[Any]:
    """Samples of all lengths with no to three images."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        images = [f"{draw.integers(9)}.png" for _ in range(draw.integers(4))]
        question = "<image>\n" * len(images) + " ".join(draw.choice(WORDS, draw.integers(1, 30)))
        answer = " ".join(draw.choice(WORDS, draw.integers(1, 9)))
        made.append(([("user", question), ("assistant", answer)], images))
    return made


def ask(text: str) -> Any:
    """A sample without images."""
    return [("user", text), ("assistant", "yes")], []


# Memory


@contextmanager
def little_memory(
    monkeypatch: pytest.MonkeyPatch, tokens: int = 10**9, pictures: int = 10**9
) -> Iterator[None]:
    """An engine that fails, as ONNX Runtime does, where more is computed together."""
    read, see = OnnxEngine.read, OnnxEngine.see

    def lack(what: int, most: int) -> None:
        with memory_errors():
            if what > most:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1073741824")

    def small_read(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        lack(inputs["input_ids"].size, tokens)
        return read(self, inputs, outputs)

    def small_see(self: OnnxEngine, inputs: Any, start: int, rows: int) -> None:
        lack(len(inputs["pixel_values"]), pictures)
        see(self, inputs, start, rows)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "read", small_read)
        patch.setattr(OnnxEngine, "see", small_see)
        yield


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Non-zero status code returned while running MatMul: bad allocation"),
        RuntimeError(
            "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9"
        ),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
    ids=lambda error: str(error)[:30],
)
def test_a_lack_of_memory_is_known_by_its_words(error: Exception) -> None:
    with pytest.raises(DeviceMemoryError), memory_errors():
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="shapes differ"), memory_errors():
        raise ValueError("shapes differ")


def test_batches_that_do_not_fit_are_halved(scored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = samples(60)
    whole, expected = scored(pool)
    with little_memory(monkeypatch, tokens=200, pictures=3):
        halved, table = scored(pool)
    assert halved["halved_batches"] > 0 == whole["halved_batches"]
    assert halved["scored"] == 60
    assert halved["images_encoded"] == whole["images_encoded"]
    assert np.abs(table.necessity - expected.necessity).max() < 1e-5


@pytest.mark.parametrize("embedding", ["all", "inputs"])
def test_lengths_are_multiples_of_what_the_device_wants(
    scored: Any, monkeypatch: pytest.MonkeyPatch, embedding: str
) -> None:
    pool = samples(60)
    options = {"token_budget": 300, "metrics": "nll,visnec", "embedding": embedding}
    whole, expected = scored(pool, **options)
    shapes = []
    read = OnnxEngine.read

    def watched(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        shapes.append(inputs["input_ids"].shape)
        return read(self, inputs, outputs)

    monkeypatch.setattr(OnnxEngine, "read", watched)
    monkeypatch.setattr(engine, "length_multiple", lambda device: 8)
    counts, table = scored(pool, **options)
    assert counts["scored"] == whole["scored"] == 60
    assert not any(length % 8 for _, length in shapes)
    assert all(rows == 1 or rows * length <= 300 for rows, length in shapes)
    for name in ("nll", "visnec"):
        # NaN, where a sample shows no image, is equal to NaN.
        np.testing.assert_allclose(table.column(name), expected.column(name), rtol=0, atol=1e-5)
    vectors = [np.concatenate(each.embeddings).astype(np.float32) for each in (table, expected)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-3  # an ulp of float16 near 1


def test_devices_and_the_lengths_that_they_want() -> None:
    assert engine.length_multiple("cpu") == 1
    assert engine.length_multiple("cuda") == 8


def test_what_does_not_fit_alone_is_set_aside(scored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = samples(40)
    _, expected = scored(pool)
    longest = [ask("many " * 60), *pool]
    with little_memory(monkeypatch, tokens=100):
        counts, table = scored([pool[0], *longest])
    reasons = table.reasons.to_pylist()
    fits = [reason is None for reason in reasons]
    assert 2 <= fits.count(False) == counts["set_aside"]["out-of-memory"] < 20
    assert reasons[1].startswith("out-of-memory: ")
    assert reasons[1].endswith(" tokens, scored alone")
    assert np.isnan(table.necessity[1])
    others = np.array([expected.necessity[0], np.nan, *expected.necessity])
    assert np.abs(table.necessity - others)[fits].max() < 1e-5


def test_an_image_that_does_not_fit_takes_only_its_samples_along(
    scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = [each if each[1] else ask("many") for each in samples(20)] + [
        ask("red " * n) for n in range(1, 25)
    ]
    with little_memory(monkeypatch, pictures=0):
        counts, table = scored(pool)
    shown = [bool(images) for _, images in pool]
    assert [reason is not None for reason in table.reasons.to_pylist()] == shown
    assert counts["images_encoded"] == 0


def test_features_that_do_not_fit_are_encoded_again(scored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = samples(80)
    roomy, expected = scored(pool, shard_size=80)
    real = OnnxEngine.reserve

    def reserve(self: OnnxEngine, rows: int) -> None:
        with memory_errors():
            if rows > limit:
                raise MemoryError
        real(self, rows)

    monkeypatch.setattr(OnnxEngine, "reserve", reserve)
    limit = 16 * 8
    counts, table = scored(pool, shard_size=80, token_budget=130)
    assert counts["images_encoded"] > roomy["images_encoded"]
    assert np.abs(table.necessity - expected.necessity).max() < 1e-5
    limit = 16
    with pytest.raises(ScoreError, match=r"features of one batch do not fit .* lower --token-budget"):
        scored(pool)


@pytest.mark.parametrize("of", ["scorer_batch", "vision_inputs"])
def test_batches_that_do_not_fit_while_they_are_made_are_halved(
    scored: Any, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    pool = samples(60)
    whole, expected = scored(pool)
    owner = groups if of == "scorer_batch" else LlavaFamily
    make = getattr(owner, of)

    def little(*arguments: Any) -> Any:
        if len(arguments[1]) > 2:  # samples or pictures
            raise MemoryError
        return make(*arguments)

    monkeypatch.setattr(owner, of, little)
    halved, table = scored(pool)
    assert halved["halved_batches"] > 0 == whole["halved_batches"]
    assert halved["scored"] == 60
    assert np.abs(table.necessity - expected.necessity).max() < 1e-5


@pytest.mark.parametrize(("times", "aside"), [(1, {}), (2, {"out-of-memory": 1})])
def test_an_image_that_does_not_fit_beside_others_is_loaded_alone(
    scored: Any, monkeypatch: pytest.MonkeyPatch, times: int, aside: dict[str, int]
) -> None:
    pool = [([("user", "<image>\n?"), ("assistant", "yes")], [f"{index}.png"]) for index in range(9)]
    load, asked = images_.load_image, iter(range(times))

    def little(image: Any, name: str | None = None) -> Any:
        if image.name == "3.png" and next(asked, None) is not None:
            raise MemoryError
        return load(image, name)

    monkeypatch.setattr(loading, "load_image", little)
    counts, _ = scored(pool)
    assert counts["set_aside"] == aside
    assert next(asked, None) is None


def test_a_lack_of_memory_is_not_taken_for_a_bad_image(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", lack)
    for read in (images_.load_image, images_.image_size):
        with pytest.raises(MemoryError):
            read(images / "0.png")


REAL = """
import resource, sys
from pathlib import Path
import numpy as np
from mllm_selector.engine import OnnxEngine
from mllm_selector.errors import DeviceMemoryError
engine = OnnxEngine(Path(sys.argv[1]), "cpu", threads=1)
def read(batch, length):
    ones = np.ones((batch, length), dtype=np.int64)
    return engine.read(
        {"input_ids": ones, "attention_mask": ones, "pooled_positions": ones[:, None], "image_rows": -ones,
         "position_ids": ones, "branches": 0 * ones,
         "answer_positions": np.arange(batch * length), "answer_tokens": ones.reshape(-1)},
        ("token_nll",))
read(2, 8)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    read(64, 1000)
except DeviceMemoryError as error:
    print(len(read(2, 8)["token_nll"]), error)
"""


def test_a_real_lack_of_memory_is_recognised_and_survived() -> None:
    """ONNX Runtime itself, in a process that may not have more than 200 MB more."""
    command = [sys.executable, "-c", REAL, str(export_once("clip-llama").graphs)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("16 "), process.stdout


# Number format


def test_a_sample_that_overflows_is_scored_again_in_float32(scored: Any) -> None:
    """A token whose embedding is infinite in the float16 graph only."""

    def overflow(graphs: Path) -> None:
        poison(graphs / "losses.onnx", np.inf)

    pool = samples(30)
    pool[3] = ask("a \x7f b")
    pool[7] = ([("user", "<image>\n? \x7f"), ("assistant", "no")], ["2.png"])
    counts, table = scored(pool, "layers-float16", overflow)
    assert counts["rescored"] == 2
    assert counts["scored"] == 30
    clean, expected = scored(pool, "layers-float16")
    assert clean["rescored"] == 0
    assert np.array_equal(np.delete(table.necessity, [3, 7]), np.delete(expected.necessity, [3, 7]))
    assert np.abs(table.necessity - expected.necessity).max() < 1e-2
    assert (table.necessity != expected.necessity).any()


def test_what_is_not_finite_in_float32_either_is_set_aside(scored: Any) -> None:
    def broken(graphs: Path) -> None:
        poison(graphs / "losses.onnx", np.nan)
        poison(graphs / "float32" / "losses.onnx", np.nan)

    pool = samples(30)
    pool[3] = ask("a \x7f b")
    counts, table = scored(pool, "layers-float16", broken)
    assert counts["rescored"] == 1
    assert counts["set_aside"] == {"not-finite": 1}
    assert table.reasons[3].as_py().startswith("not-finite: summed loss nan")

"""Scoring a pool: right numbers, one result whatever happens on the way, reasons for what has no score."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable, score_schema
from mllm_selector.engine import INPUT_EMBEDDING, OnnxEngine
from mllm_selector.errors import DeviceMemoryError, RunDirectoryError, ScoreError
from mllm_selector.families.chat import encode_for_training
from mllm_selector.families.images import load_image
from mllm_selector.metrics import Answer, Metrics, Variant
from mllm_selector.pool import Pool
from mllm_selector.scoring import loading, scorer, sweeps
from mllm_selector.scoring.opening import open_torch
from mllm_selector.scoring.shards import ShardScores
from mllm_selector.scoring.tables import score_table
from model_fixtures import export_once, picture, write_pool
from score_fixtures import Notes, ask, column, input_embedding, many, parts

pytest_plugins = ["score_fixtures"]

# Right numbers


def test_scores_equal_the_unmodified_forward(make_run: Any, score_run: Any, images: Path) -> None:
    samples = [*many(60), ask("hi"), ask("look", "no", [(images / "3.png").read_bytes()])]
    folder = make_run(samples)
    counts = score_run(folder)
    table = ScoreTable.load(folder / "scores")
    embeddings = np.concatenate(table.embeddings).astype(np.float64)
    model_folder = export_once("clip-llama").model
    processor = AutoProcessor.from_pretrained(model_folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    total = 0
    for row, sample in enumerate(Pool.open(folder / "pool.arrow", images)):
        inputs = encode_for_training(processor, sample, load_image)
        labels = inputs.pop("labels")
        per_token = ("input_ids", "attention_mask")
        with torch.no_grad():
            output = model(
                **{name: value[None] if name in per_token else value for name, value in inputs.items()},
                output_hidden_states=True,
            )
        losses = torch.nn.functional.cross_entropy(output.logits[0, :-1], labels[1:], reduction="none")
        answer_tokens = int((labels >= 0).sum())
        assert table.answer_tokens[row] == answer_tokens
        assert table.necessity[row] == pytest.approx(float(losses.sum()) / answer_tokens, abs=1e-5)
        mean = output.hidden_states[-1][0].mean(0)
        assert np.abs(embeddings[row] - (mean / mean.norm()).numpy()).max() < 1e-3
        total += answer_tokens
    assert 0 <= counts.pop("idle_share") < 1
    assert counts == {
        "samples": 62,
        "scored": 62,
        "set_aside": {},
        "missing": {},
        "answer_tokens": total,
        "images_encoded": sum(
            len({image for _, shown in samples[first : first + 16] for image in shown})
            for first in range(0, 62, 16)
        ),
        "rescored": 0,
        "parts": 4,
        "resumed": 0,
        "embedding_size": 32,
        "provider": "CPUExecutionProvider",
        "image_backend": "pil",
        "token_budget": 512,
        "image_budget": 4096,
        "halved_batches": 0,
    }


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_embeddings_of_the_inputs_come_with_the_losses(
    make_run: Any, score_run: Any, images: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [*many(24), ask("hi"), ask("look", "no", [(images / "3.png").read_bytes()])]
    model = export_once("clip-llama").model
    if engine == "torch":
        by_torch = open_torch(families.load(model), model, "float32", "cpu")
        monkeypatch.setattr(sweeps, "open_engine", lambda *_, **__: by_torch)
    inputs, states = make_run(samples, name="inputs"), make_run(samples, name="states")
    counts = score_run(inputs, embedding="inputs")
    assert counts["embedding_size"] == 96
    assert counts["images_encoded"] == score_run(states)["images_encoded"]
    for name in ("nll_sum", "answer_tokens", "nll"):
        assert column(inputs, name) == column(states, name)
    found = np.concatenate(ScoreTable.load(inputs / "scores").embeddings).astype(np.float64)
    assert any(len(shown) > 1 for _, shown in samples)
    for row, (messages, shown) in enumerate(samples):
        pictures = [
            Image.open(io.BytesIO(image) if isinstance(image, bytes) else images / image) for image in shown
        ]
        expected = input_embedding(model, messages, pictures)
        assert np.abs(found[row] - expected).max() < 1e-3  # float16


def test_a_reading_that_is_halved_keeps_its_embedding(
    make_run: Any, score_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # lower budgets are remembered
    samples = many(20)
    whole, halved = make_run(samples, name="whole"), make_run(samples, name="halved")
    score_run(whole, embedding="inputs")
    real = OnnxEngine.read

    def read(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        if tuple(outputs) == (INPUT_EMBEDDING,) and len(inputs["input_ids"]) > 2:
            raise DeviceMemoryError
        return real(self, inputs, outputs)

    monkeypatch.setattr(OnnxEngine, "read", read)
    counts = score_run(halved, embedding="inputs")
    assert counts["halved_batches"] > 0
    assert counts["scored"] == 20
    for name in ("nll", "embedding"):
        expected, found = (np.array(column(folder, name), np.float64) for folder in (whole, halved))
        assert np.abs(expected - found).max() < 1e-3


def test_what_a_part_holds(make_run: Any, score_run: Any) -> None:
    samples = many(20)
    folder = make_run(samples)
    score_run(folder, key="this run")
    part = pa.ipc.open_file(folder / "scores" / "part-00001.arrow").read_all()
    work = json.dumps(
        {"images_encoded": len({image for _, shown in samples[16:] for image in shown}), "rescored": 0}
    )
    batches = json.dumps({"tokens": 512, "image_rows": 4096})
    metadata = {
        "mllm_selector.key": "this run",
        "mllm_selector.batches": batches,
        "mllm_selector.work": work,
    }
    assert part.schema.equals(score_schema(32, metadata=metadata), check_metadata=True)
    assert part["row"].to_pylist() == [16, 17, 18, 19]
    quotients = part["nll_sum"].to_numpy() / part["answer_tokens"].to_numpy()
    assert np.allclose(part["nll"].to_numpy(), quotients, rtol=1e-6)


def test_batches_do_not_change_scores(make_run: Any, score_run: Any) -> None:
    samples = many(40)
    folders = []
    for name, options in {
        "one": {"token_budget": 1},
        "all": {"token_budget": 10**6, "shard_size": 100},
    }.items():
        folders.append(make_run(samples, "siglip-qwen2", name))
        score_run(folders[-1], **options)
    one, together = (np.array(column(folder, "nll")) for folder in folders)
    assert np.abs(one - together).max() < 1e-5


def test_float16_graphs(make_run: Any, score_run: Any) -> None:
    folder = make_run(many(20), "layers-float16")
    score_run(folder)
    assert np.isfinite(column(folder, "nll")).all()


# One result whatever happens on the way


def test_threads_and_workers_do_not_change_a_byte(make_run: Any, score_run: Any) -> None:
    samples = many(40)
    results = []
    for index, options in enumerate([(1, 1), (2, 1), (2, 4), (None, 3)]):
        folder = make_run(samples, name=f"run{index}")
        score_run(folder, threads=options[0], workers=options[1])
        results.append(parts(folder))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("stops_after", [0, 2, 5])
def test_an_interrupted_run_ends_with_the_same_bytes(
    make_run: Any, score_run: Any, monkeypatch: pytest.MonkeyPatch, stops_after: int
) -> None:
    samples = many(50)
    whole, broken = make_run(samples, name="whole"), make_run(samples, name="broken")
    score_run(whole)
    real, calls = OnnxEngine.read, iter(range(100))

    def read(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        if next(calls) == stops_after:
            raise KeyboardInterrupt
        return real(self, inputs, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "read", read)
        with pytest.raises(KeyboardInterrupt):
            score_run(broken)
    finished = parts(broken) if (broken / "scores").exists() else {}
    assert len(finished) < 4
    counts = score_run(broken)
    assert counts["resumed"] == len(finished)
    assert parts(broken) == parts(whole)


def test_a_failing_worker_stops_the_run_and_leaves_whole_parts(
    make_run: Any, score_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(many(50))
    real, calls = load_image, iter(range(1000))

    def failing(*arguments: Any) -> Any:
        if next(calls) == 20:
            raise RuntimeError("a bug")
        return real(*arguments)

    monkeypatch.setattr(loading, "load_image", failing)
    with pytest.raises(RuntimeError, match="a bug"):
        score_run(folder)
    monkeypatch.undo()
    assert all(name.startswith("part-") for name in parts(folder))
    score_run(folder)
    assert column(folder, "row") == list(range(50))


def test_finished_parts_are_not_scored_again(
    make_run: Any, score_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(many(50))
    first = score_run(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()}
    progress = Notes()
    again = score_run(folder, progress)
    assert again == {**first, "resumed": 4, "idle_share": None}
    assert {path: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()} == before
    assert progress.last == "50 samples scored, 0 set aside"


def test_lost_and_damaged_parts_are_scored_again(make_run: Any, score_run: Any) -> None:
    folder = make_run(many(60))
    score_run(folder)
    whole = parts(folder)
    scores = folder / "scores"
    (scores / "part-00000.arrow").unlink()
    (scores / "part-00001.arrow").write_bytes(whole["part-00001.arrow"][:-200])
    (scores / "part-00002.arrow").write_bytes(whole["part-00003.arrow"])
    (scores / ".part-00003.arrow.12345.tmp").write_bytes(b"half")
    progress = Notes()
    assert score_run(folder, progress)["resumed"] == 1
    assert parts(folder) == whole
    assert len(progress.notes) == 2
    assert "part-00001.arrow is damaged: its checksum is not the one in checksums.b3" in progress.notes[0]
    assert "part-00002.arrow is damaged" in progress.notes[1]


def test_damaged_parts_are_found_without_checksums(make_run: Any, score_run: Any) -> None:
    folder = make_run(many(40))
    score_run(folder)
    whole = parts(folder)
    scores = folder / "scores"
    (folder / "checksums.b3").unlink()
    (scores / "part-00000.arrow").write_bytes(whole["part-00000.arrow"][:-200])
    (scores / "part-00001.arrow").write_bytes(whole["part-00000.arrow"])
    progress = Notes()
    assert score_run(folder, progress)["resumed"] == 1
    assert parts(folder) == whole
    assert "part-00000.arrow is not a whole Arrow file" in progress.notes[0]
    assert "part-00001.arrow does not hold its rows" in progress.notes[1]


def test_batches_stay_those_of_the_parts_if_their_note_is_lost(make_run: Any, score_run: Any) -> None:
    folder = make_run(many(40))
    note = folder / "batches.json"
    note.write_text(json.dumps({"key": "key", "tokens": 256, "image_rows": 64}))
    score_run(folder, token_budget="auto")
    whole = parts(folder)
    note.unlink()
    (folder / "scores" / "part-00001.arrow").unlink()
    assert score_run(folder, token_budget="auto")["resumed"] == 2
    assert parts(folder) == whole


def test_parts_of_another_run_are_refused(make_run: Any, score_run: Any) -> None:
    folder = make_run(many(40))
    score_run(folder)
    with pytest.raises(
        RunDirectoryError, match=r"part-00000.arrow was written with another pool, model or other"
    ):
        score_run(folder, key="another")
    with pytest.raises(RunDirectoryError, match=r"part-00002.arrow was written with another"):
        score_run(folder, shard_size=20)


def test_progress_counts_every_sample(make_run: Any, score_run: Any) -> None:
    folder = make_run([*many(30), ask("?", "!", ["text.png"])])
    progress = Notes()
    score_run(folder, progress)
    done_counts = [done for done, _ in progress.updates]
    assert done_counts == sorted(done_counts)
    assert done_counts[-1] == 31
    assert set(progress.updates[-1][1]) == {"samples/s", "tokens/s", "idle"}
    assert progress.last.startswith("30 samples scored, 1 set aside; ")


# Images


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each run of the vision graph."""
    counts: list[int] = []
    real = OnnxEngine.see

    def see(self: OnnxEngine, inputs: Any, start: int, rows: int) -> None:
        counts.append(len(inputs["pixel_values"]))
        real(self, inputs, start, rows)

    monkeypatch.setattr(OnnxEngine, "see", see)
    return counts


def test_a_shared_image_is_encoded_once(make_run: Any, score_run: Any, images: Path, seen: list[int]) -> None:
    content = (images / "0.png").read_bytes()
    names = [f"{index}.png" for index in range(10)]
    samples = [ask("many " * (1 + 2 * index), images=[names[index % 10]]) for index in range(50)]
    samples += [ask("red " * index, images=[content, "1.png"]) for index in range(1, 20)]
    samples += [ask("no picture")] * 5
    score_run(make_run(samples), shard_size=100, token_budget=200)
    assert sum(seen) == 11


def test_text_only_pools_need_no_vision(make_run: Any, score_run: Any, seen: list[int]) -> None:
    score_run(make_run([ask("many " * index) for index in range(1, 20)]))
    assert seen == []


def test_little_feature_memory_changes_nothing(
    make_run: Any, score_run: Any, monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    samples = many(60)
    roomy, tight = make_run(samples, name="roomy"), make_run(samples, name="tight")
    options = {"shard_size": 60, "token_budget": 150, "threads": 1}
    score_run(roomy, **options)
    with_room = sum(seen)
    monkeypatch.setattr(scorer, "FEATURE_BYTES", 0)
    score_run(tight, **options)
    assert sum(seen) > 2 * with_room, "images are encoded again where features cannot be kept"
    one, other = (np.array(column(folder, "nll")) for folder in (roomy, tight))
    assert np.abs(one - other).max() < 1e-5


def test_unreadable_images_take_no_other_sample_along(make_run: Any, score_run: Any) -> None:
    good = many(30)
    bad = [
        ask("cut", images=["0.png", "cut.png"]),
        ask("text", images=["text.png", "1.png", "2.png"]),
        ask("gone", images=["gone.png"]),
        ask("gone again", images=["3.png", "gone.png"]),
        ask("bytes", images=[b"no picture"]),
    ]
    alone, mixed = make_run(good, name="alone"), make_run([*good, *bad], name="mixed")
    for folder in (alone, mixed):
        score_run(folder, shard_size=100)
    expected = np.array(column(alone, "nll"))
    assert np.abs(np.array(column(mixed, "nll"))[:30] - expected).max() < 1e-5
    assert column(mixed, "reason")[:30] == [None] * 30
    reasons = column(mixed, "reason")[30:]
    assert reasons[0].startswith("image-unreadable: cut.png: ")
    assert reasons[1].startswith("image-unreadable: text.png: cannot identify")
    assert reasons[2] == reasons[3] == "image-unreadable: gone.png: No such file or directory"
    assert reasons[4].startswith("image-unreadable: 10 bytes: cannot identify")


# What cannot be scored


def test_every_unscored_sample_has_a_reason(make_run: Any, score_run: Any, images: Path) -> None:
    wide = images / "wide.png"
    picture(0, (1000, 2)).save(wide)
    samples = [
        *(ask("many " * index) for index in range(1, 11)),
        ask("many " * 600),
        ask("many " * 60, images=["0.png"]),
        ([("user", "only a question")], []),
        ([("assistant", "only an answer")], []),
        ask("bomb", images=["wide.png"]),
    ]
    folder = make_run(samples)
    counts = score_run(folder, max_tokens=75)
    aside = {"too-long": 2, "no-answer-tokens": 1, "chat-template": 1, "image-unreadable": 1}
    assert counts["set_aside"] == aside
    assert counts["scored"] == 10
    assert re.fullmatch(r"too-long: \d+ tokens, at most 75", column(folder, "reason")[11])
    reasons = np.array([reason is not None for reason in column(folder, "reason")])
    assert np.array_equal(np.isnan(column(folder, "nll")), reasons)
    assert np.array_equal(np.array(column(folder, "answer_tokens")) == 0, reasons)
    assert np.array_equal(~np.array(column(folder, "embedding")).any(axis=1), reasons)


def test_positions_of_the_model_are_a_limit(make_run: Any, score_run: Any) -> None:
    folder = make_run([*many(4), ask("many " * 600)])
    score_run(folder)
    assert column(folder, "reason")[4].endswith("tokens, at most 512")


def test_losses_that_are_not_finite(make_run: Any, score_run: Any) -> None:
    """One token's embedding is made NaN in the graph: its samples are set aside, their batch is not."""
    folder = make_run([*many(10), ask("wall"), ask("many"), ask("the wall", images=["0.png"])])
    clean = make_run(many(10), name="clean")
    graph = folder / "onnx" / "losses.onnx"
    model = onnx.load(graph)
    ids = AutoProcessor.from_pretrained(folder / "onnx" / "processor").tokenizer(
        "\x7f", add_special_tokens=False
    )
    table = next(weight for weight in model.graph.initializer if list(weight.dims) == [400, 32])
    values = onnx.numpy_helper.to_array(table).copy()
    values[ids["input_ids"][0]] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    onnx.save(model, graph)
    bad = [ask("a \x7f b"), ask("\x7f", images=["0.png"])]
    write_pool(folder, [*many(10), *bad])
    for each in (folder, clean):
        score_run(each, shard_size=100)
    assert np.array_equal(column(folder, "nll")[:10], column(clean, "nll"))
    assert all(reason.startswith("not-finite: ") for reason in column(folder, "reason")[10:])


def test_infinite_embeddings_are_set_aside() -> None:
    scores = ShardScores()
    answer = Answer(np.array([1, 2], dtype=np.float32))
    scores.put((Variant.FULL, 5), answer, np.array([np.inf, 0], dtype=np.float32))
    scores.put((Variant.FULL, 6), answer, np.array([0.6, 0.8], dtype=np.float32))
    assert scores.reasons == {(Variant.FULL, 5): "not-finite: summed loss 3 over 2 answer tokens"}
    assert scores.answers == {(Variant.FULL, 6): answer}
    table = score_table(range(5, 7), scores, Metrics(), score_schema(2))
    assert np.isnan(table["nll"][0].as_py())
    assert table["nll"][1].as_py() == 1.5


def test_more_than_half_unscored_is_an_error(make_run: Any, score_run: Any) -> None:
    bad = [ask("gone", images=[f"gone{index}.png"]) for index in range(5)]
    with pytest.raises(
        ScoreError, match=r"6 of 11 samples cannot be scored.*image-unreadable: 5 .*too-long: 1"
    ):
        score_run(folder := make_run([*many(5), *bad, ask("many " * 600)]))
    assert len(parts(folder)) == 1, "what was scored is kept"
    half = make_run([*many(5), *bad], name="half")
    assert score_run(half)["scored"] == 5


WITHOUT_TORCH = """
import importlib.util, json, sys
HIDDEN = {"torch", "torchvision", "onnx", "onnxscript", "peft", "accelerate"}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else find_spec(name, package)
sys.modules.update(dict.fromkeys(HIDDEN))
from pathlib import Path
from mllm_selector.config import ScoreOptions
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import score
with RunDirectory(Path(sys.argv[1])) as run:
    run.stages = {name: StageRecord("done", "key") for name in ("ingest", "seed", "export", "score")}
    run.stages["ingest"].options = {"images": sys.argv[2]}
    options = ScoreOptions(device="cpu", shard_size=16, token_budget=512)
    print(json.dumps(score.run(run, options, SilentProgress())))
"""


def test_scoring_needs_no_torch(make_run: Any, score_run: Any, images: Path) -> None:
    """The `[cpu]` extra has none; pictures and scores are the same."""
    here, there = make_run(many(20), name="here"), make_run(many(20), name="there")
    (there / "lock").touch()
    command = [sys.executable, "-c", WITHOUT_TORCH, str(there), str(images)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert json.loads(process.stdout)["scored"] == score_run(here)["scored"] == 20
    assert parts(here) == parts(there)

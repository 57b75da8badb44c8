"""Scoring with metrics, further readings and chosen embeddings, against the unmodified model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm_selector import families
from mllm_selector.artifacts import ScoreTable
from mllm_selector.config import ExportOptions, ScoreOptions
from mllm_selector.engine import OnnxEngine
from mllm_selector.errors import UsageError
from mllm_selector.families.chat import encode_for_training
from mllm_selector.families.images import load_image
from mllm_selector.families.loading import load_model
from mllm_selector.pool import Pool, Sample
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.scoring import parity
from mllm_selector.scoring.opening import open_torch
from mllm_selector.stages import export, score
from model_fixtures import done, export_once
from score_fixtures import ask, column, many, parts

pytest_plugins = ["score_fixtures"]

ALL = "perplexity,entropy,upd,accuracy,visnec,ifd,miwv"


class Plain:
    """The unmodified model, one sample at a time, on the inputs of its own processor."""

    def __init__(self) -> None:
        folder = export_once("clip-llama").model
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def read(self, messages: Any, images: Any, answers: int | None = None) -> dict[str, np.ndarray]:
        """Return logits and ids of the (last) answer tokens, hidden states and which are of images."""
        sample = Sample(0, "", "", tuple(messages), tuple(images))
        inputs = encode_for_training(self.processor, sample, load_image)
        labels = inputs.pop("labels")
        places = np.flatnonzero(labels[1:] >= 0)[-answers if answers else 0 :]
        batch = {name: value if name == "pixel_values" else value[None] for name, value in inputs.items()}
        with torch.no_grad():
            output = self.model(**batch, output_hidden_states=True)
        return {
            "logits": output.logits[0, places].double().numpy(),
            "tokens": labels[places + 1].numpy(),
            "states": output.hidden_states[-1][0].double().numpy(),
            "is_image": (inputs["input_ids"] == self.processor.image_token_id).numpy(),
        }


def losses(read: dict[str, np.ndarray]) -> np.ndarray:
    logits = read["logits"]
    total = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return total - logits[np.arange(len(logits)), read["tokens"]]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_all_metrics_equal_the_unmodified_forward(make_run: Any, score_run: Any, images: Path) -> None:
    folder = make_run([*many(21), ask("hi")])
    counts = score_run(folder, metrics=ALL, embedding="image", shard_size=8)
    table = ScoreTable.load(folder / "scores")
    embeddings = np.concatenate(table.embeddings).astype(np.float64)
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -1)
    model, pool = Plain(), list(Pool.open(folder / "pool.arrow", images))
    text_only = 0
    for row, sample in enumerate(pool):
        full = model.read(sample.messages, sample.images)
        nll = losses(full)
        likelihoods = np.exp(full["logits"] - full["logits"].max(1, keepdims=True))
        likelihoods /= likelihoods.sum(1, keepdims=True)
        entropy = -(likelihoods * np.log(likelihoods)).sum(1)
        certainty = np.maximum(0, 1 - entropy / np.log(likelihoods.shape[1]))
        bare = [(r, "<image>" * c.count("<image>") if r == "user" else c) for r, c in sample.messages]
        example = pool[int(cosines[row].argmax())]
        shot = model.read(
            (*example.messages, *sample.messages), (*example.images, *sample.images), answers=len(nll)
        )
        expected = {
            "nll": nll.mean(),
            "perplexity": np.exp(nll.mean()),
            "entropy": entropy.mean(),
            "upd": (certainty / (1 + np.exp(-nll))).mean(),
            "accuracy": (full["logits"].argmax(1) == full["tokens"]).mean(),
            "ifd": nll.mean() / losses(model.read(bare, sample.images)).mean(),
            "miwv": losses(shot).mean() - nll.mean(),
        }
        if sample.images:
            blind = [(role, content.replace("<image>\n", "")) for role, content in sample.messages]
            expected["visnec"] = losses(model.read(blind, ())).mean() - nll.mean()
        else:
            text_only += 1
            assert np.isnan(table.column("visnec")[row])
        for name, value in expected.items():
            assert table.column(name)[row] == pytest.approx(value, abs=1e-5, rel=1e-4), (name, row)
        pooled = full["states"][full["is_image"]] if sample.images else full["states"]
        assert np.abs(embeddings[row] - unit(pooled.mean(0))).max() < 1e-3
    assert 0 < text_only < len(pool)
    assert counts["missing"] == {"visnec": {"no-image": text_only}}
    assert counts["embedded_whole"] == text_only
    assert counts["parts"] == 6
    assert {name for name in parts(folder) if "-" not in name} == {"examples.arrow"}


def test_metrics_change_no_other_column(make_run: Any, score_run: Any) -> None:
    samples = many(20)
    bare, rich = make_run(samples, name="bare"), make_run(samples, name="rich")
    score_run(bare)
    score_run(rich, metrics=ALL)
    for name in ("nll", "nll_sum", "answer_tokens", "embedding"):
        assert column(bare, name) == column(rich, name)


@pytest.mark.parametrize("stops_at", [0.1, 0.4, 0.6, 0.9], ids=["pca", "first", "middle", "second"])
def test_an_interrupted_run_of_several_readings_ends_with_the_same_bytes(
    make_run: Any, score_run: Any, monkeypatch: pytest.MonkeyPatch, stops_at: float
) -> None:
    samples = many(24)
    options = {"metrics": "ifd,miwv", "embedding_size": 8, "projection": "pca", "token_budget": 1000}
    whole, broken = make_run(samples, name="whole"), make_run(samples, name="broken")
    real, calls, last = OnnxEngine.read, 0, 10**9

    def read(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > last:
            raise KeyboardInterrupt
        return real(self, inputs, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "read", read)
        score_run(whole, **options)
        calls, last = 0, int(stops_at * calls)
        with pytest.raises(KeyboardInterrupt):
            score_run(broken, threads=2, **options)
    assert len(parts(broken) if (broken / "scores").exists() else {}) < len(parts(whole))
    score_run(broken, **options)
    assert parts(broken) == parts(whole)
    assert len(column(whole, "embedding")[0]) == 8


def test_a_sample_that_fails_in_one_reading_keeps_its_other_scores(make_run: Any, score_run: Any) -> None:
    samples = [
        ask("many " * 8, images=["0.png", "1.png"]),
        ask("red " * 9, images=["1.png"]),
        ask("is a box ?"),
    ]
    folder = make_run([*samples, ask("many " * 600)])
    counts = score_run(folder, metrics="visnec,miwv", max_tokens=75)
    assert counts["set_aside"] == {"too-long": 1}
    assert counts["scored"] == 3
    table = ScoreTable.load(folder / "scores")
    assert np.isnan(table.necessity).tolist() == [False, False, False, True]
    assert np.isnan(table.column("visnec")).tolist() == [False, False, True, True]
    too_long = int(np.isnan(table.column("miwv")).sum()) - 1
    assert too_long > 0
    assert counts["missing"] == {"visnec": {"no-image": 1}, "miwv": {"too-long": too_long}}
    assert column(folder, "missing")[2][0][1].startswith("no-image: ")


def test_one_sample_has_no_example(make_run: Any, score_run: Any) -> None:
    counts = score_run(make_run([ask("hi")]), metrics="miwv")
    assert counts["missing"] == {"miwv": {"no-example": 1}}


def test_readings_without_images_cost_no_vision(
    make_run: Any, score_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = OnnxEngine.see

    def see(self: OnnxEngine, inputs: Any, start: int, rows: int) -> None:
        seen.append(len(inputs["pixel_values"]))
        real(self, inputs, start, rows)

    monkeypatch.setattr(OnnxEngine, "see", see)
    samples = [ask("many " * index, images=[f"{index % 5}.png"]) for index in range(1, 25)]
    score_run(make_run(samples), metrics="visnec,ifd", shard_size=100)
    assert sum(seen) == 5, "each picture once, for both readings that show it"


def test_embeddings_of_text_positions(make_run: Any, score_run: Any, images: Path) -> None:
    folder = make_run(many(8))
    score_run(folder, embedding="text")
    embeddings = np.concatenate(ScoreTable.load(folder / "scores").embeddings).astype(np.float64)
    model = Plain()
    for row, sample in enumerate(Pool.open(folder / "pool.arrow", images)):
        read = model.read(sample.messages, sample.images)
        assert np.abs(embeddings[row] - unit(read["states"][~read["is_image"]].mean(0))).max() < 1e-3


def test_options_that_cannot_work(make_run: Any, score_run: Any) -> None:
    folder = make_run(many(4))
    with pytest.raises(UsageError, match="--embedding-size: 33 is more than the model's 32"):
        score_run(folder, embedding_size=33)
    with pytest.raises(UsageError, match="--embedding-size: 97 is more than the model's 96"):
        score_run(folder, embedding="inputs", embedding_size=97)
    assert not (folder / "scores").exists()
    score_run(folder, metrics="upd")
    table = ScoreTable.load(folder / "scores", "upd")
    assert np.array_equal(table.necessity, table.column("upd"))
    with pytest.raises(UsageError, match=r"hold no 'visnec', only nll, upd; .* --metrics upd,visnec in"):
        table.column("visnec")
    with pytest.raises(UsageError, match=r"scores hold no 'ifd'"):
        ScoreTable.load(folder / "scores", "ifd")
    with pytest.raises(UsageError, match="'loss' is no metric; metrics are nll, perplexity"):
        table.column("loss")


def test_projections_are_kept_in_the_run_directory(make_run: Any, score_run: Any) -> None:
    samples = many(10)
    plain, random = make_run(samples, name="plain"), make_run(samples, name="random")
    score_run(plain)
    score_run(random, embedding_size=12, seed=5)
    table = pa.ipc.open_file(random / "projection.arrow").read_all()
    directions = np.array(table["direction"].to_pylist())
    projected = np.array(column(plain, "embedding"), dtype=np.float64) @ directions.T
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    assert np.abs(projected - np.array(column(random, "embedding"), dtype=np.float64)).max() < 3e-3


@pytest.mark.parametrize("layer", [0, 1, -2])
def test_embeddings_of_any_layer(layer: int) -> None:
    """PyTorch runs the modules that are exported; the reference is the unmodified model."""
    folder = export_once("clip-llama").model
    family = families.load(folder)
    expected = parity.reference(family, load_model(folder), layer)
    engine = open_torch(family, folder, "float32", "cpu", embedding_layer=layer)
    assert parity.check_against(family, engine, expected).worst_embedding < 1e-5
    last = parity.check_against(family, open_torch(family, folder, "float32", "cpu"), expected)
    assert last.worst_embedding > 1e-2
    assert last.worst_nll < 1e-5


def test_layers_that_the_model_has_not(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.stages["seed"] = done(counts={"model": str(export_once("clip-llama").model)})
        for layer in (3, -4):
            with pytest.raises(UsageError, match=rf"--embedding-layer: {layer} is none .* are 1 to 2"):
                export.run(run, ExportOptions(embedding_layer=layer), SilentProgress())


def test_job_arrays_end_with_the_same_scores(make_run: Any, score_run: Any, images: Path) -> None:
    samples = many(20)
    options = {"metrics": "upd,visnec,miwv", "embedding_size": 8, "shard_size": 5, "image_budget": 4096}
    whole, shared = make_run(samples, name="whole"), make_run(samples, name="shared")
    score_run(whole, **options)
    for shard in ("1/2", "2/2"):
        run = RunDirectory(shared)  # not held: others score at the same time
        run.stages |= {name: done() for name in ("seed", "export")}
        run.stages["ingest"] = done(options={"images": str(images)})
        run.stages["score"] = StageRecord(state="running", key="key")
        given = ScoreOptions(device="cpu", token_budget=512, shard=shard, **options)
        score.run(run, given, SilentProgress())
    counts = score_run(shared, merge=True, **options)
    assert parts(shared) == parts(whole)
    assert counts["missing"] == {"visnec": {"no-image": sum(not shown for _, shown in samples)}}

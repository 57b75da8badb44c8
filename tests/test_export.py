"""The scoring graphs: made quietly, equal to the unmodified model, refused where they are not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm_selector import families
from mllm_selector.config import ExportOptions
from mllm_selector.engine import SCORER_OUTPUTS, OnnxEngine
from mllm_selector.errors import ExportError, MissingPackageError, ModelError, RunDirectoryError
from mllm_selector.families.base import Family, Graph
from mllm_selector.families.chat import encode_for_training
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring import parity
from mllm_selector.scoring.batching import scorer_batch, split_answers
from mllm_selector.scoring.prefixes import alone
from mllm_selector.stages import export
from model_fixtures import MODELS, Exported, clip_llama, done, export_once, picture


@dataclass(frozen=True)
class Talk:
    messages: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...] = ()


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest) -> Exported:
    return export_once(request.param)


def talks(seed: int, images: list[int]) -> list[Talk]:
    """Conversations with that many images each."""
    draw = np.random.default_rng(seed)
    words = np.array(
        ["how", "many", "red", "blue", "boxes", "squares", "is", "there", "a", "wall", "?", "yes", "no"]
    )
    made = []
    for index, count in enumerate(images):
        question = "<image>\n" * count + " ".join(draw.choice(words, draw.integers(1, 40)))
        turns = [("user", question), ("assistant", " ".join(draw.choice(words, draw.integers(1, 12))))]
        if index % 3 == 2:
            turns += [("user", "and the other ?"), ("assistant", "no")]
        made.append(Talk(tuple(turns), tuple(bytes([seed, index, place]) for place in range(count))))
    return made


def open_picture(image: bytes) -> Any:
    return picture(sum(image), size=(30 + image[2], 36))


def run_graphs(family: Family, engine: OnnxEngine, batch: list[Talk]) -> Any:
    """Score a batch, features of its images laid out in reverse order, to see that rows are obeyed."""
    samples = [family.encode(talk) for talk in batch]
    starts: list[list[int]] = [[0] * len(talk.images) for talk in batch]
    row = 3
    places = [(i, j) for i, talk in enumerate(batch) for j in range(len(talk.images))]
    engine.reserve(3 + sum(sum(sample.image_tokens) for sample in samples))
    for i, j in reversed(places):
        starts[i][j] = row
        prepared = family.prepare(open_picture(batch[i].images[j]))
        engine.see(family.vision_inputs([prepared]), row, samples[i].image_tokens[j])
        row += samples[i].image_tokens[j]
    scores = engine.read(scorer_batch(family, alone(samples), starts), SCORER_OUTPUTS)
    return scores | {
        name: split_answers(samples, scores[name]) for name in ("token_nll", "token_entropy", "token_hit")
    }


@pytest.mark.parametrize(
    "images",
    [[0], [1], [3], [0, 0], [2, 2], [0, 1, 2, 3], [3, 0, 1, 0, 2, 1, 0]],
    ids=lambda images: str(images),
)
def test_graphs_equal_the_unmodified_forward(exported: Exported, images: list[int]) -> None:
    """The model's own loss on the processor's own inputs, one sample at a time, is the reference."""
    family = families.load(exported.graphs / "processor")
    scores = run_graphs(
        family, OnnxEngine(exported.graphs, "cpu", threads=1), batch := talks(len(images), images)
    )
    processor = AutoProcessor.from_pretrained(exported.model, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(exported.model, dtype=torch.float32)
    tolerance = 1e-5 if exported.counts["precision"] == "float32" else 1e-2
    for index, talk in enumerate(batch):
        inputs = encode_for_training(processor, talk, open_picture)
        per_token = ("input_ids", "attention_mask", "labels")
        with torch.no_grad():
            output = model(
                **{name: value[None] if name in per_token else value for name, value in inputs.items()},
                output_hidden_states=True,
            )
        labels = inputs["labels"][1:]
        token_nll = scores["token_nll"][index]
        assert len(token_nll) == (labels >= 0).sum()
        assert token_nll.mean() == pytest.approx(float(output.loss), abs=tolerance)
        logits = output.logits[0, :-1][labels >= 0].double()
        likelihoods = logits.softmax(-1)
        entropy = -(likelihoods * likelihoods.log()).sum(-1)
        assert np.abs(scores["token_entropy"][index] - entropy.numpy()).max() < tolerance
        top = logits.topk(2).values
        clear = (top[:, 0] - top[:, 1] > 10 * tolerance).numpy()
        hits = (logits.argmax(-1) == labels[labels >= 0]).numpy()
        assert (scores["token_hit"][index] == hits)[clear].all()
        assert float(output.loss) > 1, "losses near zero would compare nothing"
        mean = output.hidden_states[-1][0].mean(0)
        expected = (mean / mean.norm()).numpy()
        assert np.abs(scores["sample_embedding"][index] - expected).max() < tolerance
        assert np.linalg.norm(scores["sample_embedding"][index]) == pytest.approx(1, abs=1e-4)


def test_what_is_left_in_the_run_directory(exported: Exported) -> None:
    run = exported.graphs.parent
    assert sorted(path.name for path in run.iterdir()) == ["lock", "onnx"]
    names = {path.name for path in exported.graphs.iterdir()}
    weights = {"vision.onnx.data", "scorer.onnx.data"}
    graphs = {"vision.onnx", "scorer.onnx", "losses.onnx", "inputs.onnx", *weights}
    # In half precision float32 graphs stand by.
    half = exported.counts["precision"] != "float32"
    assert names == {*graphs, "check.json", "processor", *(["float32"] if half else [])}
    if half:
        assert {path.name for path in (exported.graphs / "float32").iterdir()} == graphs
    written = json.loads((exported.graphs / "check.json").read_text())
    precision = exported.counts["precision"]
    assert list(written) == list(dict.fromkeys(["engine", "float32", precision]))
    check = written[precision]
    assert check["worst_nll_difference"] == exported.counts["worst_nll_difference"] <= check["tolerance"]
    assert len(check["batches"]) == 2 * len(parity.BATCHES), "by the whole scorer, and by that of losses"
    counts = [image for batch in check["batches"] for image in batch["images"]]
    assert set(counts) == {0, 1, 2}
    assert {len(batch["tokens"]) for batch in check["batches"]} >= {1, 3, 5}
    assert exported.counts["family"] == "LlavaFamily"


def test_graphs_name_no_local_path(exported: Exported) -> None:
    for name in ("vision.onnx", "scorer.onnx", "losses.onnx", "inputs.onnx"):
        content = (exported.graphs / name).read_bytes()
        assert b"site-packages" not in content
        assert str(exported.model.parent).encode() not in content
        assert str(Path(export.__file__).parents[1]).encode() not in content


def test_graphs_do_not_need_the_model(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.graphs, tmp_path / "onnx")
    family = families.load(tmp_path / "onnx" / "processor")
    scores = run_graphs(family, OnnxEngine(tmp_path / "onnx", "cpu"), talks(1, [1, 0]))
    assert np.isfinite(np.concatenate(scores["token_nll"])).all()


# What goes wrong. The graphs of an earlier export stand in for new ones, which would take ten seconds each.


@pytest.fixture
def made() -> Exported:
    return export_once("clip-llama")


@pytest.fixture
def stand_in(made: Exported, monkeypatch: pytest.MonkeyPatch) -> Exported:
    def copy(graph: Graph, path: Path, opset: int | None) -> None:
        for file in made.graphs.glob(f"{path.name}*"):
            shutil.copy(file, path.parent)

    def keep(path: Path, outputs: Sequence[str], target: Path) -> None:
        shutil.copy(made.graphs / target.name, target)

    monkeypatch.setattr(export, "_export", copy)
    monkeypatch.setattr(export, "_keep", keep)
    return made


def run_export(model: Path, folder: Path, precision: str = "float32") -> RunDirectory:
    with RunDirectory(folder) as run:
        run.stages["seed"] = done(counts={"model": str(model)})
        export.run(run, ExportOptions(precision=precision), SilentProgress())
    return run


def test_a_mismatch_stops_and_leaves_nothing(
    stand_in: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = clip_llama(tmp_path / "model")
    run = run_export(other, tmp_path / "run")
    before = (run.onnx / "check.json").read_bytes()
    # Now a model whose last layer differs a little from that of the graphs.
    model = AutoModelForImageTextToText.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.001)
    model.save_pretrained(other)
    with pytest.raises(
        ExportError, match=r"onnx engine in float32 .* batch of \d samples .* mean loss differs by \d"
    ) as raised:
        run_export(other, tmp_path / "run")
    assert "more than 0.0001" in str(raised.value)
    assert sorted(path.name for path in run.path.iterdir()) == ["lock", "onnx"]
    assert (run.onnx / "check.json").read_bytes() == before, "an earlier export is kept"


def test_nan_does_not_pass_the_check(
    stand_in: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxEngine.read

    def broken(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        scores = real(self, inputs, outputs)
        for losses in (values for name, values in scores.items() if name == "token_nll"):
            losses[-1] = np.nan
        return scores

    monkeypatch.setattr(OnnxEngine, "read", broken)
    with pytest.raises(ExportError, match="differs by nan"):
        run_export(stand_in.model, tmp_path / "run")


def test_tokens_that_differ_from_the_processors_stop(
    stand_in: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Family.training_inputs

    def shifted(*arguments: Any) -> Any:
        encoded = real(*arguments)
        encoded["labels"] = encoded["labels"].roll(1)
        return encoded

    monkeypatch.setattr(Family, "training_inputs", shifted)
    with pytest.raises(ExportError, match="tokens of LlavaFamily differ"):
        run_export(stand_in.model, tmp_path / "run")


def test_a_killed_export_leaves_no_graphs(
    stand_in: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "check_against", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_export(stand_in.model, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert (run_export(stand_in.model, tmp_path / "run").onnx / "check.json").exists()


def test_the_exporter_is_quiet_and_says_what_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    class Loop(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum().item() > 0 else x

    x = torch.ones(2, 3)
    good = Graph(torch.nn.Linear(3, 3), {"input": x}, {"input": {0: "rows"}}, ("y",))
    export._export(good, tmp_path / "good.onnx")
    assert (tmp_path / "good.onnx").exists()
    with pytest.raises(ExportError, match=r"bad.onnx: torch.onnx cannot export this model"):
        export._export(Graph(Loop(), {"x": x}, {"x": {0: "rows"}}, ("y",)), tmp_path / "bad.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_what_is_missing_is_named(made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="'seed' is not done"):
        export.run(run, ExportOptions(), SilentProgress())
    with pytest.raises(ModelError, match="neither a directory nor a hub id"):
        run_export(tmp_path / "nothing", tmp_path / "other")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"needs onnxscript: pip install 'mllm-selector\[train\]'"):
        run_export(made.model, tmp_path / "third")

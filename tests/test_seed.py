"""The seed stage: the draw, what the loss counts, training, resuming, merging, refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import TinyPool
from mllm_selector.artifacts import open_arrow, write_arrow
from mllm_selector.config import Amount, SeedOptions
from mllm_selector.errors import MissingPackageError, ModelError, UsageError
from mllm_selector.pool import POOL_SCHEMA
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.stages import seed
from store_fixtures import serving

QUICK = {"seed_batch_size": 8, "seed_micro_batch": 4, "lora_rank": 4, "lora_alpha": 8}
TUNED = {"seed_size": Amount.parse(32), "seed_epochs": 2.0, "seed_learning_rate": 1e-2, **QUICK}


def write_pool(folder: Path, pool: TinyPool, images: str | None = None) -> None:
    """Leave a run directory as ingest does; the images are in their folder unless another place is given."""
    roles = {"human": "user", "gpt": "assistant"}
    rows = []
    for record in pool.records:
        names = record.get("image", [])
        rows.append(
            {
                "id": record["id"],
                "source": record["source"],
                "messages": [
                    {"role": roles[turn["from"]], "content": turn["value"]}
                    for turn in record["conversations"]
                ],
                "images": [{"path": name} for name in ([names] if isinstance(names, str) else names)],
                "file": 0,
                "offset": 0,
                "length": 1,
            }
        )
    metadata = {"mllm_selector.pool_version": "2", "mllm_selector.format": "llava-json"}
    with RunDirectory(folder) as run:
        write_arrow(run.pool, pa.Table.from_pylist(rows, schema=POOL_SCHEMA.with_metadata(metadata)))
        run.stages["ingest"] = StageRecord("done", "key", options={"images": images or str(pool.images)})
        run.save()


def tune(folder: Path, **options: Any) -> dict[str, Any]:
    with RunDirectory(folder) as run:
        return seed.run(run, SeedOptions(**options), SilentProgress())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_pool: TinyPool, tiny_model: Path) -> Path:
    """A finished run: two epochs over 32 samples."""
    folder = tmp_path_factory.mktemp("tuned")
    write_pool(folder, tiny_pool)
    counts = tune(folder, model=str(tiny_model), **TUNED)
    (folder / "counts.json").write_text(json.dumps(counts))
    return folder


@pytest.fixture
def ingested(tmp_path: Path, tiny_pool: TinyPool) -> Path:
    folder = tmp_path / "run"
    write_pool(folder, tiny_pool)
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "seed" / "log.jsonl").read_text().splitlines()]


def first_batch(folder: Path, **options: Any) -> list[int]:
    rows = open_arrow(folder / "seed" / "indices.arrow")["row"].to_pylist()
    return seed.training_order(rows, options["seed_epochs"], 0)[: QUICK["seed_batch_size"]]


def test_every_row_is_drawn_equally_often() -> None:
    total, count, draws = 200, 60, 4000
    times = np.zeros(total)
    for number in range(draws):
        rows = seed.draw_rows(total, count, number)
        assert len(np.unique(rows)) == count
        times[rows] += 1
    expected = draws * count / total
    # A draw without replacement has variance p (1 - p) per row, so this is chi-square with total - 1 degrees.
    statistic = ((times - expected) ** 2).sum() / expected / (1 - count / total) * (total - 1) / total
    assert 140 < statistic < 262  # 0.1 % and 99.9 % points of chi-square with 199 degrees of freedom


def test_pairs_of_rows_are_drawn_independently_of_their_distance() -> None:
    draws = np.array([np.isin(np.arange(50), seed.draw_rows(50, 25, number)) for number in range(2000)])
    together = (draws.T.astype(float) @ draws)[np.triu_indices(50, 1)] / len(draws)
    assert np.abs(together - 25 * 24 / (50 * 49)).max() < 5 * (0.245 * 0.755 / len(draws)) ** 0.5


def test_a_draw_depends_on_the_seed_alone_and_grows_by_adding() -> None:
    rows = seed.draw_rows(10_000, 500, 7)
    assert np.array_equal(rows, seed.draw_rows(10_000, 500, 7))
    assert not np.array_equal(rows, seed.draw_rows(10_000, 500, 8))
    assert np.all(np.diff(rows.astype(np.int64)) > 0)
    assert set(rows) < set(seed.draw_rows(10_000, 600, 7))


@pytest.mark.parametrize(
    ("size", "total", "count"),
    [
        (None, 300, 300),
        (None, 512, 512),
        (None, 20_000, 512),
        (None, 665_298, 6653),
        ("2%", 1000, 20),
        (40, 40, 40),
    ],
)
def test_size_of_the_draw(size: str | int | None, total: int, count: int) -> None:
    assert seed.seed_count(None if size is None else Amount.parse(size), total) == count


def test_an_epoch_sees_every_row_once_in_a_new_order() -> None:
    rows = list(range(100, 150))
    order = seed.training_order(rows, 2.5, seed=3)
    assert len(order) == 125
    first, second, third = order[:50], order[50:100], order[100:]
    assert sorted(first) == sorted(second) == rows
    assert len(set(third)) == 25
    assert first != second


def test_the_first_loss_is_that_of_the_answer_tokens_alone(
    tuned: Path, tiny_model: Path, tiny_pool: TinyPool
) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    processor = AutoProcessor.from_pretrained(tiny_model)
    nll = tokens = 0
    for row in first_batch(tuned, seed_epochs=2.0):
        record = tiny_pool.records[row]
        names = record.get("image", [])
        pictures = iter([names] if isinstance(names, str) else names)
        ids: list[int] = [processor.tokenizer.bos_token_id]
        counted: list[bool] = [False]
        pixels = []
        for turn in record["conversations"]:
            role = {"human": "<|user|>", "gpt": "<|assistant|>"}[turn["from"]]
            text = turn["value"]
            marks = text.count("<image>\n")
            for _ in range(marks):
                picture = Image.open(tiny_pool.images / next(pictures))
                pixels.append(processor.image_processor(picture, return_tensors="pt")["pixel_values"])
            is_answer = turn["from"] == "gpt"
            piece = processor.tokenizer(
                role + "<image>" * 16 * marks + text.replace("<image>\n", "") + "</s>" * is_answer
            )["input_ids"]
            ids += piece
            counted += [False] + [is_answer] * (len(piece) - 1)
        inputs = {"pixel_values": torch.cat(pixels)} if pixels else {}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0].double()
        log_p = torch.log_softmax(logits, -1)
        for position in range(1, len(ids)):
            if counted[position]:
                nll -= log_p[position - 1, ids[position]].item()
                tokens += 1
    assert log_of(tuned)[0]["loss"] == pytest.approx(nll / tokens, rel=1e-5)


def test_the_split_into_micro_batches_does_not_change_the_training(
    tuned: Path, tmp_path: Path, tiny_pool: TinyPool, tiny_model: Path
) -> None:
    write_pool(tmp_path / "run", tiny_pool)
    options = {**QUICK, "seed_micro_batch": 8, "seed_size": Amount.parse(32), "seed_epochs": 2.0}
    tune(tmp_path / "run", model=str(tiny_model), seed_learning_rate=1e-2, **options)
    ours, theirs = ([line["loss"] for line in log_of(folder)] for folder in (tuned, tmp_path / "run"))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_the_loss_falls_on_what_can_be_memorised(ingested: Path, tiny_model: Path) -> None:
    options = {**QUICK, "seed_size": Amount.parse(8), "seed_epochs": 40.0, "seed_learning_rate": 2e-2}
    counts = tune(ingested, model=str(tiny_model), **options)
    assert counts["steps"] == 40
    assert counts["last_loss"] < 0.5 * counts["first_loss"]


def test_counts_and_files(tuned: Path) -> None:
    counts = json.loads((tuned / "counts.json").read_text())
    steps = [line for line in log_of(tuned) if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert counts["steps"] == 8
    assert counts["first_loss"] == steps[0]["loss"]
    assert counts["last_loss"] == steps[-1]["loss"]
    assert counts["model"] == "seed/model"
    assert (counts["seed_samples"], counts["left_out"]) == (32, {})
    rows = open_arrow(tuned / "seed" / "indices.arrow")["row"]
    assert rows.type == pa.uint64()
    assert rows.to_pylist() == seed.draw_rows(60, 32, 0).tolist()
    assert {path.name for path in (tuned / "seed").iterdir()} == {
        "adapter",
        "checkpoints",  # removed with the plan when the record of the stage is written
        "indices.arrow",
        "log.jsonl",
        "model",
        "plan.json",
    }
    kept = [path for path in tuned.rglob("*") if "checkpoints" not in path.parts]
    assert not [path for path in kept if path.suffix in (".bin", ".pt")]


def test_the_adapter_sits_on_the_language_model_and_the_projector(tuned: Path) -> None:
    from safetensors import safe_open

    counts = json.loads((tuned / "counts.json").read_text())
    with safe_open(tuned / "seed" / "adapter" / "adapter_model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    lora = {name for name in tensors if ".lora_" in name}
    # Two layers with four attention and three feed-forward matrices, two LoRA matrices each.
    assert len(lora) == 2 * 7 * 2
    assert all(".language_model.layers." in name for name in lora)
    assert {name.rpartition("multi_modal_projector.")[2] for name in set(tensors) - lora} == {
        "linear_1.weight",
        "linear_1.bias",
        "linear_2.weight",
        "linear_2.bias",
    }
    assert counts["trainable_parameters"] == sum(tensor.size for tensor in tensors.values())


def test_the_merged_model_is_the_tuned_one(tuned: Path, tiny_model: Path, tiny_pool: TinyPool) -> None:
    import torch
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    merged = AutoModelForImageTextToText.from_pretrained(tuned / "seed" / "model").eval()
    processor = AutoProcessor.from_pretrained(tuned / "seed" / "model")
    base = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    picture = Image.open(next(tiny_pool.images.iterdir()))
    inputs = processor(text=["<s><|user|><image>What is this?"], images=[[picture]], return_tensors="pt")
    with torch.no_grad():
        before = base(**inputs).logits
        adapted = PeftModel.from_pretrained(base, tuned / "seed" / "adapter").eval()
        expected, found = adapted(**inputs).logits, merged(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 0.1
    assert getattr(merged.config, "use_cache", True)


class Recorder(SilentProgress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.updates: list[int] = []
        self.stages: list[str] = []

    def start(self, stage: str, total: int | None = None, unit: str = "samples") -> None:
        self.stages.append(unit)
        self.updates = []

    def update(self, done: int, **fields: float | str) -> None:
        self.updates.append(done)


KILLED = {"seed_size": Amount.parse(48), "seed_epochs": 4.0, "seed_learning_rate": 5e-3, **QUICK}  # 24 steps


def start(folder: Path, model: Path) -> subprocess.Popen[bytes]:
    """Tune in a process of its own."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]);"
        "import test_seed; test_seed.tune(Path(sys.argv[1]), model=sys.argv[2], **test_seed.KILLED)"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(model), str(Path(__file__).parent)]
    return subprocess.Popen(arguments, env=os.environ)


def kill_after(folder: Path, model: Path, step: int) -> None:
    """Start a training and kill it as soon as its log shows a step."""
    process = start(folder, model)
    log = folder / "seed" / "log.jsonl"
    wanted = f'"step": {step},'
    try:
        while process.poll() is None and not (log.exists() and wanted in log.read_text()):
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"


def test_a_killed_training_goes_on_and_ends_the_same(
    tmp_path: Path, tiny_pool: TinyPool, tiny_model: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        write_pool(folder, tiny_pool)
    tune(undisturbed, model=str(tiny_model), **KILLED)

    kill_after(killed, tiny_model, 8)
    checkpoints = killed / "seed" / "checkpoints"
    whole = sorted(int(mark.parent.name.rpartition("-")[2]) for mark in checkpoints.glob("*/whole"))
    assert whole
    assert not (killed / "seed" / "model").exists()
    # A checkpoint that a kill cut off: without its mark, and with half of its weights.
    cut = checkpoints / f"checkpoint-{max(whole) + 3}"
    (checkpoints / f"checkpoint-{max(whole)}").rename(cut)
    (cut / "whole").unlink()
    (cut / "adapter_model.safetensors").write_bytes(b"cut")

    recorder = Recorder()
    with RunDirectory(killed) as run:
        seed.run(run, SeedOptions(model=str(tiny_model), **KILLED), recorder)
    assert recorder.stages == ["steps"], "the samples were checked again"
    assert recorder.updates[0] == (whole[-2] if len(whole) > 1 else 0)
    assert recorder.updates[-1] == 24
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "model/model.safetensors",
    ):
        assert (killed / "seed" / name).read_bytes() == (undisturbed / "seed" / name).read_bytes(), name
    assert [line["loss"] for line in log_of(killed)] == [line["loss"] for line in log_of(undisturbed)]


def test_images_of_a_store_make_the_same_model(
    tuned: Path, tmp_path: Path, tiny_pool: TinyPool, tiny_model: Path
) -> None:
    with serving(tiny_pool.images) as web:
        write_pool(tmp_path / "run", tiny_pool, web.url)
        tune(tmp_path / "run", model=str(tiny_model), **TUNED)
        assert web.asked > 64  # checked once, seen twice, some without an image
    for name in ("indices.arrow", "adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (tmp_path / "run" / "seed" / name).read_bytes() == (tuned / "seed" / name).read_bytes(), name


def test_another_training_does_not_go_on_from_the_checkpoints(
    tmp_path: Path, tiny_pool: TinyPool, tiny_model: Path
) -> None:
    class Stops(Recorder):
        def update(self, done: int, **fields: float | str) -> None:
            if self.stages[-1] == "steps" and done == 5:
                raise KeyboardInterrupt

    write_pool(tmp_path / "run", tiny_pool)
    options = {"model": str(tiny_model), **KILLED}
    recorder = Recorder()
    with RunDirectory(tmp_path / "run") as run:
        with pytest.raises(KeyboardInterrupt):
            seed.run(run, SeedOptions(**options), Stops())
        assert [*run.seed.glob("checkpoints/*/whole")]
        seed.run(run, SeedOptions(**{**options, "lora_rank": 2}), recorder)
    assert recorder.stages == ["samples", "steps"]
    assert recorder.updates[0] == 0


def test_samples_that_cannot_be_used_are_left_out_and_named(
    tmp_path: Path, tiny_pool: TinyPool, tiny_model: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for image in tiny_pool.images.iterdir():
        (images / image.name).write_bytes(image.read_bytes())
    broken = "captions-0-0.png"
    (images / broken).write_bytes((images / broken).read_bytes()[:100])
    write_pool(tmp_path / "run", TinyPool(tiny_pool.path, images, tiny_pool.records))
    counts = tune(tmp_path / "run", model=str(tiny_model), seed_max_tokens=90, **QUICK)

    lines = [line for line in log_of(tmp_path / "run") if line["event"] == "left-out"]
    by_code = {}
    for line in lines:
        by_code.setdefault(line["reason"].partition(":")[0], []).append(line)
    assert {code: len(found) for code, found in by_code.items()} == counts["left_out"]
    (unreadable,) = by_code["image-unreadable"]
    assert (unreadable["row"], unreadable["id"]) == (0, "captions-0")
    assert broken in unreadable["reason"]
    assert by_code["too-long"]
    assert counts["seed_samples"] == 60 - len(lines)
    used = open_arrow(tmp_path / "run" / "seed" / "indices.arrow")["row"].to_pylist()
    assert sorted(used + [line["row"] for line in lines]) == list(range(60))


def test_nothing_is_printed(ingested: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tune(ingested, model=str(tiny_model), seed_size=Amount.parse(8), **QUICK)
    assert capfd.readouterr() == ("", "")


def test_a_seed_model_is_used_as_it_is(ingested: Path, tiny_model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_model.iterdir()}
    counts = tune(ingested, seed_model=tiny_model)
    assert counts == {"model": str(tiny_model.resolve()), "seed_samples": 0, "left_out": {}}
    assert open_arrow(ingested / "seed" / "indices.arrow").num_rows == 0
    assert not (ingested / "seed" / "model").exists()
    assert {path: path.stat().st_mtime_ns for path in tiny_model.iterdir()} == before


@pytest.fixture
def damaged(tmp_path: Path, tiny_model: Path) -> Iterator[Path]:
    """A copy of the model to spoil."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize("option", ["model", "seed_model"])
def test_directories_that_hold_no_model(ingested: Path, damaged: Path, option: str) -> None:
    def attempt(path: Path) -> None:
        tune(ingested, **{option: path if option == "seed_model" else str(path)})

    with pytest.raises(UsageError, match="does not exist"):
        attempt(damaged / "nowhere")
    with pytest.raises(UsageError, match="is a file"):
        attempt(damaged / "config.json")
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled \(pytorch_model\.bin\).*save_pretrained"):
        attempt(damaged)
    (damaged / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no weights"):
        attempt(damaged)
    (damaged / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        attempt(damaged)


def test_weights_that_do_not_fit(ingested: Path, damaged: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    head = next(name for name in weights if "lm_head" in name)
    save_file({name: weights[name] for name in weights if name != head}, damaged / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack 1 tensors \(lm_head"):
        tune(ingested, model=str(damaged), **QUICK)
    (damaged / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="cannot be loaded"):
        tune(ingested, model=str(damaged), **QUICK)


def test_a_loss_that_is_no_number_stops_the_training(ingested: Path, damaged: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    weights[next(name for name in weights if "lm_head" in name)] *= np.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"loss is nan at step 1 .*--seed-learning-rate"):
        tune(ingested, model=str(damaged), **QUICK)


def test_a_hub_model_that_cannot_be_reached(ingested: Path) -> None:
    with pytest.raises(ModelError, match="no-such/model-anywhere cannot be loaded"):
        tune(ingested, model="no-such/model-anywhere", **QUICK)


def test_a_model_that_is_not_for_images(ingested: Path, damaged: Path) -> None:
    (damaged / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="cannot be loaded as an image-text-to-text model"):
        tune(ingested, model=str(damaged), **QUICK)


def test_too_long_samples_alone(ingested: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"none of the 60 .*\(60 too-long\).*--seed-max-tokens"):
        tune(ingested, model=str(tiny_model), seed_max_tokens=3, **QUICK)
    assert not (ingested / "seed" / "indices.arrow").exists()


def test_wrong_options(ingested: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="--model is missing"):
        tune(ingested)
    with pytest.raises(UsageError, match="--seed-size: 61 is more than the 60 samples"):
        tune(ingested, model=str(tiny_model), seed_size=Amount.parse(61))


def test_a_missing_package_is_named(
    ingested: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(MissingPackageError, match=r"needs peft: pip install 'mllm-selector\[train\]'"):
        tune(ingested, model=str(tiny_model))

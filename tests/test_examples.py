"""Every example does what it says, with the trainer itself or against the format that it documents."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import load_dataset, load_from_disk

import mllm_selector
from conftest import TinyPool
from mllm_selector import cli

KINDS = ("role", "content", "user", "assistant", "observation", "function", "system")
EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chosen(run: Path, pool: TinyPool) -> list[dict]:
    """The chosen records, found by their ids."""
    by_id = {record["id"]: record for record in pool.records}
    return [by_id[name] for name in mllm_selector.Selection.load(run).ids]


def shown(record: dict) -> list[str]:
    image = record.get("image", [])
    return [image] if isinstance(image, str) else image


@pytest.fixture(scope="module")
def messages(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("messages") / "subset.jsonl"
    load("as_messages").main(tiny_run, out)
    return out


def test_messages_are_those_of_the_chosen_records(tiny_run, tiny_pool, messages):
    roles = {"human": "user", "gpt": "assistant"}
    expected = [
        {
            "messages": [
                {"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversations"]
            ],
            "images": [str(tiny_pool.images / name) for name in shown(record)],
        }
        for record in chosen(tiny_run, tiny_pool)
    ]
    assert [json.loads(line) for line in messages.read_text().splitlines()] == expected


def test_llama_factory_finds_turns_and_images(messages, tmp_path):
    """As its data/README.md says: a file in dataset_dir, columns and tags by the names in the entry."""
    info = json.loads((EXAMPLES / "llama_factory" / "dataset_info.json").read_text())
    allowed = {
        "columns": {"messages", "images", "system", "tools", "videos", "audios"},
        "tags": {
            f"{kind}_tag"
            for kind in ("role", "content", "user", "assistant", "observation", "function", "system")
        },
    }
    for entry in info.values():
        assert entry["formatting"] == "sharegpt"
        assert set(entry) <= {"file_name", "formatting", *allowed}
        assert all(set(entry.get(name, {})) <= names for name, names in allowed.items())
    entry, tags = info["subset"], info["subset"]["tags"]
    shutil.copy(messages, tmp_path / entry["file_name"])
    rows = load_dataset(
        "json", data_files=str(tmp_path / entry["file_name"]), split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == 12
    for row in rows:
        turns = row[entry["columns"]["messages"]]
        assert [turn[tags["role_tag"]] for turn in turns] == [
            tags["user_tag"] if place % 2 == 0 else tags["assistant_tag"] for place in range(len(turns))
        ]
        images = row[entry["columns"]["images"]]
        assert sum(turn[tags["content_tag"]].count("<image>") for turn in turns) == len(images)
        assert all(Path(image).is_file() for image in images)


def test_a_sharegpt_subset_fits_the_other_entry(tiny_pool, tmp_path):
    """The subset of a ShareGPT pool is what LLaMA-Factory reads, without any conversion."""
    entry = json.loads((EXAMPLES / "llama_factory" / "dataset_info.json").read_text())["sharegpt_subset"]
    record = {
        "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A box."}],
        "images": [next(iter(tiny_pool.images.iterdir())).name],
    }
    pool = tmp_path / "pool.json"
    pool.write_text(json.dumps([record] * 2))
    arguments = [str(pool), "--images", str(tiny_pool.images), "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert cli.main(["ingest", *arguments]) == 0
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]["ingest"]["counts"]
    assert counts["format"] == "sharegpt-json"
    assert set(entry["columns"].values()) == set(record)


def stand_in(folder: Path, name: str) -> dict[str, str]:
    """Put a program into the path that writes down its arguments, a line each."""
    folder.mkdir()
    program = folder / name
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {folder}/arguments\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path}


def arguments_of(folder: Path) -> dict[str, str]:
    words = (folder / "arguments").read_text().splitlines()
    return {name: value for name, value in itertools.pairwise(words) if name.startswith("--")}


def test_ms_swift_gets_a_data_set_of_its_standard_format(tiny_run, tmp_path):
    env = stand_in(tmp_path / "bin", "swift")
    subprocess.run(["bash", EXAMPLES / "ms_swift.sh", tiny_run], cwd=tmp_path, env=env, check=True)
    given = arguments_of(tmp_path / "bin")
    rows = [json.loads(line) for line in (tmp_path / given["--dataset"]).read_text().splitlines()]
    assert len(rows) == 12
    assert all(set(row) == {"messages", "images"} for row in rows)
    assert all({turn["role"] for turn in row["messages"]} <= {"system", "user", "assistant"} for row in rows)


def test_llava_gets_records_and_a_folder(tiny_run, tiny_pool, tmp_path):
    env = stand_in(tmp_path / "bin", "deepspeed")
    subprocess.run(["bash", EXAMPLES / "llava.sh", tiny_run, tiny_pool.images], env=env, check=True)
    given = arguments_of(tmp_path / "bin")
    records = json.loads(Path(given["--data_path"]).read_text())
    assert records == chosen(tiny_run, tiny_pool)
    for record in records:  # as LLaVA's LazySupervisedDataset reads one
        assert all({"from", "value"} <= set(turn) for turn in record["conversations"])
        if isinstance(record.get("image"), str):
            assert Path(given["--image_folder"], record["image"]).is_file()


def test_trl_trains_on_it(tiny_model, messages, tmp_path):
    trl_sft = load("trl_sft")
    assert trl_sft.parts("<image>\n<image>\nWhat is <b>?") == [
        {"type": "image", "text": ""},
        {"type": "image", "text": ""},
        {"type": "text", "text": "What is <b>?"},
    ]
    out = tmp_path / "tuned"
    trainer = trl_sft.main(
        str(tiny_model),
        messages,
        str(out),
        max_steps=2,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        bf16=False,
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert (out / "model.safetensors").is_file()


def test_hf_datasets_select_the_same_rows(tiny_run, tiny_pool, tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"id": [record["id"] for record in tiny_pool.records]}).save_to_disk(tmp_path / "pool")
    load("hf_datasets").main(tiny_run, tmp_path / "pool", tmp_path / "out")
    assert load_from_disk(tmp_path / "out")["id"] == [record["id"] for record in chosen(tiny_run, tiny_pool)]


def test_hf_datasets_refuses_rows_that_do_not_agree(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "rejected.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match="not empty"):
        load("hf_datasets").main(run, tmp_path, tmp_path / "out")


def test_a_torch_loader_gives_the_chosen_samples(tiny_run, tiny_pool):
    loader = load("torch_subset").loader(tiny_run, batch_size=5)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    seen = sorted(sample.id for batch in batches for sample in batch)
    assert seen == sorted(record["id"] for record in chosen(tiny_run, tiny_pool))


def test_own_scores_are_chosen_by(tmp_path, capsys):
    random = np.random.default_rng(0)
    np.save(tmp_path / "scores.npy", random.random(200, np.float32))
    np.save(tmp_path / "embeddings.npy", random.standard_normal((200, 8), np.float32))
    load("own_scores").main(str(tmp_path / "scores.npy"), str(tmp_path / "embeddings.npy"), "10%")
    rows = [int(line) for line in capsys.readouterr().out.split()]
    assert len(set(rows)) == 20
    assert all(0 <= row < 200 for row in rows)


def test_every_example_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    files = [path for path in EXAMPLES.rglob("*") if path.suffix in {".py", ".sh", ".json"}]
    assert len(files) >= 8
    assert all(f"`{path.relative_to(EXAMPLES)}" in table for path in files)

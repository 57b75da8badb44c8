"""The registry: formats are recognised by content, folders are their files, other packages add formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from format_fixtures import table, write_datasets, write_file, write_parquet, write_stream, write_tar
from mllm_selector import formats
from mllm_selector.artifacts import atomic_folder
from mllm_selector.config import IngestOptions
from mllm_selector.errors import RunDirectoryError, UsageError
from mllm_selector.pipeline import build_options, run_stages
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory, StageRecord, stage_key
from mllm_selector.selection import Selection
from plugin_fixtures import install

RECORD = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    formats.known.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    formats.known.cache_clear()


def write_all(folder: Path) -> dict[str, Path]:
    """Write pools whose names say nothing of what they are."""
    (folder / "b").write_text(json.dumps([RECORD]))
    (folder / "c").write_text(json.dumps(RECORD))
    return {
        "llava-json": folder / "b",
        "llava-jsonl": folder / "c",
        "parquet": write_parquet(folder / "d", table(range(3))),
        "arrow": write_file(folder / "e", table(range(3))),
        "webdataset": write_tar(folder / "f", range(3)),
        "datasets": write_datasets(folder / "g", table(range(3)), shards=1),
    }


def found(path: Path) -> str:
    options = IngestOptions(pool=path)
    return formats.find(IngestOptions(pool=formats.expanded(options.pool))).name


def test_every_format_is_recognised_by_its_content(tmp_path):
    for name, path in write_all(tmp_path).items():
        assert found(path) == name
    assert found(write_stream(tmp_path / "h", table(range(3)))) == "arrow"
    for name, content in {"empty": b"", "zeros": bytes(600), "text": b"1,2\n", "short": b"\xff\xff"}.items():
        (tmp_path / name).write_bytes(content)
        assert found(tmp_path / name) == "llava-json"


def test_inputs_of_several_formats_are_an_error(tmp_path):
    pools = write_all(tmp_path)
    with pytest.raises(UsageError, match=r"d is parquet, .*e is arrow; one pool has one format"):
        formats.find(IngestOptions(pool=[pools["parquet"], pools["arrow"]]))
    with pytest.raises(UsageError, match="--format: 'parkett' is not one of auto, "):
        formats.find(IngestOptions(pool=pools["parquet"], format="parkett"))


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (2, 0, 1):
        write_tar(folder / f"{number:06d}.tar", range(number * 5, number * 5 + 5))
    (folder / "README.md").write_text("about")
    (folder / ".hidden.tar").write_text("")
    run_stages(tmp_path / "run", build_options({"pool": folder}, ["ingest"]))
    with RunDirectory(tmp_path / "run") as run:
        pool = Pool.of(run)
        assert pool.ids(range(15)) == [f"w{number}" for number in range(15)]
        assert pool.sources()[1] == ["shards"]
        with pytest.raises(UsageError, match="is the pool itself"):
            formats.write_subset(run, np.arange(3), folder)


def test_a_folder_that_does_not_say_what_is_meant_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"holds no file that ends in \.parquet"):
        formats.expanded(IngestOptions(pool=tmp_path).pool)
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.tar").write_text("")
    with pytest.raises(UsageError, match=r"holds files of several kinds \(.json, .tar\); name the files"):
        formats.expanded(IngestOptions(pool=tmp_path).pool)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        run_stages(tmp_path / "run", build_options({"pool": tmp_path / "nowhere"}, ["ingest"]))


PLUGIN = '''
from contextlib import contextmanager
import pyarrow as pa
from pyarrow import csv
from mllm_selector.artifacts import atomic_write
from mllm_selector.formats.tables import RowFile, RowFormat, head

TALK = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema([("id", pa.string()), ("messages", TALK)])


class Pairs(RowFormat):
    """Tab-separated questions and answers."""

    name = "pairs"
    ending = ".tsv"

    def recognises(self, paths):
        return all(head(path, 3) == b"id\\t" for path in paths)

    def open(self, path):
        rows = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\\t")).to_pylist()
        content = pa.Table.from_pylist(
            [
                {
                    "id": row["id"],
                    "messages": [
                        {"role": "user", "content": row["question"]},
                        {"role": "assistant", "content": row["answer"]},
                    ],
                }
                for row in rows
            ],
            SCHEMA,
        )

        def batches(columns, wanted):
            yield 0, content.select(columns or SCHEMA.names).combine_chunks().to_batches()[0]

        return RowFile(path, SCHEMA, len(content), batches)

    @contextmanager
    def writer(self, out, schema, like):
        with atomic_write(out) as file:
            file.write(b"id\\tquestion\\tanswer\\n")
            yield Lines(file)


class Lines:
    def __init__(self, file):
        self.file = file

    def write_batch(self, batch):
        for row in batch.to_pylist():
            question, answer = (turn["content"] for turn in row["messages"])
            self.file.write(f"{row['id']}\\t{question}\\t{answer}\\n".encode())
'''


def test_another_package_adds_a_format(tmp_path, registry):
    install(tmp_path, registry, formats.ENTRY_POINTS, "pairs_format", PLUGIN, "Pairs")
    lines = [f"n{number}\tWie {number}?\tSo." for number in range(9)]
    pool = tmp_path / "mix.tsv"
    pool.write_text("\n".join(["id\tquestion\tanswer", *lines]) + "\n")
    run_stages(tmp_path / "run", build_options({"pool": pool}, ["ingest"]))
    with RunDirectory(tmp_path / "run") as run:
        opened = Pool.of(run)
        assert opened.format == "pairs"
        assert opened.sample(4).messages == (("user", "Wie 4?"), ("assistant", "So."))
        assert formats.subset_suffix(run) == ".tsv"
        formats.write_subset(run, np.array([5, 1, 2]), tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_text().splitlines()[1:] == [lines[row] for row in (5, 1, 2)]


def test_a_wheel_that_pip_installs_adds_a_format(tmp_path):
    files = {
        "tsv_pairs.py": PLUGIN,
        "tsv_pairs-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tsv_pairs\nVersion: 1.0\n",
        "tsv_pairs-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tsv_pairs-1.0.dist-info/entry_points.txt": f"[{formats.ENTRY_POINTS}]\npairs = tsv_pairs:Pairs\n",
    }
    files["tsv_pairs-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    wheel = tmp_path / "tsv_pairs-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    site, pool, run = tmp_path / "site", tmp_path / "mix.tsv", tmp_path / "run"
    pool.write_text("id\tquestion\tanswer\na\tWie?\tSo.\n")
    flags = ["--no-index", "--no-deps", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(wheel)], check=True)
    command = [sys.executable, "-m", "mllm_selector", "ingest", str(pool), "--run-dir", str(run)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(site)})
    assert Pool.open(run / "pool.arrow").format == "pairs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "raise RuntimeError('no luck')",
            r"the format 'added' \(broken_format:Pairs\) cannot be loaded: .*no luck",
        ),
        ("class Pairs:\n    name = 'parquet'", "has the name 'parquet', which another has"),
    ],
)
def test_a_format_that_cannot_be_added_is_named(tmp_path, registry, text, message):
    install(tmp_path, registry, formats.ENTRY_POINTS, "broken_format", text, "Pairs")
    with pytest.raises(UsageError, match=message):
        formats.known()


def selection_of(folder: Path) -> Selection:
    """Return a selection whose subset is a folder."""
    with RunDirectory(folder) as run:
        with atomic_folder(run.path / "subset") as subset:
            (subset / "000000.tar").write_bytes(b"x")
        run.stages["ingest"] = StageRecord("done", "made", options={"pool": str(folder / "pool.tar")})
        run.stages["pick"] = StageRecord("done", stage_key("pick", {}, {}), counts={"subset": "subset"})
        run.save()
        columns: dict[str, Any] = {
            "row": pa.array([0], pa.uint64()),
            "id": pa.array(["a"], pa.large_utf8()),
            "order": pa.array([0], pa.uint32()),
            "group": pa.array([0], pa.int32()),
            "necessity": pa.array([0.5], pa.float32()),
            "seed": pa.array([False]),
        }
        content = pa.table(columns)
        with pa.ipc.new_file(str(run.selection), content.schema) as writer:
            writer.write_table(content)
    return Selection.load(folder)


def test_a_subset_that_is_a_folder_is_copied_but_never_over_something_else(tmp_path):
    selection = selection_of(tmp_path / "run")
    selection.write(tmp_path / "out")
    assert (tmp_path / "out" / "000000.tar").read_bytes() == b"x"
    selection.write(tmp_path / "out")  # again, as a command does that goes on
    (tmp_path / "out" / "000000.tar").write_bytes(b"y")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for taken in (tmp_path / "out", tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(UsageError, match="is there already; the subset is a folder, so name a new one"):
            selection.write(taken)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    (tmp_path / "run" / "subset" / "000000.tar").unlink()
    (tmp_path / "run" / "subset").rmdir()
    with pytest.raises(RunDirectoryError, match="subset is missing"):
        selection.write(tmp_path / "new")

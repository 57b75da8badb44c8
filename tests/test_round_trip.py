"""Every format by the command line: ingest, pick 100 %, and the same records come back, in both orders."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from format_fixtures import record, table, write_datasets, write_file, write_parquet, write_stream, write_tar
from mllm_selector import cli
from mllm_selector.artifacts import score_schema, write_arrow
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.selection import Selection

PARTS = (range(11), range(11, 15), range(15, 29))
"""Numbers of the samples in each input."""


def paths(number: int) -> list[str]:
    return [f"a/{number}-{place}.png" for place in range(len(record(number)["images"]))]


def llava(number: int) -> dict[str, Any]:
    roles = {"user": "human", "assistant": "gpt"}
    turns = [{"from": roles[turn["role"]], "value": turn["content"]} for turn in record(number)["messages"]]
    images = paths(number)
    image = {} if not images else {"image": images[0] if len(images) == 1 else images}
    return {"id": number, **image, "conversations": turns}


def sharegpt(number: int) -> dict[str, Any]:
    talk = llava(number)["conversations"]
    return {"conversations": talk, "images": paths(number), "system": "Be brief."}


def messages(number: int) -> dict[str, Any]:
    """Write an odd number's question as content parts."""
    question, answer = record(number)["messages"]
    if number % 2:
        marks = [{"type": "image"}] * len(paths(number))
        question = {"role": "user", "content": [*marks, {"type": "text", "text": f"Nummer {number}?"}]}
    return {"id": f"m{number}", "messages": [question, answer], "images": paths(number)}


def text_of(number: int, talk: dict[str, Any]) -> bytes:
    """Spell records differently: escapes, white space, a field that nobody knows, the form of a number."""
    spaces = (", ", ": ") if number % 3 else (",", ":")
    text = json.dumps(
        {"more": {"x": [number, None]}, **talk}, ensure_ascii=bool(number % 2), separators=spaces
    )
    return text.replace("null", "-1.50e+007" if number % 5 else "null").encode()


Record = tuple[str, bytes] | bytes | dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How a pool is written for the test, and what is in a file or folder, read by other means than ours."""

    write: Callable[[Path, Sequence[int]], Path]
    """Takes a path without suffix and numbers of samples."""
    read: Callable[[Path], Any]
    """Returns a list of bytes or pairs, or an Arrow table."""


def text_format(talk: Callable[[int], dict[str, Any]], framing: str, packing: str = "") -> Format:
    suffix = f".{framing}{packing}"

    def write(path: Path, numbers: Sequence[int]) -> Path:
        records = [text_of(number, talk(number)) for number in numbers]
        content = b"[\n" + b",\n".join(records) + b"\n]\n" if framing == "json" else b"\n".join(records)
        path = path.with_suffix(suffix)
        with open_packed(path, "wb") as file:
            file.write(content)
        return path

    def read(path: Path) -> list[bytes]:
        assert path.name.endswith(suffix)
        with open_packed(path, "rb") as file:
            lines = file.read().splitlines()
        if framing == "jsonl":
            return lines
        assert (lines[0], lines[-1]) == (b"[", b"]")
        return [line.removesuffix(b",") for line in lines[1:-1]]

    return Format(write, read)


def open_packed(path: Path, mode: str) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, mode)
    if path.suffix == ".zst":
        return (pa.input_stream if mode == "rb" else pa.output_stream)(str(path), compression="zstd")
    return path.open(mode)


def row_format(suffix: str, write: Callable[..., Path], read: Callable[[Path], pa.Table]) -> Format:
    return Format(lambda path, numbers: write(path.with_suffix(suffix), table(numbers)), read)


def read_tars(path: Path) -> list[tuple[str, bytes]]:
    found = []
    for shard in sorted(path.iterdir()) if path.is_dir() else [path]:
        with tarfile.open(shard) as tar:
            found += [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]
    return found


def read_ipc(path: Path) -> pa.Table:
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(str(path)).read_all()


FORMATS = {
    "llava-json": text_format(llava, "json"),
    "llava-jsonl": text_format(llava, "jsonl"),
    "llava-jsonl gzip": text_format(llava, "jsonl", ".gz"),
    "llava-json zstd": text_format(llava, "json", ".zst"),
    "sharegpt-json": text_format(sharegpt, "json"),
    "sharegpt-jsonl zstd": text_format(sharegpt, "jsonl", ".zst"),
    "messages-json gzip": text_format(messages, "json", ".gz"),
    "messages-jsonl": text_format(messages, "jsonl"),
    "parquet": row_format(".parquet", write_parquet, pq.read_table),
    "arrow": row_format(".arrow", write_file, read_ipc),
    "arrow stream": row_format(".arrow", write_stream, read_ipc),
    "datasets": row_format("", write_datasets, lambda path: datasets.load_from_disk(str(path)).data.table),
    "webdataset": Format(lambda path, numbers: write_tar(path.with_suffix(".tar"), numbers), read_tars),
}


def by_sample(content: Any) -> Any:
    """Put the members of a tar's sample together."""
    if not isinstance(content, list) or not isinstance(content[0], tuple):
        return content
    samples: dict[str, list[tuple[str, bytes]]] = {}
    for name, member in content:
        samples.setdefault(name.partition(".")[0], []).append((name, member))
    return list(samples.values())


def in_order(content: Any, rows: list[int]) -> Any:
    return content.take(pa.array(rows)) if isinstance(content, pa.Table) else [content[row] for row in rows]


def joined(contents: list[Any]) -> Any:
    if isinstance(contents[0], pa.Table):
        return pa.concat_tables(contents)
    return [entry for content in contents for entry in content]


def give_scores(run_dir: Path, samples: int) -> None:
    """Enter what the stages between ingest and pick leave."""
    necessity = np.random.default_rng(1).gamma(2, size=samples).astype(np.float32)
    columns = [
        pa.array(np.arange(samples, dtype=np.uint64)),
        pa.array(necessity),
        pa.array(np.ones(samples, np.uint32)),
        pa.array(necessity),
        pa.nulls(samples, pa.utf8()),
        pa.array([[]] * samples, score_schema(2).field("missing").type),
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.ones(2 * samples, np.float16)), type=score_schema(2).field("embedding").type
        ),
    ]
    with RunDirectory(run_dir) as run:
        write_arrow(run.score_part(0), pa.table(columns, schema=score_schema(2)))
        write_arrow(run.seed_rows, pa.table({"row": pa.array([], pa.uint64())}))
        run.stages["score"] = StageRecord("done", key="given")
        run.save()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a").mkdir()
    for number in range(PARTS[-1].stop):
        for path, image in zip(paths(number), record(number)["images"], strict=True):
            (folder / path).write_bytes(image["bytes"])
    return folder


@pytest.mark.parametrize("is_several", [False, True], ids=["one input", "several inputs"])
@pytest.mark.parametrize("name", FORMATS)
def test_all_records_come_back(name, is_several, pictures, tmp_path):
    numbers = PARTS if is_several else [range(PARTS[-1].stop)]
    written = [FORMATS[name].write(tmp_path / f"{place}-part", part) for place, part in enumerate(numbers)]
    total = sum(map(len, numbers))
    # The first input has a source of its own, a pattern finds the others.
    given = [f"one={written[0]}", f"rest={tmp_path}/[1-9]-part*"] if is_several else [str(written[0])]
    run = tmp_path / "run"
    folder = ["--images", str(pictures)]
    assert cli.main(["ingest", *given, *folder, "--strict", "--quiet", "--run-dir", str(run)]) == 0
    with RunDirectory(run) as opened:
        pool = Pool.of(opened)
    assert pool.format == name.partition(" ")[0]
    assert len(pool) == total
    if is_several:
        assert pool.source_counts() == {"one": len(numbers[0]), "rest": total - len(numbers[0])}

    give_scores(run, total)
    content = joined([by_sample(FORMATS[name].read(path)) for path in written])
    for order in ("pool", "chosen"):
        flags = ["--budget", "100%", "--groups", "random", "--order", order]
        assert cli.main(["pick", *flags, "--quiet", "--run-dir", str(run)]) == 0
        selection = Selection.load(run)
        rows = selection.rows.tolist()
        assert sorted(rows) == list(range(total))
        if order == "chosen":
            rows = [rows[place] for place in np.argsort(selection.order).tolist()]
            assert rows != sorted(rows)
        found = by_sample(FORMATS[name].read(selection.subset))
        expected = in_order(content, rows)
        if isinstance(expected, pa.Table):
            assert found.schema.equals(expected.schema, check_metadata=True)
            assert found.to_pylist() == expected.to_pylist()
        else:
            assert found == expected

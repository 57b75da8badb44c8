"""Pools that are read part by part, without a cluster: the files of one reading, whatever the format."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm_selector import formats
from mllm_selector.config import IngestOptions, Inputs
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.formats.parts import _Parts
from mllm_selector.formats.reading import InParts, join_parts, read_part
from mllm_selector.inspection import inspect
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory, StageRecord
from parts_fixtures import INPUTS, write_named


def options_of(folder: Path, inputs: list[Path], **given: Any) -> IngestOptions:
    return IngestOptions(**{"pool": inputs, "images": folder / "images", "threads": 2, **given})


def at_once(folder: Path, options: IngestOptions) -> tuple[list[bytes], dict[str, Any]]:
    return results(folder, "whole", lambda out, rejected: ingest(options, out, rejected))


def ingest(options: IngestOptions, out: Path, rejected: Path) -> dict[str, Any]:
    return formats.find(options).ingest(options, out, rejected, lambda *_: None)


def by_parts(folder: Path, options: IngestOptions) -> tuple[list[bytes], dict[str, Any]]:
    pool_format = formats.find(options)
    assert isinstance(pool_format, InParts)
    parts = []
    for index, entry in enumerate(options.pool.inputs):
        parts.append(folder / f"{index}.part")
        one = IngestOptions(**{**vars(options), "pool": Inputs((entry,))})
        with parts[-1].open("wb") as file:
            read_part(one, pool_format, file)
    return results(
        folder,
        "joined",
        lambda out, rejected: join_parts(options, pool_format.name, parts, out, rejected, lambda *_: None),
    )


def results(
    folder: Path, name: str, make: Callable[[Path, Path], dict[str, Any]]
) -> tuple[list[bytes], dict[str, Any]]:
    files = [folder / f"{name}.arrow", folder / f"{name}.jsonl"]
    counts = make(*files)
    return [file.read_bytes() for file in files], counts


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("duplicates", ["rename", "reject"])
def test_parts_make_the_files_of_one_reading(kind: str, duplicates: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    options = options_of(tmp_path, INPUTS[kind](tmp_path), duplicate_ids=duplicates)
    expected, counts = at_once(tmp_path, options)
    found = by_parts(tmp_path, options)
    assert found == (expected, counts)
    assert counts["samples"] > 20
    if kind != "datasets":
        assert counts["renamed"] if duplicates == "rename" else counts["rejected"]["duplicate-id"]
    if kind in ("json", "jsonl"):
        assert set(counts["rejected"]) >= {"image-missing", "image-unknown", "no-answer"}


def test_sources_and_inputs_are_those_of_the_whole(tmp_path: Path) -> None:
    first, *others = write_named(tmp_path, "jsonl")
    pool = {"ocr": first, "rest": others}
    options = options_of(tmp_path, [], pool=pool, source="other", columns="id=key", check_images="decode")
    expected = at_once(tmp_path, options)
    assert by_parts(tmp_path, options) == expected
    assert expected[1]["sources"].keys() == {"ocr", "rest"}


def test_doctor_says_what_an_unfinished_reading_on_ray_has(tmp_path: Path) -> None:
    """The parts are kept as a command keeps them that is then killed."""
    inputs = write_named(tmp_path, "jsonl", inputs=4)
    options = options_of(tmp_path, inputs, ray="local")
    pool_format = formats.find(options)
    assert isinstance(pool_format, InParts)
    run = RunDirectory(tmp_path / "run")
    with run:
        run.begin("ingest", StageRecord("running", "", options.as_json()))
        kept = _Parts(run, options, pool_format.name, SilentProgress())
        for number in (0, 2):
            content = io.BytesIO()
            one = dataclasses.replace(options, pool=Inputs((options.pool.inputs[number],)))
            read_part(one, pool_format, content)
            kept.keep(number, iter([content.getvalue()]))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    text, healthy = inspect(run.path)
    assert healthy
    assert "ingest           begun on Ray, not done; 2 of 4 inputs are read\n" in text
    assert [str(path) in text for path in inputs] == [True, False, True, False]
    assert "ingest           reads the other 2 inputs, with --ray; without it, all of them" in text
    kept.paths[2].write_bytes(b"cut off")
    inputs[3].unlink()
    assert (
        f"its inputs cannot be looked at: [Errno 2] No such file or directory: '{inputs[3]}'"
        in inspect(run.path)[0]
    )
    inputs[3].write_text(inputs[1].read_text())
    assert "1 of 4 inputs are read" in inspect(run.path)[0]
    assert {
        path: path.stat().st_mtime_ns for path in before if path != kept.paths[2]
    }.items() <= before.items()


def test_what_is_wrong_is_told_alike(tmp_path: Path) -> None:
    inputs = write_named(tmp_path, "json")

    def fails(kind: type[Exception], **given: Any) -> str:
        options = options_of(tmp_path, inputs, **given)
        texts = []
        for make in (at_once, by_parts):
            with pytest.raises(kind) as caught:
                make(tmp_path, options)
            texts.append(str(caught.value).replace("joined.jsonl", "whole.jsonl"))
        assert texts[0] == texts[1]
        return texts[0]

    assert "--strict allows none" in fails(PoolError, strict=True)
    assert "give the folder of the images with --images DIR" in fails(UsageError, images=None)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "more than half" in fails(PoolError, images=empty)
    inputs[1].write_text(inputs[1].read_text()[:-9])
    assert f"{inputs[1]}: " in fails(PoolError)

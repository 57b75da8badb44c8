"""Hugging Face datasets folders, as `Dataset.save_to_disk` writes them: Arrow streams and two JSON files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mllm_selector import _internal
from mllm_selector.artifacts import atomic_folder, write_json
from mllm_selector.errors import PoolError, UsageError
from mllm_selector.formats.arrow import BATCH_ROWS, open_ipc
from mllm_selector.formats.tables import Regrouped, RowFile, RowFormat, RowWriter

__all__ = ["DatasetsFolder", "data_files", "is_dataset"]

STATE = "state.json"
INFO = "dataset_info.json"
SPLITS = "dataset_dict.json"

SHARD_BYTES = 500 << 20
"""Size of a data file, as datasets' own default."""


class DatasetsFolder(RowFormat):
    """A `Dataset` on disk, or one split of a `DatasetDict`."""

    name = "datasets"
    ending = ""

    def recognises(self, paths: Sequence[Path]) -> bool:
        """Look for the state that stands beside the data files of every saved dataset."""
        return all(path.suffix == ".arrow" and (path.parent / STATE).is_file() for path in paths)

    def open(self, path: Path) -> RowFile:
        """Map one data file."""
        return open_ipc(path)

    @contextmanager
    def writer(self, out: Path, schema: pa.Schema, like: Sequence[Path]) -> Iterator[RowWriter]:
        """Write a folder that `datasets.load_from_disk` opens."""
        with atomic_folder(out) as folder:
            shards = _Shards(folder, schema)
            batches = Regrouped(shards.write, BATCH_ROWS)
            yield batches
            batches.flush()
            files = shards.finish()
            _write_state(folder, like[0], files, schema)


class _Shards:
    """Data files of bounded size."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._paths: list[Path] = []
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._bytes = 0

    def write(self, table: pa.Table) -> None:
        """Write a batch, into a new file when the last is full."""
        if self._writer is None or self._bytes + table.nbytes > SHARD_BYTES:
            self._next()
        assert self._writer is not None
        self._writer.write_table(table.combine_chunks())
        self._bytes += table.nbytes

    def _next(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._paths.append(self._folder / f"data-{len(self._paths):05d}.arrow")
        self._writer = pa.ipc.new_stream(str(self._paths[-1]), self._schema)
        self._bytes = 0

    def finish(self) -> list[str]:
        """Close the last file and return the names of all."""
        if self._writer is None:
            self._next()
        assert self._writer is not None
        self._writer.close()
        named = [
            path.with_name(f"data-{number:05d}-of-{len(self._paths):05d}.arrow")
            for number, path in enumerate(self._paths)
        ]
        return [path.rename(name).name for path, name in zip(self._paths, named, strict=True)]


def is_dataset(folder: Path) -> bool:
    """Say whether `save_to_disk` wrote a folder: one dataset, or several splits."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def data_files(folder: Path, split: str | None) -> list[Path]:
    """Return the data files of a dataset on disk in the order of its rows.

    Parameters
    ----------
    folder : Path
        What `save_to_disk` wrote.
    split : str, optional
        Which split of a `DatasetDict`; needed where there are several.

    Raises
    ------
    UsageError
        If it has several splits and none of them is named.
    PoolError
        If its state cannot be read, names files that are not there, or picks rows out of them.
    """
    if (folder / SPLITS).is_file():
        return data_files(folder / _split(folder, split), None)
    if split is not None and split != folder.name:
        msg = f"--split: {folder} is a dataset without splits; leave the option out"
        raise UsageError(msg)
    state = _read(folder / STATE)
    if state.get("_indices_data_files"):
        msg = f"{folder} picks rows out of its files ('_indices_data_files'); save it with newer datasets"
        raise PoolError(msg)
    listed = state.get("_data_files") or []
    names = [str(entry.get("filename")) for entry in listed if isinstance(entry, dict)]
    paths = [folder / name for name in names if _is_file_name(name)]
    if not paths or len(paths) != len(listed):
        msg = f"{folder / STATE} does not list the data files of a dataset ('_data_files')"
        raise PoolError(msg)
    for path in paths:
        if not path.is_file():
            msg = f"{folder / STATE} lists {path.name}, which is not there; copy the whole folder"
            raise PoolError(msg)
    return paths


def _split(folder: Path, split: str | None) -> str:
    names = _read(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not all(map(_is_file_name, names)):
        msg = f"{folder / SPLITS} does not list the splits of a dataset"
        raise PoolError(msg)
    known = ", ".join(names)
    if split is None and len(names) != 1:
        msg = f"{folder} holds the splits {known}: choose one with --split, or name the folder {folder}/SPLIT"
        raise UsageError(msg)
    chosen: str = names[0] if split is None else split
    if chosen not in names:
        msg = f"--split: {folder} has no split '{split}'; there are {known}"
        raise UsageError(msg)
    return chosen


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({error}); it is needed to know which files make up the dataset"
        raise PoolError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} is not an object"
        raise PoolError(msg)
    return content


def _write_state(folder: Path, like: Path, files: list[str], schema: pa.Schema) -> None:
    """Write the JSON files of the first input, less what is no longer true."""
    state = _read(like.parent / STATE)
    state["_data_files"] = [{"filename": name} for name in files]
    # datasets keys its caches by the fingerprint: it must follow from the content.
    content = "".join(_internal.hash_file(str(folder / name)) for name in files)
    state["_fingerprint"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    write_json(folder / STATE, state)
    info = _read(like.parent / INFO)
    if not open_ipc(like).schema.equals(schema):
        # Columns of several inputs: datasets finds their features out from the files.
        info["features"] = None
    for name in ("splits", "dataset_size", "download_size", "size_in_bytes", "download_checksums"):
        info.pop(name, None)
    write_json(folder / INFO, info)

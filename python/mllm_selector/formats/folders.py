"""Folders as inputs: the files in them that hold records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mllm_selector.config import Input, Inputs
from mllm_selector.errors import UsageError
from mllm_selector.formats.datasets_folder import data_files, is_dataset

__all__ = ["expanded"]

ENDINGS = (".parquet", ".arrow", ".feather", ".tar", ".json", ".jsonl", ".gz", ".zst")
"""Of files that hold records, so that a README or a licence beside them is passed over."""


def expanded(pool: Inputs, split: str | None = None) -> Inputs:
    """Put the files of each folder in its place, in the order of their names.

    Parameters
    ----------
    pool : Inputs
        Files and folders. A folder that `datasets` saved has its data files in the order of its rows.
    split : str, optional
        Which split of a `DatasetDict`.

    Raises
    ------
    UsageError
        If a folder holds no files of records, or files of several kinds, or several splits.
    PoolError
        If a saved dataset is not whole.
    """
    inputs: list[Input] = []
    for entry in pool.inputs:
        inputs += [replace(entry, path=path) for path in _files(entry.path, split)]
    return Inputs.parse(inputs)


def _files(path: Path, split: str | None) -> list[Path]:
    if not path.is_dir():
        return [path]
    if is_dataset(path):
        return data_files(path, split)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [file for file in files if file.suffix in ENDINGS]
    endings = sorted({file.suffix for file in files})
    if len(endings) == 1:
        return files
    what = f"files of several kinds ({', '.join(endings)})" if endings else f"no file that ends in {_ALL}"
    msg = f"pool: {path} holds {what}; name the files that you mean, such as '{path}/train-*.parquet'"
    raise UsageError(msg)


_ALL = ", ".join(ENDINGS)

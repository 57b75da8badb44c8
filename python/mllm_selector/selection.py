"""The result of a run, read back from its run directory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mllm_selector.artifacts import atomic_write, open_arrow
from mllm_selector.errors import RunDirectoryError
from mllm_selector.rundir import RunDirectory

__all__ = ["Selection"]


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The chosen part of a pool, by ascending row.

    Attributes
    ----------
    rows : ndarray of uint64, shape (k,)
        Chosen rows of the pool, from 0.
    ids : ndarray of str, shape (k,)
        Their ids.
    necessity : ndarray of float32, shape (k,)
        Their necessity, by default mean negative log-likelihood of the answer in nats.
    groups : ndarray of int32, shape (k,)
        Group that each was chosen from.
    order : ndarray of uint32, shape (k,)
        When each was chosen: 0 is the first. ``rows[np.argsort(order)]`` is the order of choice.
    run_dir : Path
        The run directory.

    Examples
    --------
    >>> selection = Selection.load("run")  # doctest: +SKIP
    >>> selection  # doctest: +SKIP
    Selection of 2,000 samples from 99 groups, necessity 0.02 to 9.31, in run
    >>> selection.write("subset.json")  # doctest: +SKIP
    """

    rows: NDArray[np.uint64]
    ids: NDArray[np.object_]
    necessity: NDArray[np.float32]
    groups: NDArray[np.int32]
    order: NDArray[np.uint32]
    run_dir: Path

    @classmethod
    def load(cls, run_dir: str | PathLike[str]) -> Self:
        """Read the selection of a run directory.

        Raises
        ------
        RunDirectoryError
            If no subset has been picked there.
        PoolError
            If its file is damaged.
        """
        folder = Path(run_dir)
        table = open_arrow(RunDirectory(folder).selection)
        columns: dict[str, NDArray[Any]] = {
            name: table[name].to_numpy() for name in ("row", "id", "necessity", "group", "order")
        }
        return cls(
            rows=columns["row"],
            ids=columns["id"],
            necessity=columns["necessity"],
            groups=columns["group"],
            order=columns["order"],
            run_dir=folder,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        groups = len(np.unique(self.groups))
        low, high = self.necessity.min(), self.necessity.max()
        return (
            f"Selection of {len(self):,} samples from {groups:,} groups, "
            f"necessity {low:.3g} to {high:.3g}, in {self.run_dir}"
        )

    def write(self, path: str | PathLike[str]) -> None:
        """Write the subset in the pool's own format: the very same records.

        Raises
        ------
        RunDirectoryError
            If the run directory does not hold the subset any more.
        """
        stem = RunDirectory(self.run_dir).subset_stem
        _copy(sorted(stem.parent.glob(f"{stem.name}.*")), stem, "pick", Path(path))

    def report(self, path: str | PathLike[str]) -> None:
        """Write the report, a self-contained page.

        Raises
        ------
        RunDirectoryError
            If the run directory holds no report.
        """
        page = RunDirectory(self.run_dir).report
        _copy([page] if page.is_file() else [], page, "report", Path(path))


def _copy(found: list[Path], wanted: Path, stage: str, out: Path) -> None:
    if not found:
        msg = f"{wanted} is missing; run 'mllm-selector {stage}' on this run directory"
        raise RunDirectoryError(msg)
    with found[0].open("rb") as source, atomic_write(out) as target:
        shutil.copyfileobj(source, target)

"""A finished selection: what was chosen, ready to be used, written and shown."""

from __future__ import annotations

import filecmp
import html
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mllm_selector.artifacts import atomic_folder, atomic_write, open_arrow
from mllm_selector.errors import RunDirectoryError, UsageError
from mllm_selector.inputs import Inputs
from mllm_selector.outputs import check_output
from mllm_selector.rundir import RunDirectory, StageRecord, read_manifest

__all__ = ["SELECTION_SCHEMA", "Selection"]

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("id", pa.large_utf8(), nullable=False),
        pa.field("order", pa.uint32(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("necessity", pa.float32(), nullable=False),
        pa.field("seed", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen samples of a run, in pool order.

    Attributes
    ----------
    rows : ndarray of int64, shape (k,)
        Rows of the pool, ascending.
    ids : ndarray of str, shape (k,)
        Their ids.
    order : ndarray of uint32, shape (k,)
        0 for the sample chosen first; a prefix by this order keeps to the groups' shares.
    groups : ndarray of int32, shape (k,)
        Group that each was chosen in.
    necessity : ndarray of float32, shape (k,)
        Mean negative log-likelihood of the answer tokens, in nats, or what ``pick --necessity`` named. Where
        only some samples were scored, the mean over those of the sample's cluster.
    seed : ndarray of bool, shape (k,)
        Whether the seed model was tuned on the sample.
    run_dir : Path
        The run directory.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.object_]
    order: NDArray[np.uint32]
    groups: NDArray[np.int32]
    necessity: NDArray[np.float32]
    seed: NDArray[np.bool_]
    run_dir: Path
    _stages: dict[str, StageRecord] = field(repr=False)

    @classmethod
    def load(cls, run_dir: str | Path) -> Selection:
        """Read the selection of a run directory.

        Raises
        ------
        RunDirectoryError
            If nothing has been picked there.
        UsageError
            If it is a file.
        """
        folder = RunDirectory(Path(run_dir)).path
        stages = read_manifest(folder)
        if "pick" not in stages or stages["pick"].state != "done":
            msg = f"{folder} holds no selection; run 'mllm-selector pick' or 'select' on it first"
            raise RunDirectoryError(msg)
        table = open_arrow(folder / "selection.arrow")
        return cls(
            rows=table["row"].to_numpy().astype(np.int64),
            ids=table["id"].to_numpy(),
            order=table["order"].to_numpy(),
            groups=table["group"].to_numpy(),
            necessity=table["necessity"].to_numpy(),
            seed=np.asarray(table["seed"].to_pylist(), dtype=np.bool_),
            run_dir=folder,
            _stages=stages,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        samples, groups = self._stages["ingest"].counts["samples"], len(np.unique(self.groups))
        return f"Selection of {len(self):,} of {samples:,} samples from {groups:,} groups, in {self.run_dir}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: sizes, where the files are, and the first of the samples."""
        samples = self._stages["ingest"].counts["samples"]
        scored = self.necessity[~np.isnan(self.necessity)]
        mean = f"{scored.mean(dtype=np.float64):.3f} nats" if len(scored) else "not scored"
        facts = [
            ("chosen", f"{len(self):,} of {samples:,} samples ({len(self) / max(1, samples):.1%})"),
            ("groups", f"{len(np.unique(self.groups)):,}"),
            ("mean necessity", mean),
            ("seed samples among them", f"{int(self.seed.sum()):,}"),
            ("subset", str(self.subset)),
            ("report", str(self.run_dir / "report.html")),
        ]
        columns = (self.rows, self.ids, self.groups, self.necessity)
        head = ["row", "id", "group", "necessity"]
        first = [
            [str(value) for value in row] for row in zip(*(c[:5].tolist() for c in columns), strict=True)
        ]
        for row in first:
            row[3] = f"{float(row[3]):.3f}"
        return (
            f"<p><b>Selection</b></p>{_html_table(facts)}"
            f"<p>The first samples in pool order:</p>{_html_table(first, head)}"
        )

    @property
    def subset(self) -> Path:
        """The chosen records in the format of the pool."""
        return self.run_dir / str(self._stages["pick"].counts["subset"])

    def write(self, path: str | Path) -> None:
        """Write the chosen records in the format of the pool: a file, or for some formats a folder.

        Raises
        ------
        RunDirectoryError
            If the run directory does not hold the subset any more.
        UsageError
            If a folder is to be written where something else is, or a file where the pool or what a run has
            computed is.
        """
        check_output("path", Path(path), self._read())
        if self.subset.is_dir():
            _copy_folder(self.subset, Path(path))
        else:
            _copy(self.subset, Path(path), "pick")

    def report(self, path: str | Path) -> None:
        """Write the page that shows what was chosen.

        Raises
        ------
        RunDirectoryError
            If the run directory has none.
        UsageError
            If the pool, or what a run has computed, would be overwritten.
        """
        check_output("path", Path(path), self._read())
        _copy(self.run_dir / "report.html", Path(path), "report")

    def _read(self) -> dict[str, list[Path]]:
        return {"the pool itself": Inputs.parse(self._stages["ingest"].options["pool"]).paths}

    def summary(self) -> dict[str, Any]:
        """Return sizes, times in seconds, peak memory in MB and paths, as JSON values."""
        ingest = self._stages["ingest"].counts
        return {
            "chosen": len(self),
            "samples": ingest["samples"],
            "rejected": sum(ingest["rejected"].values()),
            "unscored": self._stages["pick"].counts["unscored"],
            "stages": [
                {"stage": name, "seconds": record.seconds, "peak_mb": record.peak_mb}
                for name, record in self._stages.items()
                if record.state == "done"
            ],
            "subset": str(self.subset),
            "report": str(self.run_dir / "report.html"),
        }


def _html_table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = [("th", head)] if head else []
    lines += [("td", row) for row in rows]
    cells = (
        "".join(f'<{tag} style="text-align:left">{html.escape(value)}</{tag}>' for value in row)
        for tag, row in lines
    )
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _copy_folder(source: Path, target: Path) -> None:
    if target.is_dir() and _is_copy(source, target):
        return  # of the same command, which was stopped later
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        msg = f"{target} is there already; the subset is a folder, so name a new one"
        raise UsageError(msg)
    with atomic_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _is_copy(source: Path, target: Path) -> bool:
    files = [
        {path.relative_to(each) for path in each.rglob("*") if path.is_file()} for each in (source, target)
    ]
    return files[0] == files[1] and all(filecmp.cmp(source / file, target / file, False) for file in files[0])


def _copy(source: Path, target: Path, stage: str) -> None:
    if not source.is_file():
        msg = f"{source} is missing; run 'mllm-selector {stage}' on this run directory"
        raise RunDirectoryError(msg)
    with source.open("rb") as reader, atomic_write(target) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)

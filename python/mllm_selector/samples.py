"""What is known of the samples when it comes to choosing, which of them can be chosen, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_selector.checks import Embeddings, checked_rows, matrix_parts
from mllm_selector.config import PickOptions
from mllm_selector.errors import UsageError

__all__ = ["Candidates", "Choice", "Labels", "Scored", "labels_of"]

# Rows that are counted at once, as NumPy makes wider copies of them.
BLOCK = 1 << 20

# More names in a message help nobody.
NAMES_SHOWN = 20


@dataclass(frozen=True)
class Labels:
    """A label of each sample.

    Attributes
    ----------
    codes : ndarray of uint32, shape (n,)
        Index of each sample's label in `names`.
    names : sequence
        The labels.
    """

    codes: NDArray[np.uint32]
    names: Sequence[Any]


@dataclass(frozen=True)
class Scored:
    """What is known of the pool's samples when it comes to choosing.

    Attributes
    ----------
    necessity : ndarray of float32, shape (n,)
        NaN for samples that were not scored.
    embeddings : list of ndarray of float16 or float32, each of shape (rows of the part, d); or None
        Parts in the order of the pool.
    sources : Labels or None
        Source of each sample.
    seed_rows : ndarray of int64, shape (s,)
        Rows of the seed subset, ascending.
    columns : mapping of str to ndarray of float32, shape (n,)
        More scores by name; NaN where a sample has none.
    clusters : Labels or None
        Where only some samples were scored, the cluster of each, whose mean its necessity is.
    """

    necessity: NDArray[np.float32]
    embeddings: list[NDArray[Any]] | None
    sources: Labels | None
    seed_rows: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    clusters: Labels | None = None

    @classmethod
    def checked(
        cls,
        necessity: ArrayLike,
        embeddings: Embeddings | None = None,
        sources: ArrayLike | Labels | None = None,
        seed_rows: ArrayLike | None = None,
        columns: Mapping[str, ArrayLike] | None = None,
    ) -> Scored:
        """Check arrays from outside.

        Raises
        ------
        UsageError
            If they are not numbers, not finite, or not of one length.
        """
        scores = _checked_scores("necessity", necessity)
        n = len(scores)
        given = {} if columns is None else columns
        checked = {name: _checked_scores(name, values) for name, values in given.items()}
        for name, values in checked.items():
            if len(values) != n:
                msg = f"columns: {name} has {len(values)} numbers for {n} samples; give one for each"
                raise UsageError(msg)
        return cls(
            scores,
            None if embeddings is None else matrix_parts(embeddings, rows=n),
            None if sources is None else labels_of("sources", sources, n),
            _checked_seed_rows(seed_rows, n),
            checked,
        )

    def __len__(self) -> int:
        return len(self.necessity)

    def column(self, name: str, how: str = "") -> NDArray[np.float32]:
        """Return the scores of a name, ``necessity`` among them.

        Parameters
        ----------
        name : str
            The column.
        how : str
            Where such a column comes from, for the error message.

        Raises
        ------
        UsageError
            If there is none of this name.
        """
        if name == "necessity":
            return self.necessity
        if name not in self.columns:
            known = sorted(["necessity", *self.columns])
            shown = ", ".join(known[:NAMES_SHOWN]) + (", ..." if len(known) > NAMES_SHOWN else "")
            msg = f"column '{name}' is missing; {how or 'join it with --scores FILE'}; there are {shown}"
            raise UsageError(msg)
        return self.columns[name]


@dataclass(frozen=True)
class Candidates:
    """Which samples can be chosen, and how many.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
        The rows, ascending. A candidate is named by its place here.
    taken : ndarray of int64, shape (t,)
        Candidates that are taken in any case, ascending: the seed samples, if they are included.
    budget : int
        Samples to choose, those taken among them.
    unscored : int
        Rows of the pool without necessity.
    lacking : int
        Further rows without a score that the method needs.
    """

    rows: NDArray[np.int64]
    taken: NDArray[np.int64]
    budget: int
    unscored: int
    lacking: int

    @classmethod
    def of(
        cls, scored: Scored, options: PickOptions, needed: Mapping[str, NDArray[np.float32]] | None = None
    ) -> Candidates:
        """Find the candidates: samples with necessity and all needed scores, and no excluded seed samples.

        Raises
        ------
        UsageError
            If the budget is above their number, or below the number of seed samples that are all taken.
        """
        has_necessity = ~np.isnan(scored.necessity)
        has_scores = has_necessity.copy()
        for values in (needed or {}).values():
            has_scores &= ~np.isnan(values)
        is_open = has_scores.copy()
        if options.seed_samples == "exclude":
            is_open[scored.seed_rows] = False
        rows = np.flatnonzero(is_open)
        included = options.seed_samples == "include"
        seeds = scored.seed_rows[has_scores[scored.seed_rows]] if included else scored.seed_rows[:0]
        candidates = cls(
            rows=rows,
            taken=np.searchsorted(rows, seeds),
            budget=options.budget.of(len(scored)),
            unscored=int((~has_necessity).sum()),
            lacking=int((has_necessity & ~has_scores).sum()),
        )
        candidates._check_budget(len(scored), list(needed or {}))
        return candidates

    def _check_budget(self, total: int, needed: Sequence[str]) -> None:
        if self.budget < len(self.taken):
            msg = (
                f"budget: {self.budget} is less than the {len(self.taken)} seed samples, which are "
                "all taken; "
                f"raise the budget to at least {len(self.taken)} or let the seed samples compete"
            )
            raise UsageError(msg)
        if self.budget <= len(self.rows):
            return
        excluded = total - len(self.rows) - self.unscored - self.lacking
        reasons = [
            f"{count} {why}"
            for count, why in (
                (self.unscored, "not scored"),
                (self.lacking, f"without {' or '.join(needed)}"),
                (excluded, "excluded as seed samples"),
            )
            if count
        ]
        but = f" ({', '.join(reasons)})" if reasons else ""
        msg = (
            f"budget: {self.budget} samples cannot be chosen: {len(self.rows)} of {total} are "
            f"candidates{but}; "
            "lower the budget"
        )
        raise UsageError(msg)


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes
    ----------
    rows : ndarray of int64, shape (budget,)
        Chosen rows in the order of choice.
    groups : ndarray of int32, shape (budget,)
        Group of each chosen row; 0 for all if the method makes no groups.
    group_sizes : ndarray of int64, shape (g,)
        Candidates in each group, by group number; 0 for a number that no candidate has.
    group_necessity : ndarray of float64, shape (g,)
        Mean necessity of each group's candidates; NaN where there are none.
    candidates : int
        Rows that could be chosen.
    unscored : int
        Rows without necessity; they are never chosen.
    lacking : int
        Further rows without a score that the method needs; they are never chosen either.
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.int32]
    group_sizes: NDArray[np.int64]
    group_necessity: NDArray[np.float64]
    candidates: int
    unscored: int
    lacking: int

    @classmethod
    def of(
        cls,
        scored: Scored,
        candidates: Candidates,
        chosen: NDArray[np.int64],
        labels: NDArray[np.uint32] | None,
    ) -> Choice:
        """Describe chosen candidates, given in the order of choice, and the groups of all candidates."""
        groups = np.zeros(len(candidates.rows), np.uint32) if labels is None else labels
        sizes = np.zeros(int(groups.max(initial=0)) + 1 if len(groups) else 0, np.int64)
        sums = np.zeros(len(sizes))
        for first in range(0, len(groups), BLOCK):
            block = slice(first, first + BLOCK)
            sizes += np.bincount(groups[block], minlength=len(sizes))
            np.add.at(sums, groups[block], scored.necessity[candidates.rows[block]])
        return cls(
            rows=candidates.rows[chosen],
            groups=groups[chosen].astype(np.int32),
            group_sizes=sizes,
            group_necessity=np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0),
            candidates=len(candidates.rows),
            unscored=candidates.unscored,
            lacking=candidates.lacking,
        )

    @property
    def group_count(self) -> int:
        """Number of groups that have candidates."""
        return int(np.count_nonzero(self.group_sizes))


def _checked_scores(name: str, scores: ArrayLike) -> NDArray[np.float32]:
    try:
        given = np.asarray(scores)
        if given.dtype != np.float32:
            given = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{name}: not numbers ({error}); give one number for each sample, NaN where there is none"
        raise UsageError(msg) from error
    if given.ndim != 1 or len(given) == 0:
        msg = f"{name}: shape {given.shape}; give a one-dimensional array of at least one number"
        raise UsageError(msg)
    with np.errstate(over="ignore"):
        checked = given.astype(np.float32, copy=False)
    if (np.signbit(checked) & (checked == 0)).any():
        checked = checked + np.float32(0)  # turns -0.0 into 0.0, so that equal numbers have equal bits
    if np.isinf(checked).any():
        row = int(np.flatnonzero(np.isinf(checked))[0])
        msg = f"{name}: {given[row]} of row {row} is not finite in float32; give NaN if it was not scored"
        raise UsageError(msg)
    return checked


def _checked_seed_rows(seed_rows: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if seed_rows is None:
        return np.empty(0, np.int64)
    rows = np.unique(checked_rows("seed_rows", seed_rows))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < n:
        msg = f"seed_rows: rows must be from 0 to {n - 1}; the array reaches from {rows[0]} to {rows[-1]}"
        raise UsageError(msg)
    return rows


def labels_of(name: str, given: ArrayLike | Labels, n: int) -> Labels:
    """Read the label of each of `n` samples.

    Raises
    ------
    UsageError
        If there is not one for each.
    """
    if isinstance(given, Labels):
        return given
    values = np.asarray(given)
    if values.shape != (n,):
        msg = f"{name}: an array of shape {values.shape} for {n} samples; give one {name[:-1]} for each"
        raise UsageError(msg)
    names, codes = np.unique(values, return_inverse=True)
    return Labels(codes.astype(np.uint32), names.tolist())

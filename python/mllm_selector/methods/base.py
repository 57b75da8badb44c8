"""What a selection method is, what it is asked, and what it may ask for."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector import _internal
from mllm_selector.config import PickOptions, StageOptions
from mllm_selector.errors import UsageError
from mllm_selector.progress import Progress
from mllm_selector.samples import Candidates, Choice, Labels, Scored
from mllm_selector.sampling import cluster, reporter

__all__ = [
    "Method",
    "Need",
    "Parameters",
    "Samples",
    "Task",
    "allocate",
    "highest",
    "interleave",
    "read_parameters",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Parameters(StageOptions):
    """Parameters of a method: a subclass declares each with `mllm_selector.config.option`.

    Types are int, float, bool, str and ``tuple[str, ...]`` (in texts: names with commas between), each also
    with ``| None``.
    """

    @staticmethod
    def shown(name: str) -> str:
        """Write a parameter the way the command line shows it."""
        return f"--param {name}"


@dataclass(frozen=True)
class Need:
    """A column of scores that a method reads.

    Attributes
    ----------
    column : str
        Its name; ``necessity`` is always there.
    how : str
        Where it comes from, for the message that it is missing.
    gaps : bool
        Whether samples without a value can be chosen all the same.
    """

    column: str
    how: str = "join it with --scores FILE"
    gaps: bool = False


class Samples:
    """All candidates of a selection, and what is known of them; named by their places 0 to m - 1.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
        Row of each candidate in the pool.
    pool_size : int
        Samples of the pool.
    options : PickOptions
        Among them `seed`, `threads` and `group_count`.
    """

    def __init__(
        self, scored: Scored, candidates: Candidates, options: PickOptions, progress: Progress
    ) -> None:
        self._scored = scored
        self._progress = progress
        self._kept: dict[str, Any] = {}
        self.rows = candidates.rows
        self.pool_size = len(scored)
        self.options = options

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> NDArray[np.float32]:
        """Return a score of each candidate; NaN only in columns that may have gaps."""
        return self._scored.column(name)[self.rows]

    @cached_property
    def sources(self) -> Labels | None:
        """Source of each candidate, if sources are known."""
        labels = self._scored.sources
        return None if labels is None else Labels(labels.codes[self.rows], labels.names)

    @property
    def matrix(self) -> list[NDArray[Any]]:
        """Embeddings of the whole pool, in parts: row `rows[i]` is that of candidate `i`.

        Raises
        ------
        UsageError
            If there are none.
        """
        if self._scored.embeddings is None:
            msg = f"method: {self.options.method} needs embeddings; give them, or choose another method"
            raise UsageError(msg)
        return self._scored.embeddings

    def index(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64] | None:
        """Return rows (of all candidates by default) as the core takes them: None for the whole pool.

        Without an index the core reads blocks of rows where they lie.
        """
        rows = self.rows if rows is None else rows
        whole = len(rows) == self.pool_size and bool((rows == np.arange(self.pool_size)).all())
        return None if whole else rows

    def report(self, step: str, unit: str) -> Callable[[int, int], None]:
        """Return what a long call of the core reports its progress to."""
        return reporter(self._progress, step, unit)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Compute something once for all the times that the method is asked."""
        if name not in self._kept:
            self._kept[name] = compute()
        kept: T = self._kept[name]
        return kept

    def clusters(self) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Cluster all candidates by spherical k-means into `options.group_count` clusters.

        Returns
        -------
        centroids : ndarray of float32, shape (clusters, d)
        labels : ndarray of uint32, shape (m,)
        """
        return self.once("clusters", lambda: self.clusters_of(self.rows, self.options.group_count))

    def clusters_of(
        self, rows: NDArray[np.int64], count: int | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Cluster some rows of the pool."""
        if count is not None and count > len(rows):
            msg = f"group_count: {count} groups of {len(rows)} candidates; ask for at most {len(rows)}"
            raise UsageError(msg)
        seed, threads = self.options.seed, self.options.threads
        return cluster(self.matrix, self.index(rows), len(rows), count, seed, threads, self._progress)


@dataclass(frozen=True)
class Task:
    """What a method is asked for: a number of candidates, out of those that are open.

    Attributes
    ----------
    samples : Samples
        All candidates.
    groups : ndarray of uint32, shape (m,), or None
        Group of each candidate, as the method's `groups` made them.
    open : ndarray of int64, shape (o,)
        Candidates that can be chosen, ascending. Others are closed, for example as their source has a
        ceiling.
    taken : ndarray of int64, shape (t,)
        Candidates chosen before, in the order of choice: what is new to these is worth more to some methods.
    budget : int
        How many to choose, from 1 to o.
    """

    samples: Samples
    groups: NDArray[np.uint32] | None
    open: NDArray[np.int64]
    taken: NDArray[np.int64]
    budget: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """A selection method. Either `choose` or `whole` is given.

    Attributes
    ----------
    name : str
        Name in options.
    about : str
        A line for ``--help``, without a capital and a full stop.
    choose : callable, optional
        ``choose(task, parameters)`` returns exactly `task.budget` of `task.open`, in the order of choice,
        or raises `UsageError` and says why that cannot be. Limits of sources and the treatment of seed
        samples are not its business: `mllm_selector.methods.limited` asks it as often as these need.
    whole : callable, optional
        ``whole(scored, options, parameters, progress)`` returns a `Choice` and sees to limits and seed
        samples itself.
    parameters : type
        Subclass of `Parameters` that declares the method's own parameters.
    needs : callable
        ``needs(parameters)`` lists the columns that it reads.
    groups : callable, optional
        ``groups(samples, parameters)`` returns the group of each candidate, for `Task.groups` and the report.
    uses : frozenset of str
        Which of the options of `PickOptions` that are special to some methods it uses.
    """

    name: str
    about: str
    choose: Callable[[Task, Any], NDArray[np.int64]] | None = None
    whole: Callable[[Scored, PickOptions, Any, Progress], Choice] | None = None
    parameters: type[Parameters] = Parameters
    needs: Callable[[Any], Sequence[Need]] = lambda parameters: ()
    groups: Callable[[Samples, Any], NDArray[np.uint32]] | None = None
    uses: frozenset[str] = frozenset()


def read_parameters(method: Method, given: Mapping[str, Any]) -> Any:
    """Bring the parameters that a user gave to the types that a method declares.

    Raises
    ------
    UsageError
        If one is unknown, missing, or has no value of its type.
    """
    declared = {field.name: field for field in dataclasses.fields(method.parameters)}
    hints = typing.get_type_hints(method.parameters)
    for name in given:
        if name not in declared:
            known = f"it has {', '.join(declared)}" if declared else "it has none"
            msg = f"--param {name}: the method {method.name} has no such parameter; {known}"
            raise UsageError(msg)
    for name, field in declared.items():
        if name not in given and field.default is dataclasses.MISSING:
            msg = f"--param {name} is missing, the method {method.name} needs it: {field.metadata['help']}"
            raise UsageError(msg)
    values = {name: _read(name, value, hints[name]) for name, value in given.items()}
    return method.parameters(**values)


def _read(name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        texts = value.split(",") if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            msg = f"--param {name}: {value!r} is no list of names; write them with commas between"
            raise UsageError(msg)
        return tuple(str(text).strip() for text in texts if str(text).strip())
    if kind is str or not isinstance(value, str):
        return value
    words = {"true": True, "false": False}
    try:
        return words[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        what = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
        msg = f"--param {name}: {value!r} is not {what}"
        raise UsageError(msg) from None


def highest(values: NDArray[Any], places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the places of the `count` highest values in falling order, ties to the lowest place."""
    return places[np.argsort(-values[places], kind="stable")[:count]]


def allocate(budget: int, weights: NDArray[Any], capacities: NDArray[Any]) -> NDArray[np.int64]:
    """Share a budget out in proportion to weights, at most the capacity each, by the largest remainder."""
    claims = [
        (float(weight), int(capacity), 0, int(capacity))
        for weight, capacity in zip(weights, capacities, strict=True)
    ]
    return np.array(_internal.allocate(budget, claims), np.int64)


def interleave(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Put several lists in one order whose every prefix keeps to their shares."""
    turns = [(np.arange(len(each)) + 0.5) / max(1, len(each)) for each in lists]
    return np.concatenate(lists)[np.argsort(np.concatenate(turns), kind="stable")]

"""Scoring on a Ray cluster.

The parts of the pool are the rows of a Ray Data dataset, and each actor that maps them to tables holds one
scorer. Workers read the run directory and the images and write nothing; this process writes each part as it
comes, by the same protocol as without Ray. So a run may be stopped, and go on with Ray or without.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from mllm_selector.cluster import TRIES, Failure, connected, own_errors, room
from mllm_selector.config import ScoreOptions
from mllm_selector.errors import ScoreError
from mllm_selector.rundir import RunDirectory, StageRecord
from mllm_selector.scoring.batching import BatchBudget
from mllm_selector.scoring.local import Scorers
from mllm_selector.scoring.meter import Meter
from mllm_selector.scoring.sweeps import Facts, Opened, PartScorer, Sweep

__all__ = ["ray_scorers"]

AT_ONCE = 2
"""Parts in the hands of a scorer: one is encoded while the other is computed."""

T = TypeVar("T")


@contextmanager
def ray_scorers(run: RunDirectory, options: ScoreOptions, note: Callable[[str], None]) -> Iterator[Scorers]:
    """Connect to a Ray cluster, and score there inside the block.

    Parameters
    ----------
    run : RunDirectory
        Its export stage is done. All nodes see it under the same path.
    options : ScoreOptions
        Its ``ray`` is the address.
    note : callable
        Takes sentences that the user should read.

    Yields
    ------
    Scorers

    Raises
    ------
    UsageError
        If there is no cluster at the address, or no node that holds a scorer.
    ScoreError, ModelError, PoolError, RunDirectoryError
        As without Ray, with the name of the machine.
    ClusterError
        If Ray gives up.
    MissingPackageError
        If Ray is not installed.
    """
    with connected(str(options.ray)) as ray, own_errors(ray):
        yield _RayScorers(ray, _Job(run.path.absolute(), run.stages, options), note)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to open the engine; it is sent to all of them."""

    folder: Path
    stages: Mapping[str, StageRecord]
    options: ScoreOptions

    def open(self, note: Callable[[str], None]) -> Opened:
        """Open pool, family and engine on this machine."""
        os.environ.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # as the command line does, before torch is loaded
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        run = RunDirectory(self.folder)
        run.stages = dict(self.stages)
        return Opened(run, self.options, note)


def _failure(error: Exception) -> Failure:
    return Failure.of(error, "a scorer", ScoreError)


class _First:
    """An actor that opens the engine once, for what all parts have in common."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._opened: Opened | None = None
        self._notes: list[str] = []

    def ask(self, question: str, *arguments: Any) -> tuple[Any, list[str]] | Failure:
        """Return an attribute of `Opened`, or what its method returns, and what the user should read."""
        try:
            if self._opened is None:
                self._opened = self._job.open(self._notes.append)
            found = getattr(self._opened, question)
            return found(*arguments) if callable(found) else found, self._notes
        except Exception as error:  # whatever it is, it is told in our words
            return _failure(error)


class _Tries:
    """An actor that counts how often each part is begun: Ray itself would begin one again for ever."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, part: int) -> int:
        """Count a part, and return how often it has been begun."""
        self._begun[part] += 1
        return self._begun[part]


class _Worker:
    """What each actor of the dataset holds: one scorer, and two threads that bring it parts.

    Ray calls it from `AT_ONCE` threads, so that a part is encoded while the one before it is computed.
    """

    def __init__(self, job: _Job, sweep: Sweep, provider: str, tries: Any) -> None:
        self._job, self._sweep, self._provider, self._tries = job, sweep, provider, tries
        self._name = uuid.uuid4().hex
        self._encoding, self._computing = threading.Lock(), threading.Lock()
        self._scorer: PartScorer | None = None
        self._device = ""
        self._started = 0.0

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score a part: a row of `part`, `start` and `stop` to a row with its table and what that took."""
        (part,) = batch.to_pylist()
        try:
            return _result(part["part"], self._score(part["part"], range(part["start"], part["stop"])))
        except Exception as error:  # whatever it is, it is told in our words
            failure = _failure(error)
            return _result(part["part"], {"failure": failure.kind, "text": failure.text})

    def _score(self, part: int, rows: range) -> dict[str, Any]:
        import ray

        with self._encoding:
            if ray.get(self._tries.begin.remote(part)) > TRIES:
                msg = (
                    f"rows {rows.start:,} to {rows.stop - 1:,} of the pool were begun {TRIES} times, and the "
                    "process died each time, maybe for want of memory (lower --token-budget, --workers or "
                    "--ray-scorers); Ray's logs on the nodes say more. What is finished is kept"
                )
                raise ScoreError(msg)
            if self._scorer is None:
                self._scorer = self._open()
            scorer = self._scorer
            planned = scorer.plan(rows)
        with self._computing:
            tokens, splits = 0, scorer.work.splits

            def count(_: int, more: int) -> None:
                nonlocal tokens
                tokens += more

            table = scorer.score(rows, planned, count)
            return {
                "content": _as_bytes(table),
                "scorer": self._name,
                "device": self._device,
                "tokens": tokens,
                "busy": scorer.work.busy_seconds,
                "seconds": time.monotonic() - self._started,
                "splits": scorer.work.splits - splits,
            }

    def _open(self) -> PartScorer:
        opened = self._job.open(lambda _: None)
        facts = opened.facts
        if facts.provider != self._provider:
            msg = (
                f"this machine scores with {facts.provider}, the one that was asked first with "
                f"{self._provider}, and their scores differ in the last bits; say which with --device"
            )
            raise ScoreError(msg)
        self._device = facts.device
        self._started = time.monotonic()
        return PartScorer(opened, self._sweep)


_RESULT = pa.schema(
    [
        pa.field("part", pa.int64()),
        pa.field("content", pa.large_binary()),
        pa.field("scorer", pa.utf8()),
        pa.field("device", pa.utf8()),
        pa.field("tokens", pa.int64()),
        pa.field("busy", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("splits", pa.int64()),
        pa.field("failure", pa.utf8()),
        pa.field("text", pa.utf8()),
    ]
)


def _result(part: int, what: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"part": part, **what}], schema=_RESULT)


def _as_bytes(table: pa.Table) -> bytes:
    """Write a table as an Arrow file in memory: its metadata would not outlast a dataset."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


class _RayScorers:
    """Scorers on the nodes of a cluster; see `Scorers`."""

    def __init__(self, ray: Any, job: _Job, note: Callable[[str], None]) -> None:
        self._ray, self._job, self._note = ray, job, note
        self._needs, self._most = _room(ray, job.options)
        retries = {"max_restarts": TRIES - 1, "max_task_retries": TRIES - 1}
        self._first = ray.remote(_First).options(**self._needs, **retries).remote(job)
        self.facts: Facts = self._ask("facts")
        self._devices = {self.facts.device}

    def best_budget(self) -> BatchBudget:
        """See `Scorers.best_budget`."""
        budget: BatchBudget = self._ask("best_budget")
        return budget

    def drawn_embeddings(self, budget: BatchBudget) -> NDArray[np.float32]:
        """See `Scorers.drawn_embeddings`."""
        embeddings: NDArray[np.float32] = self._ask("drawn_embeddings", budget)
        return embeddings

    def tables(
        self, sweep: Sweep, parts: Mapping[Path, range], meter: Meter
    ) -> Generator[tuple[Path, pa.Table]]:
        """See `Scorers.tables`; parts come in the order in which they are done."""
        self._let_go()
        paths = list(parts)
        for result in self._results(sweep, list(parts.values())):
            if result["failure"] is not None:
                raise Failure(result["failure"], result["text"]).raised()
            self._look_at(result["device"])
            path = paths[result["part"]]
            yield path, pa.ipc.open_file(result["content"]).read_all()
            meter.splits += result["splits"]
            meter.worked(result["scorer"], result["busy"], result["seconds"])
            meter.end(len(parts[path]), result["tokens"])

    def _results(self, sweep: Sweep, rows: list[range]) -> Iterator[dict[str, Any]]:
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        items = [{"part": index, "start": each.start, "stop": each.stop} for index, each in enumerate(rows)]
        size = min(self._most, len(items))
        tries = self._ray.remote(_Tries).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        dataset = data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=(self._job, sweep, self.facts.provider, tries),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(
                min_size=1,
                max_size=size,
                initial_size=size,
                max_concurrent_calls_per_actor=AT_ONCE,
                enable_true_multi_threading=True,
            ),
            **self._needs,
        )
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for place in range(len(block)):
                row = block.slice(place, 1)
                content = row["content"].chunk(0)[0].as_buffer()
                yield {**row.drop_columns(["content"]).to_pylist()[0], "content": content}

    def _ask(self, question: str, *arguments: Any) -> Any:
        answer = self._ray.get(self._first.ask.remote(question, *arguments))
        if isinstance(answer, Failure):
            raise answer.raised()
        found, notes = answer
        if question == "facts":
            for text in notes:
                self._note(text)
        return found

    def _let_go(self) -> None:
        """End the first actor, whose device the others need."""
        if self._first is not None:
            self._ray.kill(self._first)
            self._first = None

    def _look_at(self, device: str) -> None:
        """Say so when a part comes from another kind of device."""
        if device not in self._devices:
            self._devices.add(device)
            self._note(
                f"parts are scored on different devices ({', '.join(sorted(self._devices))}): the last bits "
                "of their scores may differ from those of a run on one kind"
            )


def _room(ray: Any, options: ScoreOptions) -> tuple[dict[str, float], int]:
    """Return what a scorer needs of its node, and how many of them the cluster holds now.

    Raises
    ------
    UsageError
        If it holds none.
    """
    gpus = options.ray_gpus
    if gpus is None:
        has_gpus = any(node["Alive"] and node["Resources"].get("GPU") for node in ray.nodes())
        gpus = 1 if options.device == "cuda" or (options.device == "auto" and has_gpus) else 0
    kind, amount = ("GPU", gpus) if gpus else ("CPU", float(options.threads or 1))
    fits = room(ray, str(options.ray), kind, amount, "a scorer", "lower --ray-gpus or --threads")
    return {f"num_{kind.lower()}s": amount}, min(fits, options.ray_scorers or fits)

"""Train the small model on what each method selects, and record how well it does on each family.

    python benches/quality/run.py                        # all plans; goes on where it was stopped
    python benches/quality/run.py --plan main noise
    python benches/quality/run.py --device cuda --at-once 32
    python benches/quality/tables.py                     # RESULTS.md from the records

Each draw makes its own pool, test set and seed subset (2.5 % of the pool, 12 epochs); the seed model scores
the pool; every method selects from the same scores; training starts from the same pretrained weights. A line
of records.jsonl is one training. What is costly is kept in the cache folder and can be thrown away.

The cost of a selection, in passes of a training over a sample (a forward pass counts a third): 12 x 2.5 % of
the pool for the seed model and 33 % for scores and embeddings, so 63 %, as four epochs on 15.8 % of the pool.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

import grid
import model
import world
from grid import Case, Records, Scoring
from mllm_selector import kmeans, pick
from mllm_selector.errors import UsageError
from mllm_selector.sampling import CLUSTER_ITERATIONS

__all__ = [
    "HERE",
    "SIZES",
    "Prepared",
    "Settings",
    "World",
    "epochs",
    "kept",
    "kept_array",
    "main",
    "run_cases",
]

HERE = Path(__file__).parent
CAPTION_DRAW = 10**6
# Streams of random numbers under one draw.
_SEED_ROWS, _SEED_ORDER, _ORDER, _POOL_PIXELS, _TEST_PIXELS, _CAPTION_ORDER, _SCORED = range(100, 107)
SMALL = model.Shape(width=32, layers=1)


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    pool: int = 20_000
    test: int = world.TEST_SAMPLES
    captions: int = 24_000
    caption_epochs: int = 2
    encoder_scenes: int = 16_000
    seed_share: float = grid.SEED_PERCENT / 100
    seed_epochs: int = grid.SEED_EPOCHS
    epochs: int = grid.EPOCHS
    width: int = model.WIDTH

    @property
    def key(self) -> str:
        """A name for these settings."""
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()[:8]


SIZES = {"small": Settings(pool=10_000, test=200), "full": Settings()}
"""``small`` is for one CPU core and an hour; ``full`` has budgets of twice as many samples."""


@dataclass(frozen=True)
class Prepared:
    """What all trainings share.

    Attributes
    ----------
    settings : Settings
    cache : Path
        Folder of these settings.
    device : str
    """

    settings: Settings
    cache: Path
    device: str

    @cached_property
    def encoder(self) -> model.Encoder:
        """The frozen encoder."""

        def make() -> dict[str, torch.Tensor]:
            scenes = world.captions(CAPTION_DRAW, self.settings.encoder_scenes).cells
            return model.train_encoder(scenes, CAPTION_DRAW).state_dict()

        encoder = model.Encoder()
        encoder.load_state_dict(kept(self.cache / "encoder.pt", make))
        return encoder.eval()

    @cached_property
    def pretrained(self) -> model.Decoder:
        """The language model after captions."""
        return self._after_captions("pretrained.pt", model.Shape())

    @cached_property
    def small(self) -> model.Decoder:
        """A smaller one, as a seed model."""
        return self._after_captions("small.pt", SMALL)

    def _after_captions(self, name: str, shape: model.Shape) -> model.Decoder:
        def make() -> dict[str, torch.Tensor]:
            samples = world.captions(CAPTION_DRAW + 1, self.settings.captions)
            data = model.Data.of(samples, self.encoder.encode(samples.cells, [CAPTION_DRAW + 1]), self.device)
            torch.manual_seed(CAPTION_DRAW)
            decoder = model.Decoder(shape=shape).to(self.device)
            order = epochs(
                np.arange(len(samples)),
                self.settings.caption_epochs * len(samples),
                [CAPTION_DRAW, _CAPTION_ORDER],
            )
            model.train(decoder, data, order[None])
            return decoder.state_dict()

        decoder = model.Decoder(shape=shape).to(self.device)
        decoder.load_state_dict(kept(self.cache / name, make))
        return decoder

    def world(self, draw: int, mix: str, wrong: float) -> World:
        """Return the pool and test set of a draw; the last one stays in memory."""
        return _world(self, draw, mix, wrong)


@dataclass(frozen=True)
class World:
    """A pool, its seed model and scores, and a test set.

    Attributes
    ----------
    prepared : Prepared
    draw : int
    mix : str
    wrong : float
    families : tuple of str
        What the pool asks for.
    """

    prepared: Prepared
    draw: int
    mix: str
    wrong: float
    families: ClassVar[tuple[str, ...]] = world.FAMILIES

    @cached_property
    def pool(self) -> world.Samples:
        """The samples."""
        return world.draw_pool(self.draw, self.mix, self.prepared.settings.pool, self.wrong)

    @cached_property
    def data(self) -> model.Data:
        """The pool as the model takes it; pools that differ in wrong answers share their images."""
        path = self.prepared.cache / f"pool-{self.draw}-{self.mix}.npy"
        features = kept_array(
            path, lambda: self.prepared.encoder.encode(self.pool.cells, [self.draw, _POOL_PIXELS])
        )
        return model.Data.of(self.pool, features, self.prepared.device)

    @cached_property
    def test(self) -> tuple[model.Data, NDArray[np.uint8]]:
        """The test set and the family of each of its samples."""
        samples = world.draw_test(self.draw, self.prepared.settings.test)
        path = self.prepared.cache / f"test-{self.draw}.npy"
        features = kept_array(
            path, lambda: self.prepared.encoder.encode(samples.cells, [self.draw, _TEST_PIXELS])
        )
        return model.Data.of(samples, features, self.prepared.device), samples.family

    def seed_rows(self, size: float = 1.0) -> NDArray[np.int64]:
        """Return a seed subset, so many times as large as the settings say."""
        count = round(self.prepared.settings.seed_share * size * len(self.pool))
        rng = np.random.default_rng([self.draw, _SEED_ROWS])
        return np.sort(rng.choice(len(self.pool), size=count, replace=False))

    def seed_model(self, scoring: Scoring = grid.BY_DEFAULT) -> model.Decoder:
        """Return a pretrained model after the seed subset."""
        first = self.prepared.small if scoring.small else self.prepared.pretrained

        def make() -> dict[str, torch.Tensor]:
            tuned = first.fork(1)
            rows = self.seed_rows(scoring.seed_size)
            order = epochs(rows, self.prepared.settings.seed_epochs * len(rows), [self.draw, _SEED_ORDER])
            model.train(tuned, self.data, order[None])
            return tuned.state_dict()

        tuned = first.fork(1)
        tuned.load_state_dict(kept(self._own(f"{_seed_name(scoring)}seed.pt"), make))
        return tuned

    def scores(self, scoring: Scoring = grid.BY_DEFAULT) -> dict[str, NDArray[Any]]:
        """Return what a seed model says of the pool: nll, upd, visnec, ifd, embedding."""
        path = self._own(f"{_seed_name(scoring)}scores.npz")
        if not path.exists():
            with _whole(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **vars(model.read(self.seed_model(scoring), self.data)))
        with np.load(path) as file:
            return dict(file)

    def select(self, method: str, budget: float) -> NDArray[np.int64]:
        """Choose rows by a method.

        Raises
        ------
        UsageError
            If the method cannot meet the budget.
        """
        count = round(budget / 100 * len(self.pool))
        if count == len(self.pool):
            return np.arange(count)
        scoring = grid.scoring_of(method)
        scores = self.scores(scoring)
        necessity, embedding = scores[scoring.metric], scores["embedding"]
        if scoring.cheap or scoring.positions == "inputs":
            embedding = self._inputs.astype(np.float16)
        elif scoring.positions != "all":
            embedding = model.embed(self.seed_model(scoring), self.data, scoring.positions)
        if scoring.floor:
            necessity = necessity + np.float32(scoring.floor) * necessity.mean()
        if scoring.cheap or scoring.power != 1:
            labels = self._cheap_clusters if scoring.cheap else self._clusters(embedding)
            return self._by_clusters(method, necessity, embedding, labels, count)
        return pick(
            necessity,
            embedding,
            budget=count,
            columns={name: scores[name] for name in ("upd", "visnec", "ifd")},
            sources=np.array(self.families)[self.pool.family],
            seed_rows=self.seed_rows(scoring.seed_size),
            seed=self.draw,
            threads=torch.get_num_threads(),
            **grid.METHODS[method],
        )

    def _by_clusters(
        self,
        method: str,
        necessity: NDArray[np.float32],
        embedding: NDArray[np.float16],
        labels: NDArray[np.int64],
        count: int,
    ) -> NDArray[np.int64]:
        """Choose from clusters, with the mean necessity of some samples for that of their cluster."""
        scoring = grid.scoring_of(method)
        means = np.zeros(labels.max() + 1, np.float32)
        for cluster in range(len(means)):
            members = np.flatnonzero(labels == cluster)
            if scoring.of_each is not None:
                rng = np.random.default_rng([self.draw, _SCORED, cluster])
                members = rng.permutation(members)[: scoring.of_each]
            means[cluster] = necessity[members].mean() if len(members) else 0
        # Groups that are given are not known to be clusters, so their default would be uniform draws.
        options = {"within": "facility-location"} | grid.METHODS[method]
        return pick(
            means[labels] ** scoring.power,
            embedding,
            budget=count,
            groups=labels,
            seed=self.draw,
            threads=torch.get_num_threads(),
            **options,
        )

    def _clusters(self, embedding: NDArray[np.float16]) -> NDArray[np.int64]:
        """Return the clusters that the default makes."""
        told = kmeans(
            embedding,
            math.isqrt(len(embedding) // 2),
            metric="cosine",
            seed=self.draw,
            max_iterations=CLUSTER_ITERATIONS,
            tolerance=1e-4,
        )
        return told.labels.astype(np.int64)

    @cached_property
    def _inputs(self) -> NDArray[np.float32]:
        """Embeddings of the inputs, made as in `mllm_selector.families.scorer.ScorerGraph.embed_inputs`."""
        data, words = self.data, self.prepared.pretrained.words[0].detach()
        asked = ~data.is_answer & (data.text != world.PAD) & (data.text != world.ANSWER)
        question = (words[data.text] * asked[..., None]).sum(1) / asked.sum(1, keepdim=True)
        features = data.features.to(words.dtype)
        parts = [question, features.mean(1), features.amax(1)]
        embedding = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in parts], dim=1)
        matrix: NDArray[np.float32] = embedding.cpu().numpy()
        return np.ascontiguousarray(matrix / math.sqrt(len(parts)))

    @cached_property
    def _cheap_clusters(self) -> NDArray[np.int64]:
        clusters = round((len(self.data) / 2) ** 0.5)
        return kmeans(self._inputs, clusters, metric="cosine", seed=self.draw).labels.astype(np.int64)

    def describe(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Say what a selection holds: shares of wrong answers, near-duplicates, hints and families."""
        pool = self.pool
        counts = np.bincount(pool.family[rows], minlength=len(self.families))
        return {
            "wrong": round(float(pool.is_wrong[rows].mean()), 4),
            "copies": round(float((pool.original[rows] >= 0).mean()), 4),
            "hints": round(float(pool.has_hint[rows].mean()), 4),
            "families": (counts / len(rows)).round(4).tolist(),
        }

    def _own(self, name: str) -> Path:
        return self.prepared.cache / f"{self.draw}-{self.mix}-{self.wrong:g}-{name}"


def _seed_name(scoring: Scoring) -> str:
    """Return the start of the cached files of a seed model; nothing for that of the default."""
    size = "" if scoring.seed_size == 1 else f"{scoring.seed_size:g}-"
    return f"{'small-' if scoring.small else ''}{size}"


@lru_cache(maxsize=1)
def _world(prepared: Prepared, draw: int, mix: str, wrong: float) -> World:
    return World(prepared, draw, mix, wrong)


def run_cases(prepared: Prepared, todo: list[Case], records: Records, at_once: int = 1) -> Iterator[str]:
    """Train what is not recorded yet; yield a line for each training."""
    settings = prepared.settings
    done = records.of(settings.key)
    left = [case for case in todo if case not in done]
    for (draw, mix, wrong, budget, length, start), same in groupby(left, _together):
        waiting = iter(same)
        while group := list(islice(waiting, at_once)):
            of = prepared.world(draw, mix, wrong)
            chosen = {}
            for case in group:
                try:
                    chosen[case] = of.select(case.method, case.budget)
                except UsageError as error:
                    records.add(settings.key, case, refused=str(error))
                    yield f"{case.method} {case.budget:g} %: {error}"
            if not chosen:
                continue
            seen = round(grid.PASSED.get(length, budget) / 100 * len(of.pool)) * settings.epochs
            orders = np.stack([epochs(rows, seen, [draw, _ORDER]) for rows in chosen.values()])
            began = time.monotonic()
            first = prepared.pretrained if start == "pretrained" else of.seed_model()
            tuned = first.fork(len(chosen))
            model.train(tuned, of.data, orders)
            test, families = of.test
            right = model.hits(tuned, test)
            seconds = (time.monotonic() - began) / len(chosen)
            for (case, rows), hits in zip(chosen.items(), right, strict=True):
                accuracy = [float(hits[families == f].mean()) for f in range(len(of.families))]
                records.add(
                    settings.key,
                    case,
                    accuracy=[round(value, 4) for value in accuracy],
                    **of.describe(rows),
                    steps=-(-seen // model.BATCH),
                    seconds=round(seconds, 1),
                    device=prepared.device,
                    torch=torch.__version__,
                )
                yield (
                    f"draw {draw} {mix} {wrong:g} {case.method} {budget:g} % {length} {start}: "
                    f"macro {np.mean(accuracy):.3f}, {seconds:.1f} s"
                )


def _together(case: Case) -> tuple[Any, ...]:
    """Cases that agree in this can be trained at once."""
    return case.draw, case.mix, case.wrong, case.budget, case.length, case.start


def epochs(rows: NDArray[np.int64], seen: int, seed: list[int]) -> NDArray[np.int64]:
    """Lay rows out in the order in which they are seen: each epoch shuffled anew, the last one cut off."""
    passes = -(-seen // len(rows))
    order = [rows[np.random.default_rng([*seed, number]).permutation(len(rows))] for number in range(passes)]
    return np.concatenate(order)[:seen]


class _whole:  # noqa: N801 - used like a function
    """Give a temporary path that gets its name when the block has ended well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def kept(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Load weights, after making them if need be."""
    if not path.exists():
        with _whole(path) as temporary:
            torch.save(make(), temporary)
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def kept_array(path: Path, make: Callable[[], NDArray[np.float16]]) -> NDArray[np.float16]:
    """Load an array, after making it if need be."""
    if not path.exists():
        with _whole(path) as temporary, temporary.open("wb") as file:
            np.save(file, make())
    array: NDArray[np.float16] = np.load(path)
    return array


def main() -> None:
    """Run the plans that are asked for."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    plans = [name for name in grid.PLANS if not name.startswith("tune")]
    parser.add_argument("--plan", nargs="+", choices=list(grid.PLANS), default=plans)
    parser.add_argument(
        "--draws", nargs="+", type=int, metavar="N", help="Only these: processes may share a records file."
    )
    parser.add_argument("--size", default="small", choices=tuple(SIZES))
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--cache", type=Path, default=Path("quality-cache"), metavar="DIR")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    parser.add_argument("--at-once", type=int, default=1, help="Trainings of one budget on the GPU at once.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = SIZES[given.size]
    prepared = Prepared(settings, given.cache / settings.key, given.device)
    todo = list(grid.planned(given.plan, given.draws))
    records = Records(given.records)
    done = len([case for case in todo if case in records.of(settings.key)])
    print(f"{len(todo):,} trainings, {done:,} recorded; settings {settings.key}", flush=True)
    for line in run_cases(prepared, todo, records, given.at_once):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

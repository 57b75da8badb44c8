"""The same question about a real pool: NLVR's pictures, with statements that people wrote.

    python benches/quality/nlvr.py --nlvr DIR            # all trainings; goes on where it was stopped
    python benches/quality/tables.py                     # RESULTS.md from the records

DIR is the folder ``nlvr`` of the GitHub repository lil-lab/nlvr (Suhr, Lewis, Yeh and Artzi, ACL 2017;
CC-BY-4.0). The pool has 10,000 samples of the split ``dev``, as `mllm_selector.demo.nlvr` makes them: a third
asks whether something is there, and a seventh are human statements, true or false. The test set has the same
sources, equally many samples of each, about the pictures and statements of the split ``test``. Samples of two
pictures or none are left out.

An encoder is trained on what the corpus says is in the boxes of ``dev``, then frozen; the language model is
pretrained on captions of the same pictures. The rest is as in run.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

import model
from grid import FINALS, Case, Records, uniform
from mllm_selector.demo import nlvr
from mllm_selector.demo.nlvr_questions import COLOURS, ORDERS, PLACES, SHAPES, SIZES, SOURCES, Statement
from run import HERE, Prepared, Settings, World, epochs, kept, kept_array, run_cases
from world import ANSWER, CAPTION, END, PAD, Samples

__all__ = ["FAMILIES", "MIX", "NlvrPrepared", "NlvrSettings", "NlvrWorld", "cases", "main"]

FAMILIES = tuple(name for name, source in SOURCES.items() if source.images == 1)
MIX = np.array([SOURCES[name].weight for name in FAMILIES]) / sum(SOURCES[name].weight for name in FAMILIES)
"""Sources of the pool and how frequent they are."""

PER_IMAGE = 2
BOX, GAP, PATCH = 100, 50, 33
SIDE = BOX // PATCH
CELLS = len(PLACES) * SIDE * SIDE
TEXT = 32
UNKNOWN = 3
ENCODER_RATE = 2e-3
# No word of a question has such brackets.
_NAMES = ("<pad>", "<end>", "<answer>", "<unknown>", "<caption>")
_KINDS = [(colour, shape, size) for colour in COLOURS.values() for shape in SHAPES for size in SIZES.values()]
# Streams of random numbers under one draw.
_POOL, _TEST, _CAPTIONS, _ENCODER = range(200, 204)
_FIXED_DRAW = 10**6


@dataclass(frozen=True)
class NlvrSettings(Settings):
    """Sizes of the experiment.

    Attributes
    ----------
    encoder_epochs : int
        Passes of the encoder over the boxes of the training split.
    """

    pool: int = 10_000
    test: int = 200
    encoder_epochs: int = 15


class BoxEncoder(nn.Module):
    """Sees a box of 99 x 99 pixels and tells how many items of each kind are in each of nine patches."""

    def __init__(self) -> None:
        super().__init__()
        # 99 pixels become 33, 17, and in the end 3 patches.
        self.body = nn.Sequential(
            *_layer(3, 16, 5, stride=3, padding=1),
            *_layer(16, 32, 3, padding=1),
            *_layer(32, 64, 3, stride=2, padding=1),
            *_layer(64, 64, 3, padding=1),
            *_layer(64, 128, 6, stride=5, padding=1),
        )
        self.narrow = nn.Sequential(nn.Linear(128, model.FEATURES), nn.GELU(), nn.LayerNorm(model.FEATURES))
        self.head = nn.Linear(model.FEATURES, len(_KINDS))

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return features of the patches, (n, 3, 99, 99) to (n, 9, 64)."""
        features: torch.Tensor = self.narrow(self.body(boxes).flatten(2).transpose(1, 2))
        return features


def _layer(channels: int, out: int, size: int, **given: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, size, **given), nn.BatchNorm2d(out), nn.ReLU()


def train_encoder(boxes: torch.Tensor, counts: torch.Tensor, passes: int) -> BoxEncoder:
    """Train on boxes, mirrored at random, with the numbers of items in each patch as labels.

    Parameters
    ----------
    boxes : torch.Tensor of uint8, shape (n, 3, 99, 99)
    counts : torch.Tensor, shape (n, 3, 3, kinds)
        By row and column of the patch.
    passes : int
    """
    torch.manual_seed(_FIXED_DRAW)
    encoder = BoxEncoder()
    steps = passes * -(-len(boxes) // model.BATCH)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=ENCODER_RATE)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: model.schedule(step, steps))
    for number in range(passes):
        rng = np.random.default_rng([_FIXED_DRAW, _ENCODER, number])
        for rows in np.array_split(rng.permutation(len(boxes)), steps // passes):
            seen, wanted = boxes[rows].float() / 255, counts[rows]
            # Rows of patches lie on dimension 1 of the counts, columns on 2.
            flips = [axis for axis in (1, 2) if rng.random() < 0.5]
            seen, wanted = seen.flip([axis + 1 for axis in flips]), wanted.flip(flips)
            told = encoder.head(encoder(seen))
            loss = functional.poisson_nll_loss(told, wanted.flatten(1, 2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    return encoder.eval()


def patch_counts(statement: Statement, box: int) -> NDArray[np.float32]:
    """Count the items of each kind whose centre is in each patch of a box, shape (3, 3, kinds)."""
    counts = np.zeros((SIDE, SIDE, len(_KINDS)), np.float32)
    pixels = {name: size for size, name in SIZES.items()}
    for item in statement.boxes[box]:
        half = pixels[item.size] / 2
        row, column = ((int(at) // PATCH) for at in (item.bottom - half, item.left + half))
        kind = _KINDS.index((item.colour, item.shape, item.size))
        counts[min(row, SIDE - 1), min(column, SIDE - 1), kind] += 1
    return counts


def picture(path: Path) -> NDArray[np.uint8]:
    """Read the three boxes of a picture, from left to right, shape (3, 3, 99, 99)."""
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB"))
    side = PATCH * SIDE
    firsts = [place * (BOX + GAP) for place in range(len(PLACES))]
    return np.stack([whole[:side, first : first + side].transpose(2, 0, 1) for first in firsts])


def tokens(text: str) -> list[str]:
    """Split into words and signs, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.replace("<image>", "").lower())


@dataclass(frozen=True)
class Split:
    """Statements of a split, with all their pictures in one order.

    Attributes
    ----------
    corpus : Path
    statements : tuple of Statement
    """

    corpus: Path
    statements: tuple[Statement, ...]

    @classmethod
    def read(cls, corpus: Path, name: str) -> Split:
        """Read one of the splits."""
        statements = nlvr.read_statements(corpus)
        return cls(corpus, tuple(each for each in statements if each.name.startswith(f"{name}-")))

    @cached_property
    def images(self) -> list[str]:
        """Paths of the pictures, relative to the corpus."""
        return [image for statement in self.statements for image in statement.images.values()]

    def records(self, seed: int) -> list[dict[str, Any]]:
        """Make samples of one picture each."""
        records = nlvr.samples(self.statements, PER_IMAGE, seed)
        return [record for record in records if record["source"] in FAMILIES]

    def features(self, encoder: BoxEncoder) -> NDArray[np.float16]:
        """Encode all pictures, shape (n, 27, 64)."""
        parts = []
        for first in range(0, len(self.images), 100):
            boxes = np.concatenate(
                [picture(self.corpus / image) for image in self.images[first : first + 100]]
            )
            with torch.no_grad():
                parts.append(encoder(torch.from_numpy(boxes).float() / 255).numpy().astype(np.float16))
        return np.concatenate(parts).reshape(len(self.images), CELLS, model.FEATURES)


def caption(statement: Statement, order: int, place: int) -> list[str]:
    """Say in words what is in one box of a picture."""
    items = statement.boxes[ORDERS[order][place]]
    kinds = [(item.size, item.colour, item.shape) for item in items]
    words = [PLACES[place]]
    for kind in sorted(set(kinds)):
        words += [str(kinds.count(kind)), *kind]
    return words


@dataclass(frozen=True)
class NlvrPrepared(Prepared):
    """What all trainings share.

    Attributes
    ----------
    corpus : Path
        The NLVR folder.
    """

    settings: NlvrSettings
    corpus: Path

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits to train and to test on."""
        return {name: Split.read(self.corpus, name) for name in ("dev", "test")}

    @cached_property
    def words(self) -> dict[str, int]:
        """Number of each word of the training split; words of the test split may be unknown."""
        turns = [
            turn["value"]
            for record in self.splits["dev"].records(_FIXED_DRAW)
            for turn in record["conversations"]
        ]
        kinds = [word for kind in _KINDS for word in kind]
        return {
            word: number
            for number, word in enumerate(
                [*_NAMES, *sorted({*kinds, *PLACES, *(w for t in turns for w in tokens(t))})]
            )
        }

    @property
    def shape(self) -> model.Shape:
        """Sizes of the language model."""
        return model.Shape(words=len(self.words), cells=CELLS, text=TEXT)

    @cached_property
    def box_encoder(self) -> BoxEncoder:
        """The frozen encoder."""

        def make() -> dict[str, torch.Tensor]:
            split = self.splits["dev"]
            # The boxes of a statement are the same in all its pictures.
            shown = [(statement, *next(iter(statement.images.items()))) for statement in split.statements]
            boxes = np.concatenate([picture(self.corpus / image) for _, _, image in shown])
            counts = [patch_counts(statement, box) for statement, order, _ in shown for box in ORDERS[order]]
            passes = self.settings.encoder_epochs
            return train_encoder(
                torch.from_numpy(boxes), torch.from_numpy(np.stack(counts)), passes
            ).state_dict()

        encoder = BoxEncoder()
        encoder.load_state_dict(kept(self.cache / "encoder.pt", make))
        return encoder.eval()

    def features(self, split: str) -> NDArray[np.float16]:
        """Features of a split's pictures."""
        return kept_array(self.cache / f"{split}.npy", lambda: self.splits[split].features(self.box_encoder))

    @cached_property
    def pretrained(self) -> model.Decoder:
        """The language model after captions."""

        def make() -> dict[str, torch.Tensor]:
            split, rng = self.splits["dev"], np.random.default_rng([_FIXED_DRAW, _CAPTIONS])
            shown = [(statement, order) for statement in split.statements for order in statement.images]
            rows = rng.integers(len(shown), size=self.settings.captions)
            told = [([_NAMES[CAPTION]], caption(*shown[row], int(rng.integers(len(PLACES))))) for row in rows]
            samples = self.samples([("", [turn]) for turn in told])
            data = model.Data.of(samples, self.features("dev")[rows], self.device)
            torch.manual_seed(_FIXED_DRAW)
            decoder = model.Decoder(shape=self.shape).to(self.device)
            seen = self.settings.caption_epochs * len(samples)
            model.train(decoder, data, epochs(np.arange(len(samples)), seen, [_FIXED_DRAW, _CAPTIONS])[None])
            return decoder.state_dict()

        decoder = model.Decoder(shape=self.shape).to(self.device)
        decoder.load_state_dict(kept(self.cache / "pretrained.pt", make))
        return decoder

    def samples(self, told: Iterable[tuple[str, list[tuple[list[str], list[str]]]]]) -> Samples:
        """Lay out samples: a family or nothing, and the words of question and answer of each turn."""
        texts, marks, families = [], [], []
        for family, turns in told:
            text, mark = np.full(TEXT, PAD, np.uint8), np.zeros(TEXT, np.bool_)
            first = 0
            for question, answer in turns:
                for words, is_answer in (
                    (question, False),
                    ([_NAMES[ANSWER]], False),
                    ([*answer, _NAMES[END]], True),
                ):
                    numbers = [self.words.get(word, UNKNOWN) for word in words]
                    text[first : first + len(words)] = numbers[: TEXT - first]
                    mark[first : first + len(words)] = is_answer
                    first += len(words)
            texts.append(text)
            marks.append(mark)
            families.append(FAMILIES.index(family) if family else 0)
        nothing = np.zeros(len(texts), np.bool_)
        return Samples(
            np.zeros((len(texts), 0, 4), np.int8),
            np.stack(texts),
            np.stack(marks),
            np.array(families, np.uint8),
            np.full(len(texts), -1, np.int32),
            nothing,
            nothing,
        )

    def world(self, draw: int, mix: str, wrong: float) -> NlvrWorld:
        """Return the pool and test set of a draw; the last one stays in memory."""
        return _world(self, draw)


@lru_cache(maxsize=1)
def _world(prepared: NlvrPrepared, draw: int) -> NlvrWorld:
    return NlvrWorld(prepared, draw, "nlvr", 0.0)


@dataclass(frozen=True)
class NlvrWorld(World):
    """A pool of one split, its seed model and scores, and a test set of the other."""

    prepared: NlvrPrepared
    families: ClassVar[tuple[str, ...]] = FAMILIES

    @cached_property
    def _drawn(self) -> tuple[Samples, NDArray[np.int64]]:
        records = self._records("dev")
        rng = np.random.default_rng([self.draw, _POOL])
        rows = np.sort(rng.choice(len(records), self.prepared.settings.pool, replace=False))
        return self._made("dev", [records[row] for row in rows])

    @property
    def pool(self) -> Samples:
        """The samples."""
        return self._drawn[0]

    @cached_property
    def data(self) -> model.Data:
        """The pool as the model takes it."""
        return model.Data.of(self.pool, self.prepared.features("dev")[self._drawn[1]], self.prepared.device)

    @cached_property
    def test(self) -> tuple[model.Data, NDArray[np.uint8]]:
        """The test set and the source of each of its samples."""
        records = self._records("test")
        rng = np.random.default_rng([self.draw, _TEST])
        chosen = []
        for family in FAMILIES:
            of_family = [record for record in records if record["source"] == family]
            rows = rng.choice(len(of_family), self.prepared.settings.test, replace=False)
            chosen += [of_family[row] for row in rows]
        samples, images = self._made("test", chosen)
        features = self.prepared.features("test")[images]
        return model.Data.of(samples, features, self.prepared.device), samples.family

    def by_majority(self) -> list[float]:
        """Return how often each source's most frequent answer in the pool is right in the test set."""
        data, families = self.test
        asked = _answers(data.text.numpy(), data.is_answer.numpy())
        known = _answers(self.pool.text, self.pool.is_answer)
        accuracy = []
        for family in range(len(FAMILIES)):
            told = Counter(known[row] for row in np.flatnonzero(self.pool.family == family))
            ((answer, _),) = told.most_common(1)
            accuracy.append(
                float(np.mean([asked[row] == answer for row in np.flatnonzero(families == family)]))
            )
        return accuracy

    def _records(self, split: str) -> list[dict[str, Any]]:
        """Return the samples whose words fit; the longest are 0.2 % of all."""
        return [
            record
            for record in self.prepared.splits[split].records(self.draw)
            if sum(len(tokens(turn["value"])) + 1 for turn in record["conversations"]) <= TEXT
        ]

    def _made(self, split: str, records: list[dict[str, Any]]) -> tuple[Samples, NDArray[np.int64]]:
        place = {image: row for row, image in enumerate(self.prepared.splits[split].images)}
        told = []
        for record in records:
            turns = [tokens(turn["value"]) for turn in record["conversations"]]
            told.append((record["source"], list(zip(turns[::2], turns[1::2], strict=True))))
        return self.prepared.samples(told), np.array([place[record["image"]] for record in records])


def _answers(text: NDArray[np.integer], is_answer: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    return [tuple(words[marks].tolist()) for words, marks in zip(text, is_answer, strict=True)]


DRAWS = range(5)
METHODS = ("random", "grouped", "families equal")


def cases() -> list[Case]:
    """Return the trainings, the most telling first."""

    def of(budgets: Iterable[float], methods: Iterable[str]) -> list[Case]:
        return [
            Case(draw=draw, mix="nlvr", wrong=0.0, method=method, budget=budget)
            for budget in budgets
            for draw in DRAWS
            for method in methods
        ]

    return [
        *of((5, 15), METHODS),
        *of((100,), ("random",)),
        *of((5, 15), ("all, cheap clusters", "7 a cluster", "stratified", "within uniform")),
        *of((40,), ("random", "grouped", "within uniform")),
        *of((5, 15), tuple(map(uniform, ("all, cheap clusters", "7 a cluster")))),
        *of((5, 15, 40), FINALS),
    ]


def main() -> None:
    """Run what has no record yet."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--nlvr", type=Path, required=True, metavar="DIR", help="The corpus.")
    parser.add_argument(
        "--draws", nargs="+", type=int, default=DRAWS, metavar="N",
        help="Only these: processes may share a records file.",
    )  # fmt: skip
    parser.add_argument("--records", type=Path, default=HERE / "nlvr.jsonl")
    parser.add_argument("--cache", type=Path, default=Path("quality-cache"), metavar="DIR")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = NlvrSettings()
    prepared = NlvrPrepared(settings, given.cache / settings.key, given.device, given.nlvr)
    records = Records(given.records)
    for draw in given.draws:
        case = Case(draw=draw, mix="nlvr", wrong=0.0, method="majority", budget=100)
        if case not in records.of(settings.key):
            accuracy = prepared.world(draw, "nlvr", 0.0).by_majority()
            records.add(settings.key, case, accuracy=[round(value, 4) for value in accuracy])
    for line in run_cases(prepared, [case for case in cases() if case.draw in given.draws], records):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""LLaVA records made by code: of the sources, turns and lengths of LLaVA-1.5's mix of 665,000 records.

A record depends on the seed and its number alone, so that the first n records are the same whatever number
was made. Texts are words drawn by Zipf's law, in several scripts, with line breaks, quotes and back slashes.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 4096
"""Records that share one generator."""

WORDS = 20_000
IMAGES = 400_000
"""Numbers that image names are drawn from, in each folder."""


@dataclass(frozen=True)
class Source:
    """One of the data sets in the mix.

    Attributes
    ----------
    share : float
        Of the records.
    turns : tuple of int
        Fewest and most questions of a record.
    question, answer : float
        Mean length in words.
    folder : str
        Of its images; empty for text only.
    """

    share: float
    turns: tuple[int, int]
    question: float
    answer: float
    folder: str


SOURCES = (
    Source(0.24, (1, 5), 12, 55, "coco/train2017"),
    Source(0.26, (1, 10), 14, 2, "vqa/images"),
    Source(0.12, (3, 5), 9, 5, "ocr_vqa/images"),
    Source(0.11, (1, 15), 11, 1, "gqa/images"),
    Source(0.13, (5, 12), 13, 9, "vg/VG_100K"),
    Source(0.03, (1, 1), 20, 12, "textvqa/train_images"),
    Source(0.11, (1, 9), 35, 125, ""),
)
SCRIPTS = (
    string.ascii_lowercase,
    "абвгдежзийклмнопрстуфхцчшщыэюя",
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学",
    "aeiouyàâäçéèêëîïñôöûüßåøæ",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
)
SCRIPT_SHARES = (0.95, 0.01, 0.02, 0.015, 0.005)
ENDINGS = (("{}", 222), ("{},", 14), ("{}.", 13), ("{}.\n", 3), ('"{}"', 2), ("\\{}", 1), ("{} 😀", 1))
"""What follows or surrounds a word, and how often of 256 times."""


def records(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the first `count` records as a JSON reader would return them."""
    words = vocabulary()
    for first in range(0, count, BLOCK):
        rng = np.random.default_rng([seed, first // BLOCK])
        for place, record in enumerate(block(rng, words)):
            if first + place >= count:
                return
            yield {"id": f"{first + place:012d}", **record}


def vocabulary() -> np.ndarray:
    """Return words by script, ending and rank, frequent ones short."""
    rng = np.random.default_rng(0)
    lengths = 1 + rng.poisson(np.linspace(2.2, 7.5, WORDS))
    table = np.empty((len(SCRIPTS), len(ENDINGS), WORDS), object)
    for script, letters in enumerate(SCRIPTS):
        draws = rng.integers(len(letters), size=lengths.sum())
        text = "".join(letters[draw] for draw in draws.tolist())
        stops = np.cumsum(lengths).tolist()
        words = [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
        for ending, (form, _) in enumerate(ENDINGS):
            table[script, ending] = [form.format(word) for word in words]
    return table


def block(rng: np.random.Generator, words: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the records of one block, less their ids."""
    kinds = rng.choice(len(SOURCES), size=BLOCK, p=[source.share for source in SOURCES])
    low, high = np.array([source.turns for source in SOURCES])[kinds].T
    turns = rng.integers(low, high + 1)
    scripts = rng.choice(len(SCRIPTS), size=BLOCK, p=SCRIPT_SHARES)
    means = np.array([(source.question, source.answer) for source in SOURCES])[np.repeat(kinds, turns)]
    lengths = 1 + (means * rng.lognormal(-0.3, 0.8, size=means.shape)).astype(np.int64).ravel()
    per_record = np.add.reduceat(lengths, 2 * (np.cumsum(turns) - turns))

    total = int(lengths.sum())
    ranks = (np.exp(rng.random(total) * np.log(WORDS + 1)) - 1).astype(np.int64)
    endings = np.repeat(np.arange(len(ENDINGS)), [times for _, times in ENDINGS])
    endings = endings[rng.integers(256, size=total, dtype=np.uint8)]
    texts = words[np.repeat(scripts, per_record), endings, ranks].tolist()
    stops = np.cumsum(lengths).tolist()
    values = iter([" ".join(texts[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)])

    images = rng.integers(IMAGES, size=BLOCK).tolist()
    below = (rng.random(BLOCK) < 0.1).tolist()  # the mark after the question
    for kind, count, image, mark_below in zip(kinds.tolist(), turns.tolist(), images, below, strict=True):
        folder = SOURCES[kind].folder
        conversations = [
            {"from": speaker, "value": next(values)} for _ in range(count) for speaker in ("human", "gpt")
        ]
        if not folder:
            yield {"model": "", "conversations": conversations}
            continue
        question = conversations[0]["value"]
        conversations[0]["value"] = f"{question}\n<image>" if mark_below else f"<image>\n{question}"
        yield {"image": f"{folder}/{image:012d}.jpg", "conversations": conversations}

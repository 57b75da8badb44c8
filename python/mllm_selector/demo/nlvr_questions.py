"""Questions about NLVR pictures whose answers follow from what is in the boxes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "COLOURS",
    "ORDERS",
    "SIZES",
    "SOURCES",
    "Box",
    "Draw",
    "Item",
    "Scene",
    "Source",
    "Statement",
    "Turns",
]

COLOURS = {"black": "black", "#0099ff": "blue", "yellow": "yellow"}
SHAPES = ("circle", "square", "triangle")
SIZES = {10: "small", 20: "medium", 30: "large"}
PLACES = ("left", "middle", "right")

# Image k of a statement shows its boxes, from left to right, in the k-th of these orders. The corpus
# does not say so; the pixels of all images of its dev and test splits do.
ORDERS = tuple(itertools.permutations(range(3)))

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One coloured shape; `bottom` is its lower edge, in pixels from the top of the box."""

    colour: str
    shape: str
    size: str
    left: int
    bottom: int


Box = tuple[Item, ...]
Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Statement:
    """A statement of the corpus.

    Attributes
    ----------
    name : str
        Split and identifier, such as ``dev-1572-0``.
    text : str
        What a person wrote.
    label : bool
        Whether it is true, by the corpus.
    boxes : tuple of Box
        Contents of the three boxes, in the corpus's order.
    images : dict of int to str
        Path of each image that is there, relative to the corpus folder, by its order `k` in ``0..5``.
    """

    name: str
    text: str
    label: bool
    boxes: tuple[Box, ...]
    images: dict[int, str]


@dataclass(frozen=True)
class Kind:
    """Items of one colour, shape or size; None means any."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None

    def count(self, items: Sequence[Item]) -> int:
        """Count the items of this kind."""
        return sum(
            self.colour in (None, item.colour)
            and self.shape in (None, item.shape)
            and self.size in (None, item.size)
            for item in items
        )

    def name(self, count: int = 1) -> str:
        """Return the kind in words, such as ``small yellow squares``."""
        words = [word for word in (self.size, self.colour, self.shape or "object") if word]
        return " ".join(words) + ("" if count == 1 else "s")

    def some(self) -> str:
        """Return the kind in words with its article."""
        name = self.name()
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"

    def number(self, count: int) -> str:
        """Return a number of items of this kind in words, such as ``no circles``."""
        return f"{count or 'no'} {self.name(count)}"


ANY = Kind()
KINDS = [
    *(Kind(colour) for colour in COLOURS.values()),
    *(Kind(None, shape) for shape in SHAPES),
    *(Kind(colour, shape) for colour in COLOURS.values() for shape in SHAPES),
]
SIZED_KINDS = [
    Kind(colour, shape, size) for size in SIZES.values() for colour in COLOURS.values() for shape in SHAPES
]


class Draw:
    """Draws that are the same with every version of Python: only `random.Random.random` is promised to be."""

    def __init__(self, key: str) -> None:
        self._random = random.Random(key)

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self._random.random() < probability

    def one(self, items: Sequence[T]) -> T:
        """Draw one item."""
        return items[int(self._random.random() * len(items))]

    def weighted(self, weights: dict[str, int]) -> str:
        """Draw a key with a probability proportional to its weight."""
        left = self._random.random() * sum(weights.values())
        for name, weight in weights.items():
            left -= weight
            if left < 0:
                return name
        return name


@dataclass(frozen=True)
class Scene:
    """One image of a statement.

    Attributes
    ----------
    statement : Statement
        The statement.
    order : int
        Which of the six orders of the boxes the image shows.
    """

    statement: Statement
    order: int

    @property
    def image(self) -> str:
        """Path of the image, relative to the corpus folder."""
        return self.statement.images[self.order]

    @property
    def boxes(self) -> list[Box]:
        """The boxes from left to right."""
        return [self.statement.boxes[box] for box in ORDERS[self.order]]

    @property
    def items(self) -> list[Item]:
        """All items of the image."""
        return [item for box in self.boxes for item in box]

    @property
    def has_sizes(self) -> bool:
        """Whether the items differ in size."""
        return len({item.size for item in self.items}) > 1

    def boxes_with(self, kind: Kind) -> int:
        """Count the boxes that hold an item of a kind."""
        return sum(kind.count(box) > 0 for box in self.boxes)


# One function a source. Each returns question and answer of every turn, or nothing where the drawn
# question has no single answer in the scene.


def _statement(draw: Draw, scene: Scene) -> Turns:
    text, label = scene.statement.text, str(scene.statement.label)
    wordings = [
        f"{text}\nTrue or false?",
        f"Is this statement about the picture true or false?\n{text}",
        f"Somebody says of this picture: {text}\nAnswer True or False.",
    ]
    return [(draw.one(wordings), label)]


def _exists(draw: Draw, scene: Scene) -> Turns:
    wanted = draw.chance(0.5)
    kinds = [kind for kind in _kinds(scene, draw) if (kind.count(scene.items) > 0) == wanted]
    if not kinds:
        return []
    kind = draw.one(kinds)
    if draw.chance(0.3):
        answer = f"Yes, there is {kind.some()}." if wanted else f"No, there is no {kind.name()}."
        return [(f"Can you see {kind.some()} in this picture?", answer)]
    wordings = [
        f"Is there {kind.some()} in the picture?\nAnswer yes or no.",
        f"Does any box hold {kind.some()}? Answer yes or no.",
    ]
    return [(draw.one(wordings), "Yes" if wanted else "No")]


def _count(draw: Draw, scene: Scene) -> Turns:
    kind = ANY if draw.chance(0.15) else draw.one(_kinds(scene, draw))
    count, boxes = kind.count(scene.items), scene.boxes_with(kind)
    choice = draw.one(["number", "number", "sentence", "boxes"])
    if choice == "number":
        return [(f"How many {kind.name(2)} are there in the picture?\nAnswer with a number.", str(count))]
    if choice == "boxes":
        return [(f"How many of the three boxes hold {kind.some()}?", str(boxes))]
    verb = "is" if count == 1 else "are"
    return [(f"Count the {kind.name(2)}.", f"There {verb} {kind.number(count)}.")]


def _colour(draw: Draw, scene: Scene) -> Turns:
    choice = draw.one(["all", "all", "shape", "most"])
    if choice == "all":
        wordings = ["Which colours are in the picture?", "Name the colours of the objects."]
        return [(draw.one(wordings), _colours(scene.items))]
    if choice == "most":
        return [("Which colour do most objects have?", colour) for colour in _commonest(scene.items)]
    shape = draw.one(SHAPES)
    items = [item for item in scene.items if item.shape == shape]
    return [(f"What colours do the {shape}s have?", _colours(items))] if items else []


def _position(draw: Draw, scene: Scene) -> Turns:
    place = draw.one(range(len(PLACES)))
    box, name = scene.boxes[place], PLACES[place]
    choice = draw.one(["count", "exists", "fullest", "tower"])
    if choice == "count":
        return [(f"How many objects are in the {name} box?", str(len(box)))]
    if choice == "exists":
        kind = draw.one(KINDS)
        answer = "Yes" if kind.count(box) else "No"
        return [(f"Is there {kind.some()} in the {name} box?\nAnswer yes or no.", answer)]
    if choice == "fullest":
        sizes = [len(box) for box in scene.boxes]
        if sizes.count(max(sizes)) > 1:
            return []
        question = "Which box holds the most objects: the left, the middle or the right one?"
        return [(question, f"The {PLACES[sizes.index(max(sizes))]} one.")]
    if not _is_tower(box):
        return []
    end = draw.one(["top", "bottom"])
    block = sorted(box, key=lambda item: item.bottom)[0 if end == "top" else -1]
    return [(f"What is the colour of the block at the {end} of the tower in the {name} box?", block.colour)]


def _two_turn(draw: Draw, scene: Scene) -> Turns:
    colour, shape = draw.one(list(COLOURS.values())), draw.one(SHAPES)
    all_items, of_colour = len(scene.items), Kind(colour).count(scene.items)
    choice = draw.one(["part", "present", "boxes"])
    if choice == "part":
        first = ("How many objects are there in all?", str(all_items))
        return [first, (f"And how many of them are {colour}?", str(of_colour))]
    if choice == "present":
        kind = Kind(colour, shape)
        count = kind.count(scene.items)
        first = (f"Is there {kind.some()}?", "Yes" if count else "No")
        return [first, ("How many?", str(count))]
    first = ("Which colours can you see?", _colours(scene.items))
    return [first, (f"In how many boxes is there something {colour}?", str(scene.boxes_with(Kind(colour))))]


def _text(draw: Draw, scene: Scene) -> Turns:
    heads = ["One box holds", "Another box holds", "The third box holds"]
    lines = [f"{head} {_contents(box)}." for head, box in zip(heads, scene.boxes, strict=True)]
    kind = draw.one(KINDS)
    question, answer = draw.one(
        [
            (f"How many {kind.name(2)} are there in all?", str(kind.count(scene.items))),
            (f"How many boxes hold {kind.some()}?", str(scene.boxes_with(kind))),
            (f"Is there {kind.some()} in every box?", "Yes" if scene.boxes_with(kind) == 3 else "No"),
        ]
    )
    return [(" ".join(lines) + "\n" + question, answer)]


def _pair(draw: Draw, first: Scene, second: Scene) -> Turns:
    if first.statement is second.statement:
        return []
    kind = draw.one(KINDS)
    counts = kind.count(first.items), kind.count(second.items)
    if draw.chance(0.5):
        answer = "Yes" if all(counts) else "No"
        return [(f"Do both pictures show {kind.some()}?\nAnswer yes or no.", answer)]
    answers = {True: "The first.", False: "The second."}
    answer = "Both the same." if counts[0] == counts[1] else answers[counts[0] > counts[1]]
    return [(f"Which picture has more {kind.name(2)}, the first or the second?", answer)]


@dataclass(frozen=True)
class Source:
    """A kind of sample: its weight in the mix, its number of images, and what asks about that many scenes."""

    weight: int
    images: int
    ask: Callable[..., Turns]


# The mix is skewed like that of real pools: much of it is easy and says the same again and again.
SOURCES = {
    "nlvr-exists": Source(28, 1, _exists),
    "nlvr-colour": Source(22, 1, _colour),
    "nlvr-count": Source(15, 1, _count),
    "nlvr-statement": Source(12, 1, _statement),
    "nlvr-two-turn": Source(8, 1, _two_turn),
    "nlvr-text": Source(6, 0, _text),
    "nlvr-position": Source(5, 1, _position),
    "nlvr-pair": Source(4, 2, _pair),
}


def _kinds(scene: Scene, draw: Draw) -> list[Kind]:
    return SIZED_KINDS if scene.has_sizes and draw.chance(0.3) else KINDS


def _colours(items: Sequence[Item]) -> str:
    names = sorted({item.colour for item in items})
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _commonest(items: Sequence[Item]) -> list[str]:
    """Return the one most common colour, or nothing if two share the first place."""
    counts = Counter(item.colour for item in items).most_common(2)
    return [] if len(counts) == 2 and counts[0][1] == counts[1][1] else [counts[0][0]]


def _contents(box: Box) -> str:
    counts = Counter(Kind(item.colour, item.shape, item.size) for item in box)
    parts = [kind.number(count) for kind, count in sorted(counts.items(), key=lambda entry: entry[0].name())]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _is_tower(box: Box) -> bool:
    return {(item.shape, item.size, item.left) for item in box} == {("square", "medium", 40)} and len(box) > 1

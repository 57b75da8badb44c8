"""Pictures drawn by code in the style of NLVR, and what there is to say about them.

A picture has three grey boxes side by side; each holds squares, circles and triangles in three colours and
three sizes, scattered or stacked into a tower (Suhr, Lewis, Yeh and Artzi, "A Corpus of Natural Language for
Visual Reasoning", ACL 2017). Nothing here is taken from that corpus.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["Item", "Scene", "draw_scene"]

BOXES = ("left", "middle", "right")
SHAPES = ("square", "circle", "triangle")
COLOURS = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
SIZES = {"small": 10, "medium": 20, "large": 30}
NUMBERS = ("no", "one", "two", "three", "four")

BOX_SIDE = 100
GAP = 50
PICTURE_SIZE = (3 * BOX_SIDE + 2 * GAP, BOX_SIDE)
_BOX_GREY = (211, 211, 211)
_GAP_GREY = (128, 128, 128)
_MOST_ITEMS = 4
_TOWER_STEP = SIZES["medium"] + 1  # one pixel of box shows between the squares of a tower


@dataclass(frozen=True)
class Item:
    """One object: what it is, and its upper left corner in pixels inside its box."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def side(self) -> int:
        """Width and height in pixels."""
        return SIZES[self.size]

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Three boxes of objects, left to right."""

    boxes: tuple[tuple[Item, ...], ...]

    def picture(self) -> Image.Image:
        """Draw the scene, 400 x 100 pixels, RGB."""
        picture = Image.new("RGB", PICTURE_SIZE, _GAP_GREY)
        draw = ImageDraw.Draw(picture)
        for index, items in enumerate(self.boxes):
            left = index * (BOX_SIDE + GAP)
            draw.rectangle((left, 0, left + BOX_SIDE - 1, BOX_SIDE - 1), fill=_BOX_GREY)
            for item in items:
                _draw_item(draw, item, left)
        return picture

    def caption(self) -> str:
        """Say what is in every box."""
        return " ".join(f"The {box} box has {self._contents(box)}." for box in BOXES)

    def turns(self, random: np.random.Generator) -> list[tuple[str, str]]:
        """Return what a conversation about the scene can be: the caption, then a question drawn at random.

        Returns
        -------
        list of (str, str)
            Instructions and answers.
        """
        kinds = (self._ask_contents, self._ask_count, self._ask_existence, self._ask_highest)
        ask = kinds[random.integers(len(kinds))]
        box = BOXES[random.integers(len(BOXES))]
        colour = list(COLOURS)[random.integers(len(COLOURS))]
        return [("Describe the picture.", self.caption()), ask(box, colour)]

    def items(self, box: str) -> tuple[Item, ...]:
        """Return the objects of a box by its name."""
        return self.boxes[BOXES.index(box)]

    def _contents(self, box: str) -> str:
        counts = Counter(item.name for item in self.items(box))
        # In the order of COLOURS and SHAPES, so that a scene has one caption.
        names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        return " and ".join(_counted(counts[name], name) for name in names if counts[name])

    def _ask_contents(self, box: str, colour: str) -> tuple[str, str]:
        return f"What is in the {box} box?", f"{self._contents(box).capitalize()}."

    def _ask_count(self, box: str, colour: str) -> tuple[str, str]:
        return f"How many {colour} objects are in the {box} box?", f"{self._count(box, colour)}"

    def _ask_existence(self, box: str, colour: str) -> tuple[str, str]:
        return f"Is there a {colour} object in the {box} box?", "Yes" if self._count(box, colour) else "No"

    def _ask_highest(self, box: str, colour: str) -> tuple[str, str]:
        highest = min(self.items(box), key=lambda item: (item.y, item.x))
        return f"What is the highest object in the {box} box?", f"A {highest.name}."

    def _count(self, box: str, colour: str) -> int:
        return sum(item.colour == colour for item in self.items(box))


def draw_scene(random: np.random.Generator) -> Scene:
    """Draw a scene at random: three boxes of scattered objects, or of towers.

    Parameters
    ----------
    random : numpy.random.Generator
        Where the randomness comes from.
    """
    fill = _tower if random.random() < 0.4 else _scatter
    return Scene(tuple(tuple(fill(random, int(random.integers(1, _MOST_ITEMS + 1)))) for _ in BOXES))


def _tower(random: np.random.Generator, count: int) -> list[Item]:
    colours = random.choice(list(COLOURS), size=count)
    floor = BOX_SIDE - SIZES["medium"]
    return [
        Item("square", str(colour), "medium", 40, floor - level * _TOWER_STEP)
        for level, colour in enumerate(colours)
    ]


def _scatter(random: np.random.Generator, count: int) -> list[Item]:
    items: list[Item] = []
    while len(items) < count:
        size = str(random.choice(list(SIZES)))
        x, y = (int(place) for place in random.integers(0, BOX_SIDE - SIZES[size], size=2))
        item = Item(str(random.choice(SHAPES)), str(random.choice(list(COLOURS))), size, x, y)
        if not any(_overlap(item, other) for other in items):
            items.append(item)
    return items


def _overlap(a: Item, b: Item) -> bool:
    return a.x - b.side < b.x < a.x + a.side and a.y - b.side < b.y < a.y + a.side


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, left: int) -> None:
    x0, y0 = left + item.x, item.y
    x1, y1 = x0 + item.side - 1, y0 + item.side - 1
    fill = COLOURS[item.colour]
    if item.shape == "square":
        draw.rectangle((x0, y0, x1, y1), fill=fill)
    elif item.shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=fill)
    else:
        draw.polygon([((x0 + x1) // 2, y0), (x0, y1), (x1, y1)], fill=fill)


def _counted(count: int, name: str) -> str:
    return f"{NUMBERS[count]} {name}{'s' if count != 1 else ''}"

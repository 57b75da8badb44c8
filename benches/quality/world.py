"""A miniature world of visual instructions, made by code from a seed.

A scene is a 3 x 3 grid of cells of 16 x 16 pixels: empty, an object (6 shapes, 7 colours, 2 sizes), a digit,
a letter, or a bar of a chart. Cells are drawn with a jitter of one pixel, a background of their scene, and
noise. Eleven families of questions are asked; `MIXES` says how often each is in a pool. A pool has wrong
answers (another answer of the same family), near-duplicates (a few scenes asked for again and again, drawn
anew), and questions that give the answer away. The test set has none of these, and the same number of each
family.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ANSWER",
    "CELLS",
    "CELL_PIXELS",
    "END",
    "FAMILIES",
    "MIXES",
    "PAD",
    "TEXT",
    "VOCABULARY",
    "Samples",
    "captions",
    "draw_pool",
    "draw_test",
    "pixels",
    "scene_image",
]

SIDE = 16
CELLS = 9
CELL_PIXELS = SIDE * SIDE * 3
TEXT = 11
"""Words of question and answer, with what stands between them and the end."""

EMPTY, OBJECT, DIGIT, LETTER, BAR = range(5)

SHAPES = ("square", "circle", "triangle", "diamond", "cross", "ring")
SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange")
_RGB = np.array(
    [[0.85, 0.1, 0.1], [0.1, 0.65, 0.15], [0.15, 0.25, 0.9], [0.9, 0.85, 0.1], [0.55, 0.1, 0.65],
     [0.1, 0.75, 0.8], [0.95, 0.5, 0.05]], np.float32
)  # fmt: skip
DIGITS = tuple("0123456789")
LETTERS = tuple("ACEFHKLPTUXZ")
HEIGHTS = 9
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PLACES = tuple(f"p{place}" for place in range(CELLS))

# The classic 5 x 7 screen font, a byte a column, the lowest bit on top.
_FONT = {
    "0": "3E5149453E", "1": "00427F4000", "2": "4261514946", "3": "2141454B31", "4": "1814127F10",
    "5": "2745454539", "6": "3C4A494930", "7": "0171090503", "8": "3649494936", "9": "064949291E",
    "A": "7E1111117E", "C": "3E41414122", "E": "7F49494941", "F": "7F09090901", "H": "7F0808087F",
    "K": "7F08142241", "L": "7F40404040", "P": "7F09090906", "T": "01017F0101", "U": "3F4040403F",
    "X": "6314081463", "Z": "6151494543",
}  # fmt: skip

# Two wordings of each question; * stands for what is asked about.
_QUESTIONS = {
    "describe": ("describe it", "what is it"),
    "color": ("what color", "color of it"),
    "exists": ("is * there", "anything * there"),
    "count": ("how many *", "count *"),
    "where": ("where is *", "place of *"),
    "lookup": ("what shape *", "shape of *"),
    "highest": ("highest bar color", "what bar highest"),
    "number": ("read number", "what number"),
    "bar": ("how high * bar", "height of *"),
    "word": ("read word", "what word"),
    "beside": ("color right of *", "what right of *"),
}
FAMILIES = tuple(_QUESTIONS)

MIXES = {
    "skewed": (0.27, 0.23, 0.14, 0.08, 0.06, 0.05, 0.05, 0.04, 0.03, 0.03, 0.02),
    "uniform": (1 / len(FAMILIES),) * len(FAMILIES),
}
"""Share of each family in a pool: easy and redundant ones large, hard ones rare; or all the same."""

_WORDS = {word for wordings in _QUESTIONS.values() for text in wordings for word in text.split()} - {"*"}
VOCABULARY = (
    "pad", "end", "answer", "hint", "caption", "bar", "yes", "no",
    *SHAPES, *SIZES, *COLOURS, *DIGITS, *LETTERS, *ROWS, *COLUMNS, *PLACES,
    *sorted(_WORDS - {"bar", "right"}),
)  # fmt: skip
PAD, END, ANSWER, HINT, CAPTION = range(5)
_ID = {word: number for number, word in enumerate(VOCABULARY)}

DUPLICATES = 0.2
DUPLICATED_SCENES = 40
HINTS = 0.05
TEST_SAMPLES = 400

# Streams of random numbers under one seed.
_POOL, _PIXELS, _NOISE, _TEST, _CAPTIONS = range(5)


@dataclass(frozen=True)
class Samples:
    """Samples of one pool or test set.

    Attributes
    ----------
    cells : ndarray of int8, shape (n, 9, 4)
        Of each cell: its kind; shape, digit, letter or height; colour; size.
    text : ndarray of uint8, shape (n, 11)
        Question, ``answer``, answer, ``end``, padding.
    is_answer : ndarray of bool, shape (n, 11)
        Where the answer and the end stand.
    family : ndarray of uint8, shape (n,)
        Index in `FAMILIES`.
    original : ndarray of int32, shape (n,)
        The scene that a near-duplicate repeats; -1 for the others.
    is_wrong, has_hint : ndarray of bool, shape (n,)
        Whether the answer is wrong; whether the question gives it away.
    """

    cells: NDArray[np.int8]
    text: NDArray[np.uint8]
    is_answer: NDArray[np.bool_]
    family: NDArray[np.uint8]
    original: NDArray[np.int32]
    is_wrong: NDArray[np.bool_]
    has_hint: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.family)


def draw_pool(draw: int, mix: str, size: int, wrong: float) -> Samples:
    """Draw a pool.

    Parameters
    ----------
    draw : int
        Seed. Pools of one draw and mix differ in nothing but their wrong answers, which those with more of
        them have as well.
    mix : str
        A name of `MIXES`.
    size : int
        Number of samples.
    wrong : float
        Share of wrong answers.
    """
    rng = np.random.default_rng([draw, _POOL])
    families = rng.choice(len(FAMILIES), size=size, p=np.array(MIXES[mix]) / sum(MIXES[mix]))
    scenes = [_ask(FAMILIES[family], rng) for family in families]
    original = np.full(size, -1, np.int32)
    is_copy = rng.random(size) < DUPLICATES
    is_copy[:DUPLICATED_SCENES] = False
    for row in np.flatnonzero(is_copy):
        original[row] = rng.integers(DUPLICATED_SCENES)
        scenes[row] = scenes[original[row]]
        families[row] = families[original[row]]
    has_hint = rng.random(size) < HINTS
    is_wrong = np.random.default_rng([draw, _NOISE]).random(size) < wrong
    answers = [scene.answer for scene in scenes]
    for family in range(len(FAMILIES)):
        rows = np.flatnonzero(families == family)
        known = sorted({answers[row] for row in rows})
        for row in rows[is_wrong[rows]]:
            choices = np.random.default_rng([draw, _NOISE, int(row)])
            others = [answer for answer in known if answer != answers[row]]
            answers[row] = others[choices.integers(len(others))]
    return _samples(scenes, answers, families, original, is_wrong, has_hint)


def draw_test(draw: int, per_family: int = TEST_SAMPLES) -> Samples:
    """Draw a clean test set with the same number of samples of each family."""
    rng = np.random.default_rng([draw, _TEST])
    families = np.repeat(np.arange(len(FAMILIES)), per_family)
    scenes = [_ask(FAMILIES[family], rng) for family in families]
    nothing = np.zeros(len(families), np.bool_)
    return _samples(
        scenes,
        [scene.answer for scene in scenes],
        families,
        np.full(len(families), -1, np.int32),
        nothing,
        nothing,
    )


def captions(draw: int, size: int) -> Samples:
    """Draw scenes with what stands in one or two of their cells, to pretrain on."""
    rng = np.random.default_rng([draw, _CAPTIONS])
    families = rng.integers(len(FAMILIES), size=size)
    scenes = []
    for family in families:
        cells = _ask(FAMILIES[family], rng).cells
        shown = np.flatnonzero(cells[:, 0] != EMPTY)
        two = np.sort(rng.choice(shown, size=min(2, len(shown)), replace=False))
        words = [word for place in two for word in (PLACES[place], *_cell_words(cells[place]))]
        scenes.append(_Scene(cells, ("caption",), tuple(words)))
    nothing = np.zeros(size, np.bool_)
    answers = [scene.answer for scene in scenes]
    return _samples(scenes, answers, families, np.full(size, -1, np.int32), nothing, nothing)


def pixels(cells: NDArray[np.int8], seed: list[int]) -> NDArray[np.float32]:
    """Draw cells, each scene with its own background.

    Parameters
    ----------
    cells : ndarray of int8, shape (n, 9, 4)
        As in `Samples`.
    seed : list of int
        Decides jitter, backgrounds, ink and noise.

    Returns
    -------
    ndarray of float32, shape (n, 9, 768)
        RGB values of about 0 to 1.
    """
    rng = np.random.default_rng([*seed, _PIXELS])
    n = len(cells)
    masks = _TEMPLATES[_template_of(cells), rng.integers(9, size=(n, CELLS))]
    ground = rng.uniform(0.75, 0.95, (n, 1, 1, 1)).astype(np.float32)
    ink = rng.uniform(0.0, 0.25, (n, CELLS, 1)).astype(np.float32).repeat(3, axis=2)
    has_colour = (cells[..., 0] == OBJECT) | (cells[..., 0] == BAR)
    ink[has_colour] = _RGB[cells[..., 2][has_colour]]
    drawn = ground + masks[..., None] * (ink[:, :, None, :] - ground)
    drawn += rng.normal(scale=0.05, size=drawn.shape).astype(np.float32)
    return drawn.reshape(n, CELLS, CELL_PIXELS)


def scene_image(cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Put the pixels of one scene's cells together: (9, 768) to (48, 48, 3)."""
    grid = cells.reshape(3, 3, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(3 * SIDE, 3 * SIDE, 3)
    return (np.clip(grid, 0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class _Scene:
    cells: NDArray[np.int8]
    question: tuple[str, ...]
    answer: tuple[str, ...]


def _ask(family: str, rng: np.random.Generator) -> _Scene:
    """Make a scene of a family with its question and answer."""
    cells = np.zeros((CELLS, 4), np.int8)
    about, answer = _MAKERS[family](cells, rng)
    wording = _QUESTIONS[family][rng.integers(2)]
    return _Scene(cells, tuple(wording.replace("*", about).split()), answer)


def _object(rng: np.random.Generator, shape: int | None = None, colour: int | None = None) -> list[int]:
    return [
        OBJECT,
        int(rng.integers(len(SHAPES))) if shape is None else shape,
        int(rng.integers(len(COLOURS))) if colour is None else colour,
        int(rng.integers(len(SIZES))),
    ]


def _put(cells: NDArray[np.int8], things: list[list[int]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Put things into free cells; return their places."""
    places = rng.choice(np.flatnonzero(cells[:, 0] == EMPTY), size=len(things), replace=False)
    for place, thing in zip(places, things, strict=True):
        cells[place] = thing
    return places


def _one(cells: NDArray[np.int8], rng: np.random.Generator) -> list[int]:
    thing = _object(rng)
    _put(cells, [thing], rng)
    return thing


def _describe(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    _, shape, colour, size = _one(cells, rng)
    return "", (SIZES[size], COLOURS[colour], SHAPES[shape])


def _color(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    return "", (COLOURS[_one(cells, rng)[2]],)


def _exists(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    asked, *others = rng.permutation(len(COLOURS)).tolist()
    shown = others[: rng.integers(2, 5)]
    is_there = bool(rng.integers(2))
    if is_there:
        shown[0] = asked
    _put(cells, [_object(rng, colour=colour) for colour in shown], rng)
    return COLOURS[asked], ("yes" if is_there else "no",)


def _count(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    asked, *others = rng.permutation(len(COLOURS)).tolist()
    count = int(rng.integers(5))
    more = rng.integers(1, 3)
    shown = [asked] * count + rng.choice(others, size=more).tolist()
    _put(cells, [_object(rng, colour=colour) for colour in shown], rng)
    return COLOURS[asked], (DIGITS[count],)


def _three(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[list[int], int]:
    """Put three objects of different colours; return one and its place."""
    things = [_object(rng, colour=colour) for colour in rng.permutation(len(COLOURS))[:3].tolist()]
    return things[0], int(_put(cells, things, rng)[0])


def _where(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    thing, place = _three(cells, rng)
    return COLOURS[thing[2]], (ROWS[place // 3], COLUMNS[place % 3])


def _lookup(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    thing, _ = _three(cells, rng)
    return COLOURS[thing[2]], (SHAPES[thing[1]],)


def _chart(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Put a chart of three bars into a row; return heights and colours."""
    heights = (rng.permutation(HEIGHTS)[:3] + 1).tolist()
    colours = rng.permutation(len(COLOURS))[:3].tolist()
    row = rng.integers(3)
    for column, (height, colour) in enumerate(zip(heights, colours, strict=True)):
        cells[3 * row + column] = [BAR, height, colour, 0]
    return heights, colours


def _highest(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    heights, colours = _chart(cells, rng)
    return "", (COLOURS[colours[int(np.argmax(heights))]],)


def _bar(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    heights, colours = _chart(cells, rng)
    asked = rng.integers(3)
    return COLOURS[colours[asked]], (DIGITS[heights[asked]],)


def _printed(cells: NDArray[np.int8], rng: np.random.Generator, kind: int, signs: list[int]) -> None:
    """Print signs side by side in a row, with up to two objects elsewhere."""
    first = 3 * rng.integers(3) + (rng.integers(2) if len(signs) < 3 else 0)
    for place, sign in enumerate(signs):
        cells[first + place] = [kind, sign, 0, 0]
    _put(cells, [_object(rng) for _ in range(rng.integers(3))], rng)


def _number(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    signs = rng.integers(len(DIGITS), size=2).tolist()
    _printed(cells, rng, DIGIT, signs)
    return "", tuple(DIGITS[sign] for sign in signs)


def _word(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    signs = rng.integers(len(LETTERS), size=3).tolist()
    _printed(cells, rng, LETTER, signs)
    return "", tuple(LETTERS[sign] for sign in signs)


def _beside(cells: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    left, right, *others = rng.permutation(len(SHAPES)).tolist()
    place = 3 * rng.integers(3) + rng.integers(2)
    cells[place] = _object(rng, shape=left)
    cells[place + 1] = _object(rng, shape=right)
    _put(cells, [_object(rng, shape=shape) for shape in others[: rng.integers(3)]], rng)
    return SHAPES[left], (COLOURS[cells[place + 1, 2]],)


_MAKERS = {
    "describe": _describe,
    "color": _color,
    "exists": _exists,
    "count": _count,
    "where": _where,
    "lookup": _lookup,
    "highest": _highest,
    "number": _number,
    "bar": _bar,
    "word": _word,
    "beside": _beside,
}


def _cell_words(cell: NDArray[np.int8]) -> tuple[str, ...]:
    kind, value, colour, size = cell.tolist()
    if kind == OBJECT:
        return SIZES[size], COLOURS[colour], SHAPES[value]
    if kind == DIGIT:
        return (DIGITS[value],)
    if kind == LETTER:
        return (LETTERS[value],)
    return COLOURS[colour], "bar", DIGITS[value]


def _samples(
    scenes: list[_Scene],
    answers: list[tuple[str, ...]],
    families: NDArray[np.integer],
    original: NDArray[np.int32],
    is_wrong: NDArray[np.bool_],
    has_hint: NDArray[np.bool_],
) -> Samples:
    text = np.full((len(scenes), TEXT), PAD, np.uint8)
    is_answer = np.zeros(text.shape, np.bool_)
    for row, (scene, answer) in enumerate(zip(scenes, answers, strict=True)):
        hint = ("hint", answer[0]) if has_hint[row] else ()
        words = (*scene.question, *hint, "answer", *answer, "end")
        text[row, : len(words)] = [_ID[word] for word in words]
        is_answer[row, len(words) - len(answer) - 1 : len(words)] = True
    cells = np.stack([scene.cells for scene in scenes])
    return Samples(cells, text, is_answer, families.astype(np.uint8), original, is_wrong, has_hint)


def _glyph(sign: str) -> NDArray[np.bool_]:
    columns = np.frombuffer(bytes.fromhex(_FONT[sign]), np.uint8)
    bits = (columns[None, :] >> np.arange(7)[:, None]) & 1
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[1:15, 3:13] = bits.repeat(2, axis=0).repeat(2, axis=1)
    return mask


def _shape(name: str, size: str) -> NDArray[np.bool_]:
    radius = 6.0 if size == "large" else 4.0
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    away = np.hypot(x, y)
    return {
        "square": np.maximum(abs(x), abs(y)) < radius * 0.85,
        "circle": away < radius,
        "triangle": (y < radius * 0.8) & (abs(x) * 1.7 < y + radius),
        "diamond": abs(x) + abs(y) < radius * 1.15,
        "cross": (np.minimum(abs(x), abs(y)) < radius * 0.3) & (np.maximum(abs(x), abs(y)) < radius),
        "ring": (away < radius) & (away > radius * 0.55),
    }[name]


def _bar_mask(height: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[15 - round(height * 1.5) : 15, 4:12] = True
    return mask


def _templates() -> NDArray[np.float32]:
    """Masks of all that a cell can show, each at nine jitters."""
    masks = [np.zeros((SIDE, SIDE), np.bool_)]
    masks += [_shape(shape, size) for shape in SHAPES for size in SIZES]
    masks += [_glyph(sign) for sign in (*DIGITS, *LETTERS)]
    masks += [_bar_mask(height) for height in range(1, HEIGHTS + 1)]
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    moved = [[np.roll(mask, move, (0, 1)).reshape(-1) for move in moves] for mask in masks]
    return np.array(moved, np.float32)


_TEMPLATES = _templates()


def _template_of(cells: NDArray[np.int8]) -> NDArray[np.int64]:
    kind, value = cells[..., 0].astype(np.int64), cells[..., 1].astype(np.int64)
    objects = len(SHAPES) * len(SIZES)
    return np.select(
        [kind == OBJECT, kind == DIGIT, kind == LETTER, kind == BAR],
        [
            1 + value * len(SIZES) + cells[..., 3],
            1 + objects + value,
            1 + objects + len(DIGITS) + value,
            objects + len(DIGITS) + len(LETTERS) + value,
        ],
        default=0,
    )

"""A visual-instruction pool in LLaVA form, made from the NLVR corpus.

NLVR (Suhr, Lewis, Yeh and Artzi: A Corpus of Natural Language for Visual Reasoning, ACL 2017) has
human statements about pictures of three boxes with coloured shapes, whether each statement is true,
and what is in the boxes. The statements become true-or-false samples; the contents of the boxes give
more questions whose answers are known. A part of the corpus is shipped in ``data/nlvr``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from mllm_selector.artifacts import atomic_write
from mllm_selector.demo.nlvr_questions import (
    COLOURS,
    ORDERS,
    SIZES,
    SOURCES,
    Draw,
    Item,
    Scene,
    Statement,
    Turns,
)
from mllm_selector.errors import PoolError

__all__ = ["SOURCES", "Statement", "copy_tree", "read_statements", "samples", "write_llava", "write_pool"]

SPLITS = ("train", "dev", "test")
SHIPPED_SAMPLES_PER_IMAGE = 4


def read_statements(corpus: Path) -> list[Statement]:
    """Read the statements of an NLVR folder.

    Parameters
    ----------
    corpus : Path
        A folder with ``dev/dev.json`` and ``dev/images``, and the same for other splits. Images may
        lie in numbered folders, as in the corpus's repository, or directly in ``images``.

    Returns
    -------
    list of Statement
        Those with at least one image, in the order of the files.

    Raises
    ------
    PoolError
        If no split is there, or a line is not a statement.
    """
    files = [corpus / split / f"{split}.json" for split in SPLITS]
    files = [file for file in files if file.is_file()]
    if not files:
        msg = f"{corpus} is not an NLVR folder: it must hold dev/dev.json, test/test.json or train/train.json"
        raise PoolError(msg)
    statements = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    statement = _read_statement(json.loads(line), corpus, split=file.stem)
                except (ValueError, KeyError, TypeError) as error:
                    msg = f"{file}, line {number}: not an NLVR statement ({error!r}); get the corpus again"
                    raise PoolError(msg) from error
                if statement.images:
                    statements.append(statement)
    return statements


def _read_statement(record: dict[str, Any], corpus: Path, split: str) -> Statement:
    name = f"{split}-{record['identifier']}"
    folder = Path(split, "images", str(record.get("directory", "")))
    images = {order: (folder / f"{name}-{order}.png").as_posix() for order in range(len(ORDERS))}
    return Statement(
        name=name,
        text=record["sentence"].strip(),
        label={"true": True, "false": False}[record["label"]],
        boxes=tuple(tuple(_read_item(item) for item in box) for box in record["structured_rep"]),
        images={order: image for order, image in images.items() if (corpus / image).is_file()},
    )


def _read_item(record: dict[str, Any]) -> Item:
    return Item(
        colour=COLOURS[record["color"].lower()],
        shape=record["type"],
        size=SIZES[record["size"]],
        left=record["x_loc"],
        bottom=record["y_loc"] + record["size"],
    )


def samples(statements: Sequence[Statement], per_image: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Make LLaVA records, some for each image.

    Parameters
    ----------
    statements : sequence of Statement
        What `read_statements` returned.
    per_image : int
        Samples of each image; no two of them ask the same.
    seed : int
        Random seed of sources, wordings and arguments.

    Yields
    ------
    dict
        ``id``, ``source``, ``image`` (a path, a list of two, or absent) and ``conversations``.
    """
    scenes = [Scene(statement, order) for statement in statements for order in statement.images]
    weights = {name: source.weight for name, source in SOURCES.items()}
    for scene in scenes:
        key = f"{scene.statement.name}-{scene.order}"
        draw = Draw(f"{seed}/{key}")
        asked: set[str] = set()
        while len(asked) < per_image:
            name = draw.weighted(weights)
            source = SOURCES[name]
            shown = [scene] if source.images < 2 else [scene, draw.one(scenes)]
            turns = source.ask(draw, *shown)
            if not turns or turns[0][0] in asked:
                continue
            images = [each.image for each in shown[: source.images]]
            yield _record(f"nlvr-{key}-{len(asked)}", name, images, turns, draw)
            asked.add(turns[0][0])


def write_pool(folder: Path) -> tuple[Path, Path]:
    """Write the shipped sample as a pool.

    Parameters
    ----------
    folder : Path
        Where ``pool.json`` and ``nlvr/``, with the images and their licence, are put.

    Returns
    -------
    tuple of Path
        The pool and the folder that its image paths are relative to.
    """
    # Copied, not referenced: a package may be imported from an archive.
    images = folder / "nlvr"
    copy_tree(resources.files("mllm_selector.demo") / "data" / "nlvr", images)
    pool = folder / "pool.json"
    write_llava(pool, samples(read_statements(images), SHIPPED_SAMPLES_PER_IMAGE))
    return pool, images


def write_llava(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as one JSON array, a record a line."""
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    with atomic_write(path) as file:
        file.write(("[\n" + ",\n".join(lines) + "\n]\n").encode())


def copy_tree(source: Traversable, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, from a package that may be an archive."""
    if source.is_file():
        with atomic_write(target) as file:
            file.write(source.read_bytes())
        return
    for child in source.iterdir():
        copy_tree(child, target / child.name)


def _record(name: str, source: str, images: list[str], turns: Turns, draw: Draw) -> dict[str, Any]:
    record: dict[str, Any] = {"id": name, "source": source}
    if images:
        record["image"] = images[0] if len(images) == 1 else images
    marks = "<image>\n" * len(images)
    if images and draw.chance(0.15):
        questions = [turns[0][0] + "\n" + marks.rstrip("\n")]
    else:
        questions = [marks + turns[0][0]]
    questions += [question for question, _ in turns[1:]]
    record["conversations"] = [
        message
        for question, (_, answer) in zip(questions, turns, strict=True)
        for message in ({"from": "human", "value": question}, {"from": "gpt", "value": answer})
    ]
    return record

"""What the charts of the page are drawn from: the numbers for ``report.js``, and the scripts themselves."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import numpy as np

from mllm_selector.fetching import Fetching
from mllm_selector.pool import Pool, Sample
from mllm_selector.reporting.gallery import MOST_NAME_CHARACTERS, clipped
from mllm_selector.reporting.groups import Group
from mllm_selector.reporting.known import GalleryItem
from mllm_selector.reporting.markup import Markup, element
from mllm_selector.reporting.numbers import Numbers
from mllm_selector.reporting.overview import Coverage, Map
from mllm_selector.reporting.thumbnails import Thumbnail, Thumbnails

__all__ = [
    "MOST_GROUPS_DRAWN",
    "chart_data",
    "coverage_curve",
    "data_element",
    "drawn_groups",
    "map_data",
    "policy_of",
    "scripts",
]

MOST_GROUPS_DRAWN = 800
IMAGE_BYTES, LONGEST_SIDE, QUALITY = 2_400_000, 160, 50
MOST_CHARACTERS = 160


def scripts(*names: str) -> list[str]:
    """Return scripts of this package, without what would make a browser ask for their sources."""
    folder = resources.files("mllm_selector.reporting")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in names]
    return [text.split("//# sourceMappingURL=")[0] for text in texts]


def policy_of(texts: list[str]) -> str:
    """Return a Content-Security-Policy under which nothing is loaded and only these scripts run."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def data_element(data: dict[str, Any]) -> Markup:
    """Return the numbers as a script element that no text in them can close."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark, name in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028")):
        text = text.replace(mark, name)
    return element("script", Markup(text), type="application/json", id="report-data")


def drawn_groups(groups: list[Group]) -> list[Group]:
    """Return the groups that a chart shows: those whose size and necessity are known, largest first."""
    known = [group for group in groups if group.size and group.mean_necessity is not None]
    return sorted(known, key=lambda group: (-(group.size or 0), group.group))[:MOST_GROUPS_DRAWN]


def chart_data(numbers: Numbers, pool: Pool) -> dict[str, Any]:
    """Return what ``report.js`` draws.

    Parameters
    ----------
    numbers : Numbers
        The report's numbers.
    pool : Pool
        Where the samples of the map's points are.
    """
    histogram = numbers.histogram
    return {
        "samples": numbers.samples,
        "chosen": numbers.chosen,
        "unit": numbers.unit,
        "histogram": {
            "edges": histogram.edges,
            "tail": histogram.has_tail,
            "pool": histogram.pool,
            "chosen": histogram.chosen,
        },
        "sources": [
            {"pool": source.histogram.pool, "chosen": source.histogram.chosen}
            for source in numbers.sources
            if source.histogram is not None
        ],
        "groups": [
            {
                "group": group.group,
                "size": group.size,
                "chosen": group.chosen,
                "necessity": group.mean_necessity,
                "source": _text(group.main_source) if group.main_source is not None else None,
            }
            for group in drawn_groups(numbers.groups)
        ],
        "coverage": None if numbers.coverage is None else _coverage(numbers.coverage, numbers.chosen),
        "map": None if numbers.map is None else map_data(numbers.map, numbers.map_items, pool),
    }


def _coverage(measured: Coverage, budget: int) -> dict[str, Any]:
    counts = measured.counts
    own = coverage_curve("selection", "chosen", counts, measured.median, measured.p95, budget)
    drawn = coverage_curve(
        "random samples", "quiet", counts, measured.random_median, measured.random_p95, counts[-1]
    )
    return {"curves": [own, drawn], "marks": [{"x": budget, "text": "this selection"}]}


def coverage_curve(
    name: str, tone: str, counts: list[int], median: list[float], p95: list[float], budget: int
) -> dict[str, Any]:
    """Return a curve of distances in the colour `tone`, dashed beyond the budget."""
    return {"name": name, "tone": tone, "counts": counts, "median": median, "p95": p95, "budget": budget}


def map_data(drawn: Map, items: list[GalleryItem], pool: Pool) -> dict[str, Any]:
    """Return the tiles of a map and the samples of its points, with small images."""
    sources = sorted({item.source for item in items})
    code = {source: number for number, source in enumerate(sources)}
    # One sample at a time: all of their texts together may be more than the memory.
    samples = (pool.sample(item.row) for item in items)
    points = [
        {
            "x": point.x,
            "y": point.y,
            "group": point.group,
            "id": _text(item.id),
            "source": code[item.source],
            "necessity": None if item.necessity is None else round(item.necessity, 4),
            "scores": {
                name: None if value is None else round(value, 4) for name, value in item.scores.items()
            },
            "tokens": item.answer_tokens,
            "chosen": item.chosen,
            "seed": item.seed,
            "measured": item.measured,
            "question": _turn(sample, "user"),
            "answer": _turn(sample, "assistant"),
        }
        for point, item, sample in zip(drawn.points, items, samples, strict=True)
    ]
    for place, shown in _small_images(items, pool).items():
        if isinstance(shown, Thumbnail):
            points[place]["image"] = vars(shown)
        else:
            points[place]["placeholder"] = shown
    return {
        "columns": drawn.columns,
        "rows": drawn.rows,
        "counts": drawn.counts,
        "sources": [_text(source) for source in sources],
        "points": points,
    }


def _small_images(items: list[GalleryItem], pool: Pool) -> dict[int, Thumbnail | str]:
    """Return the first image of each sample, or in words why there is none."""
    thumbnails = Thumbnails(IMAGE_BYTES, LONGEST_SIDE, QUALITY)
    # In random order: where there is no room for all, every part of the pool keeps some.
    order = np.random.Generator(np.random.Philox(0)).permutation(len(items)).tolist()
    shown: dict[int, Thumbnail | str] = {}
    rows = [items[place].row for place in order]
    with Fetching(pool, rows, most_images=1) as samples:
        for number, place in enumerate(order):
            sample = pool.sample(rows[number]) if thumbnails.is_full else samples[number]
            shown[place] = thumbnails.make(sample.images[0]) if sample.images else "text only"
    return shown


def _turn(sample: Sample, role: str) -> str:
    texts = [content for name, content in sample.messages if name == role]
    return _text(texts[0].replace("<image>", "").strip(), MOST_CHARACTERS) if texts else ""


def _text(text: str, most: int = MOST_NAME_CHARACTERS) -> str:
    return clipped(text, most)

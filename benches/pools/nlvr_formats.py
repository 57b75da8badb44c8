"""One pool in every format: the same selection must come out of each.

    python benches/nlvr_pool.py --nlvr nlvr --out pool
    python benches/pools/nlvr_formats.py --pool pool/pool.json --images nlvr --work work

Writes the LLaVA JSON in each format, ingests it with the command line, picks by scores that are given by
row, and ingests the subset in its turn. Compares ids, sources, messages and the images' bytes with those of
the LLaVA JSON, and the chosen ids in their order. Prints a Markdown table; exit status 1 if a format differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import scores
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory
from mllm_selector.selection import Selection
from writers import FORMATS, messages, paths

HEADER = "| format | MB | samples | rejected | records | chosen | subset |\n|---|---|---|---|---|---|---|"
MARK = re.compile(r"\s*<image>\s*")

Described = list[tuple[object, ...]]
"""Of each sample: id, source, roles and contents, a hash of each image."""


class Failure(Exception):  # noqa: N818 - a result like any other
    """The command line refused a pool."""


def main() -> int:
    options = parse()
    records = json.loads(options.pool.read_bytes())[: options.samples]
    expected = described_records(records, options.images)
    print(HEADER, flush=True)
    found = []
    for name in options.formats:
        folder = options.work / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        pool = folder / "pool"
        pool.mkdir(parents=True)
        given = FORMATS[name](records, options.images, pool)
        size = sum(file.stat().st_size for file in pool.rglob("*") if file.is_file()) / 1e6
        try:
            cells, chosen = examine(given, folder, options, expected)
        except Failure as failure:
            cells, chosen = [str(failure)], None
        found.append(chosen)
        print(f"| {name} | {size:.1f} | {' | '.join(cells)} |", flush=True)
    same = all(chosen is not None and chosen == found[0] for chosen in found)
    print(f"\n{'the same' if same else 'NOT the same'} selection out of {len(found)} formats")
    return int(not same)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=Path, required=True, metavar="FILE", help="the LLaVA JSON that nlvr_pool.py makes")
    add("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    add("--work", type=Path, required=True, metavar="DIR", help="folder for the pools and runs")
    names = ", ".join(f"'{name}'" for name in FORMATS)
    add("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, metavar="NAME", help=f"of {names}")
    add("--samples", type=int, metavar="N", help="take only the first records")
    add("--budget", default="10%", metavar="N|P%")
    return parser.parse_args()


def examine(
    given: str, folder: Path, options: argparse.Namespace, expected: Described
) -> tuple[list[str], list[str] | None]:
    """Ingest a pool, pick, and ingest the subset; return cells of the table, and the ids if all is right."""
    run = folder / "run"
    command("ingest", given, "--images", options.images, "--run-dir", run)
    scores.give(run)
    command("pick", "--budget", options.budget, "--groups", "necessity", "--run-dir", run)
    selection = Selection.load(run)
    again = folder / "again"
    command("ingest", selection.subset, "--images", options.images, "--run-dir", again)

    pool, rejected = described_pool(run)
    back, _ = described_pool(again)
    is_same = pool == expected
    is_back = back == [expected[row] for row in selection.rows]
    samples = f"{len(pool):,} | {rejected:,}"
    ids = selection.ids.tolist()
    cells = [
        samples,
        "the same" if is_same else difference(pool, expected),
        f"{len(ids):,}",
        "the same" if is_back else difference(back, [expected[row] for row in selection.rows]),
    ]
    return cells, ids if is_same and is_back else None


def command(*arguments: object) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "mllm_selector", *map(str, arguments), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise Failure(f"{arguments[0]} failed: {' '.join(process.stderr.split())}")


def described_records(records: list[dict[str, Any]], folder: Path) -> Described:
    return [
        described(
            record["id"],
            record["source"],
            [(turn["role"], turn["content"]) for turn in messages(record)],
            ((folder / path).read_bytes() for path in paths(record)),
        )
        for record in records
    ]


def described_pool(run_dir: Path) -> tuple[Described, int]:
    """Return the samples of a run's pool, and how many records were rejected."""
    with RunDirectory(run_dir) as run:
        samples = [
            described(sample.id, sample.source, sample.messages, map(content, sample.images))
            for sample in Pool.of(run)
        ]
        return samples, sum(run.need("ingest").counts["rejected"].values())


def content(image: Any) -> bytes:
    """Return the encoded image: from its file, from the pool, or from inside another file."""
    if isinstance(image, Path):
        return image.read_bytes()
    return image if isinstance(image, bytes) else image.read()


def described(
    name: str, source: str, turns: Iterable[tuple[str, str]], images: Iterable[bytes]
) -> tuple[object, ...]:
    """Describe a sample; white space around image marks is left out, for content parts do not keep it."""
    texts = [(role, MARK.sub("<image>", text)) for role, text in turns]
    return name, source, texts, [hashlib.blake2b(image, digest_size=16).digest() for image in images]


def difference(found: Described, expected: Described) -> str:
    """Say where two lists of samples differ first."""
    if len(found) != len(expected):
        return f"WRONG: {len(found):,} instead of {len(expected):,}"
    row = next(row for row, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    parts = zip(("id", "source", "messages", "images"), found[row], expected[row], strict=True)
    return f"WRONG: {', '.join(name for name, one, other in parts if one != other)} of sample {row}"


if __name__ == "__main__":
    sys.exit(main())

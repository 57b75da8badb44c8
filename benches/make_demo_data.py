"""Choose the part of NLVR that is shipped in ``mllm_selector/demo/data/nlvr``.

Statements of the dev split in the order of a hash of their identifier, two of the six images of each,
all files verbatim, until the size limit is reached. The corpus is the folder ``nlvr`` of the GitHub
repository lil-lab/nlvr; running this again on it gives the same files.

    python benches/make_demo_data.py --nlvr nlvr
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from mllm_selector.artifacts import atomic_write
from mllm_selector.demo import nlvr

SPLIT = "dev"
SIZE_LIMIT = 1_400_000
TARGET = Path(__file__).parents[1] / "python" / "mllm_selector" / "demo" / "data" / "nlvr"


def hashed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nlvr", type=Path, required=True, metavar="DIR", help="the corpus folder")
    corpus = parser.parse_args().nlvr

    lines = (corpus / SPLIT / f"{SPLIT}.json").read_bytes().splitlines(keepends=True)
    line_of = {f"{SPLIT}-{json.loads(line)['identifier']}": line for line in lines}
    statements = [each for each in nlvr.read_statements(corpus) if each.name in line_of]

    chosen: dict[str, list[str]] = {}
    size = 0
    for statement in sorted(statements, key=lambda each: hashed(each.name)):
        images = sorted(statement.images.values(), key=hashed)[:2]
        size += len(line_of[statement.name]) + sum((corpus / image).stat().st_size for image in images)
        if size > SIZE_LIMIT:
            break
        chosen[statement.name] = images

    shutil.rmtree(TARGET / SPLIT, ignore_errors=True)
    for image in (image for images in chosen.values() for image in images):
        (TARGET / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus / image, TARGET / image)
    with atomic_write(TARGET / SPLIT / f"{SPLIT}.json") as file:
        file.writelines(line for name, line in line_of.items() if name in chosen)
    print(f"{TARGET}: {len(chosen)} statements, {sum(map(len, chosen.values()))} images")


if __name__ == "__main__":
    main()

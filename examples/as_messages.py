"""Write a selection as messages and image paths, which LLaMA-Factory, ms-swift and TRL read.

    python examples/as_messages.py RUN subset.jsonl

For pools that are not so already; the subset of a `messages-jsonl` or ShareGPT pool is. A line a sample:
`messages` of `role` and `content` with an `<image>` mark for each image, and `images`, their absolute paths.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mllm_selector import Pool, Selection


def main(run: Path, out: Path) -> None:
    pool = Pool.of(run)
    with out.open("w") as file:
        for sample in pool.rows(Selection.load(run).rows):
            if not all(isinstance(image, Path) for image in sample.images):
                sys.exit(
                    f"{sample.id}: its images are in the pool or a store; write them into a folder first"
                )
            record = {
                "messages": [{"role": role, "content": content} for role, content in sample.messages],
                "images": [str(Path(image).absolute()) for image in sample.images],
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

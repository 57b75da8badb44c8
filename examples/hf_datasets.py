"""Select from a Hugging Face dataset that the pool was read from: python examples/hf_datasets.py RUN POOL OUT

`POOL` is a folder that `Dataset.save_to_disk` wrote, the input of the run. Rows of a selection are those
of the pool; where samples were rejected, they are not those of the dataset: `rejected.jsonl` must be empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import load_from_disk

from mllm_selector import Selection


def main(run: Path, pool: Path, out: Path) -> None:
    if (run / "rejected.jsonl").stat().st_size:
        sys.exit(f"{run / 'rejected.jsonl'} is not empty: take the written subset, {run / 'subset'}")
    load_from_disk(pool).select(Selection.load(run).rows).save_to_disk(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

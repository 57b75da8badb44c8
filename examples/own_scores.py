"""Choose by scores and embeddings from elsewhere: python examples/own_scores.py scores.npy rows.npy 10%

`scores.npy`: a number for each sample, high for those that teach most. `rows.npy`: a row for each sample,
float16 or float32; it stays on the disk. Prints the chosen rows, a line each.
"""

from __future__ import annotations

import sys

import numpy as np

import mllm_selector


def main(scores: str, embeddings: str, budget: str) -> None:
    rows = mllm_selector.pick(np.load(scores), np.load(embeddings, mmap_mode="r"), budget=budget)
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main(*sys.argv[1:4])

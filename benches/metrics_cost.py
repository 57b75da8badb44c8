"""What each metric costs: scoring with it against scoring with the mean loss alone.

    python benches/metrics_cost.py --threads 1

Makes a LLaVA with random weights and a vocabulary of 32,000, scores the same NLVR
samples with each set of metrics, in turns, and compares the best of ``--repeats``. The time is that of the
score stage from its first batch to its last.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from scoring_setup import VOCABULARY, machine, make_llava, make_pool, model_size, prepare, score_once

CASES = {
    "nll": {},
    "perplexity": {"metrics": "perplexity"},
    "accuracy": {"metrics": "accuracy"},
    "entropy": {"metrics": "entropy"},
    "upd": {"metrics": "upd"},
    "all of one pass": {"metrics": "perplexity,accuracy,entropy,upd"},
    "visnec": {"metrics": "visnec"},
    "ifd": {"metrics": "ifd"},
    "miwv": {"metrics": "miwv"},
    "nll, embeddings of 64 numbers (random)": {"embedding_size": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pool, images = make_pool(folder, given.nlvr, given.samples)
        parameters = make_llava(folder / "model", pool, model_size(256, 4), VOCABULARY)
        prepare(folder / "run", pool, images, folder / "model")
        common = {
            "device": "cpu",
            "threads": given.threads,
            "token_budget": 2048,
            "image_budget": 1024,
            "workers": 1,
        }
        for _ in range(given.repeats):
            for name, options in CASES.items():
                (folder / "run" / "projection.arrow").unlink(missing_ok=True)
                seconds = score_once(folder / "run", **common, **options).seconds
                best[name] = min(seconds, best.get(name, seconds))
    print(machine())
    print(f"{parameters / 1e6:.1f} M parameters, {given.samples} samples, {given.threads} threads\n")
    print("| metrics | seconds | time / nll only |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds:.2f} | {seconds / best['nll']:.2f} |")


if __name__ == "__main__":
    main()

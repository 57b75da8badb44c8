"""What each metric costs: scoring with it against scoring with the mean loss alone.

    python benches/metrics_cost.py --threads 1
    python benches/metrics_cost.py --threads 1 --vocabulary 151936 --cases nll accuracy entropy

Makes a LLaVA with random weights, scores the same NLVR samples with each set of metrics, in turns, and
compares the best of ``--repeats``. The time is that of the score stage from its first batch to its last.
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
    "nll of 7 samples of each cluster": {"scored_per_cluster": 7},
    "nll of 1 sample of each cluster": {"scored_per_cluster": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument(
        "--vocabulary", type=int, default=VOCABULARY, help="the model's tokens; by default LLaVA 1.5's"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    given = parser.parse_args()
    best: dict[str, float] = {}
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pool, images = make_pool(folder, given.nlvr, given.samples)
        parameters = make_llava(folder / "model", pool, model_size(256, 4), given.vocabulary)
        prepare(folder / "run", pool, images, folder / "model")
        common = {
            "device": "cpu",
            "threads": given.threads,
            "token_budget": 2048,
            "image_budget": 1024,
            "workers": 1,
        }
        for _ in range(given.repeats):
            for name in dict.fromkeys(["nll", *given.cases]):
                (folder / "run" / "projection.arrow").unlink(missing_ok=True)
                scored = score_once(folder / "run", **common, **CASES[name])
                best[name] = min(scored.seconds, best.get(name, scored.seconds))
                shares[name] = scored.counts["scored"] / scored.counts["samples"]
    print(machine())
    print(f"{parameters / 1e6:.1f} M parameters, {given.samples} samples, {given.threads} threads\n")
    print("| metrics | scored | seconds | samples/s | time / nll only |\n|---|---|---|---|---|")
    for name, seconds in best.items():
        rate, ratio = given.samples / seconds, seconds / best["nll"]
        print(f"| {name} | {shares[name]:.1%} | {seconds:.2f} | {rate:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

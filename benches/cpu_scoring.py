"""Scoring on the CPU: the ONNX engine against PyTorch with the same batches, and against a plain loop.

    python benches/cpu_scoring.py --threads 1            # 15.6 M parameters, 600 NLVR samples
    python benches/cpu_scoring.py --threads 2 --nlvr DIR
    python benches/cpu_scoring.py --threads 1 --vocabulary 151936    # as many tokens as Qwen2 has

Makes a LLaVA with random weights, and scores the same samples with

- onnx: the score stage with the exported graphs;
- torch: the score stage with ``--engine torch`` (sdpa), the same batches and gather of answers;
- loop: what users write today: ``model(**batch, labels=...)`` in file order, eight samples a batch.

The contenders take turns, the best of ``--repeats`` counts. All three load, resize and normalise the images
with the same code within the time; "alone" is the time in which the engine computed. Exits with 1 if mean
losses differ by more than 1e-4 nats.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from scoring_setup import (
    VOCABULARY,
    Scored,
    best_in_turns,
    machine,
    make_llava,
    make_pool,
    model_size,
    prepare,
    score_by_loop,
    score_once,
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=192, help="width of the model, a multiple of 32")
    parser.add_argument("--layers", type=int, default=4, help="layers of the tower and of the text model")
    parser.add_argument(
        "--vocabulary", type=int, default=VOCABULARY, help="its tokens; by default LLaVA 1.5's"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--work", type=Path, help="folder to work in, kept; by default a temporary one")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return compare(folder, given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    pool, images = make_pool(folder, given.nlvr, given.samples)
    model = folder / "model"
    parameters = make_llava(model, pool, model_size(given.hidden, given.layers), given.vocabulary)
    for engine in ("onnx", "torch"):
        prepare(folder / engine, pool, images, model, engine=engine)
    options = {
        "device": "cpu",
        "threads": given.threads,
        "token_budget": given.token_budget,
        "image_budget": 1024,
        "workers": 1,
    }
    contenders = {
        "onnx": lambda: score_once(folder / "onnx", **options),
        "torch": lambda: score_once(folder / "torch", **options),
        "loop": lambda: score_by_loop(folder / "onnx", model, images),
    }
    best = best_in_turns(given.repeats, contenders, lambda result: result.seconds)
    return show(best, parameters, given)


def show(best: dict[str, Scored], parameters: int, given: argparse.Namespace) -> int:
    print(
        f"{machine()}\n{parameters / 1e6:.1f} M parameters, {given.samples} samples, "
        f"{given.vocabulary:,} tokens, {given.threads} threads"
    )
    print("\n| engine | samples/s | alone | time / onnx | alone | worst difference, nats |")
    print("|---|---|---|---|---|---|")
    onnx = best["onnx"]
    agree = True
    for name, result in best.items():
        worst = float(np.abs(result.necessity - onnx.necessity).max())
        agree &= worst <= 1e-4
        print(
            f"| {name} | {given.samples / result.seconds:.1f} | {given.samples / result.busy:.1f} | "
            f"{result.seconds / onnx.seconds:.2f} | {result.busy / onnx.busy:.2f} | {worst:.1e} |"
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compare the scores of a finished run with plain torch, sample by sample.

    python benches/onnx_parity.py --run-dir RUN --samples 500

Draws scored samples of the run's pool at random and scores each alone with the unmodified seed model: the
model's own processor, all logits, a plain cross entropy. Exits with 1 if a mean loss differs by more than
the tolerance.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from mllm_selector.artifacts import ScoreTable
from mllm_selector.families.chat import ChatEncoder, encode_for_training
from mllm_selector.families.images import load_image
from mllm_selector.families.loading import load_model, load_processor
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="a run directory whose scoring is done")
    parser.add_argument("--samples", type=int, default=500, help="samples to compare")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the draw")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed, in nats")
    given = parser.parse_args()
    with RunDirectory(given.run_dir) as run:
        pool = Pool.of(run)
        seed = run.need("seed")
        table = ScoreTable.load(run.scores)
    trust = bool(seed.options.get("trust_remote_code", False))
    model_folder = given.run_dir / seed.counts["model"]
    model = load_model(model_folder, trust_remote_code=trust)
    processor = load_processor(model_folder, trust_remote_code=trust)

    scored = np.flatnonzero(~np.isnan(table.necessity))
    draw = np.random.default_rng(given.seed)
    rows = np.sort(draw.choice(scored, min(given.samples, len(scored)), replace=False))
    started = time.monotonic()
    chat = ChatEncoder.of(processor)
    expected = np.array([plain_loss(model, processor, chat, pool, int(row)) for row in rows])
    seconds = time.monotonic() - started
    difference = np.abs(table.necessity[rows] - expected)
    worst = int(difference.argmax())
    print(f"samples compared      {len(rows)} of {len(scored)} scored ({seconds:.1f} s in torch)")
    print(
        f"mean loss             {expected.mean():.4f} nats, from {expected.min():.4f} to {expected.max():.4f}"
    )
    print(f"worst |difference|    {difference[worst]:.2e} nats, row {rows[worst]}")
    print(f"mean |difference|     {difference.mean():.2e} nats")
    # Written so that NaN fails.
    return 0 if difference[worst] <= given.tolerance else 1


def plain_loss(model: object, processor: object, chat: ChatEncoder, pool: Pool, row: int) -> float:
    import torch

    inputs = encode_for_training(processor, pool.sample(row), load_image, chat)
    labels = inputs.pop("labels")
    batched = {name: value[None] if value.ndim == 1 else value for name, value in inputs.items()}
    with torch.no_grad():
        logits = model(**batched, use_cache=False).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100))


if __name__ == "__main__":
    sys.exit(main())

"""What selection costs, seed training, scoring and picking, against the training that it saves.

    python benches/selection_cost.py --samples 600

Makes a LLaVA and an NLVR pool and measures, with the package's own stages and one thread count,

- selection: seed training on 2 % of the pool, export, scoring of all of it, picking 10 %;
- one epoch of the same fine-tuning (LoRA) over the full pool;
- one epoch over the chosen 10 %.

FLOP are those of matrix products and convolutions, counted by PyTorch's `FlopCounterMode` as the stages run
(scoring: in the PyTorch engine, which does the same work as the graphs). Seconds are without the counter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.utils.flop_counter import FlopCounterMode

from mllm_selector import pipeline
from mllm_selector.rundir import read_manifest
from scoring_setup import VOCABULARY, machine, make_llava, make_pool, model_size

SELECTION = ("seed", "export", "score", "pick")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--seed-size", default="2%")
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--hidden", type=int, default=192, help="width of the model, a multiple of 32")
    parser.add_argument("--layers", type=int, default=4, help="layers of the tower and of the text model")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        return compare(Path(temporary), given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    pool, images = make_pool(folder, given.nlvr, given.samples)
    parameters = make_llava(folder / "model", pool, model_size(given.hidden, given.layers), VOCABULARY)
    common = {"pool": str(pool), "images": str(images), "model": str(folder / "model"), "seed_epochs": 1.0}
    whole = {
        **common,
        "seed_size": given.seed_size,
        "budget": given.budget,
        "device": "cpu",
        "threads": given.threads,
    }
    seconds = run(folder / "run", whole, ["ingest", *SELECTION])
    chosen = {**common, "pool": str(folder / "run" / "subset.json")}
    epoch = run(folder / "epoch", {**common, "seed_size": "100%"}, ["ingest", "seed"])["seed"]
    subset = run(folder / "subset", {**chosen, "seed_size": "100%"}, ["ingest", "seed"])["seed"]
    flop = {
        "seed": counted(folder / "count", {**common, "seed_size": given.seed_size}, ["ingest", "seed"]),
        "score": counted_score(folder, whole),
        "epoch": counted(folder / "count", {**common, "seed_size": "100%"}, ["ingest", "seed"]),
        "subset": counted(folder / "count", {**chosen, "seed_size": "100%"}, ["ingest", "seed"]),
    }
    show(seconds, flop, epoch, subset)
    print(f"\n{machine()}\n{parameters / 1e6:.1f} M parameters, {given.samples} samples, ", end="")
    print(f"{given.threads} threads, seed {given.seed_size}, budget {given.budget}")
    return 0


def run(folder: Path, given: dict[str, Any], stages: list[str]) -> dict[str, float]:
    """Run stages; return the seconds of each."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.run_stages(folder, pipeline.build_options(given, stages))
    return {name: record.seconds for name, record in read_manifest(folder).items()}


def counted(folder: Path, given: dict[str, Any], stages: list[str]) -> float:
    """Run stages; return the FLOP of all of them."""
    with FlopCounterMode(display=False) as counter:
        run(folder, given, stages)
    return float(counter.get_total_flops())


def counted_score(folder: Path, given: dict[str, Any]) -> float:
    """Return the FLOP of scoring the whole pool."""
    prepared = folder / "count"
    options = {name: value for name, value in given.items() if name != "budget"} | {"engine": "torch"}
    names = ["ingest", "seed", "export"]
    known = {name: value for name, value in options.items() if name not in ("device", "threads")}
    run(prepared, known, names)
    scoring = {name: options[name] for name in ("device", "threads")}
    with FlopCounterMode(display=False) as counter:
        pipeline.run_stages(prepared, pipeline.build_options(scoring, ["score"]))
    return float(counter.get_total_flops())


def show(seconds: dict[str, float], flop: dict[str, float], epoch: float, subset: float) -> None:
    spent = sum(seconds[name] for name in SELECTION)
    flop_spent = flop["seed"] + flop["score"]
    print("| | seconds | share of an epoch | share of training on the choice | TFLOP | share of an epoch |")
    print("|---|---|---|---|---|---|")
    for name in SELECTION:
        counted_flop = flop.get(name, 0.0)
        row(name, seconds[name], counted_flop, epoch, subset, flop["epoch"])
    row("selection in all", spent, flop_spent, epoch, subset, flop["epoch"])
    row("an epoch over the pool", epoch, flop["epoch"], epoch, subset, flop["epoch"])
    row("an epoch over the choice", subset, flop["subset"], epoch, subset, flop["epoch"])


def row(name: str, seconds: float, flop: float, epoch: float, subset: float, epoch_flop: float) -> None:
    print(
        f"| {name} | {seconds:.1f} | {seconds / epoch:.1%} | {seconds / subset:.0%} | {flop / 1e12:.2f} | "
        f"{flop / epoch_flop:.1%} |"
    )


if __name__ == "__main__":
    sys.exit(main())

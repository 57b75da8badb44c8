"""Samples about one image: read in one sequence that holds the image's tokens once, against one by one.

    python benches/prefix_sharing.py --threads 1

Makes a LLaVA with random weights that spends most of its time in the text model, 256 tokens an image, and
pools of equal size in which some samples share each image; scores each with the score stage as it is
("together") and with every sample in a sequence of its own ("apart"). Both encode each image once. The
contenders take turns, the best of ``--repeats`` counts. Exits with 1 if mean losses differ by more than 1e-4
nats.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from mllm_selector.demo.model import ModelSize
from mllm_selector.engine import OnnxEngine
from mllm_selector.scoring import groups
from scoring_setup import Scored, best_in_turns, machine, make_llava, make_pool, prepare, score_once

SIZE = ModelSize(hidden=192, vision_layers=1, text_layers=6, image_side=192, patch_side=12, vocabulary=2000)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=240)
    parser.add_argument("--per-image", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--token-budget", type=int, default=4096)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return compare(Path(temporary), given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    # More are drawn, for their images, than are scored.
    pool, images = make_pool(folder, given.nlvr, 2 * given.samples)
    parameters = make_llava(folder / "model", pool, SIZE, 2048)
    print(f"{machine()}\n{parameters / 1e6:.1f} M parameters, {given.samples} samples")
    print(f"{given.threads} threads\n")
    print("| samples an image | tokens apart | together | samples/s apart | together | apart / together |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    records = json.loads(pool.read_bytes())
    for per_image in given.per_image:
        pool.write_text(json.dumps(list(sharing(records, per_image))))
        prepare(folder / "run", pool, images, folder / "model")
        best = measure(folder / "run", given)
        together, alone = best["together"], best["apart"]
        worst = max(worst, float(np.abs(together[0].necessity - alone[0].necessity).max()))
        print(
            f"| {per_image} | {alone[1]:,} | {together[1]:,} | {given.samples / alone[0].seconds:.1f} | "
            f"{given.samples / together[0].seconds:.1f} | {alone[0].seconds / together[0].seconds:.2f} |"
        )
    print(f"\nworst difference of a mean loss {worst:.1e} nats")
    return 0 if worst <= 1e-4 else 1


def sharing(records: list[dict[str, Any]], per_image: int) -> Iterator[dict[str, Any]]:
    """Yield the records with other images: so many samples in a row show one."""
    whole = [record for record in records if isinstance(record.get("image"), str)]
    listed = [record.get("image", []) for record in records]
    names = list(dict.fromkeys(chain(*([each] if isinstance(each, str) else each for each in listed))))
    for place, record in enumerate(records[: len(records) // 2]):
        texts = whole[place % len(whole)]["conversations"]
        yield record | {"conversations": texts, "image": names[place // per_image % len(names)]}


def measure(run: Path, given: argparse.Namespace) -> dict[str, tuple[Scored, int]]:
    """Return each contender's best run and the tokens that its scorer read."""
    options = {
        "device": "cpu",
        "threads": given.threads,
        "token_budget": given.token_budget,
        "image_budget": 1024,
        "workers": 1,
    }

    def score(context: Any) -> tuple[Scored, int]:
        counting, tokens = counted()
        with counting, context:
            scored = score_once(run, **options)
        return scored, sum(tokens)

    contenders = {"together": lambda: score(nullcontext()), "apart": lambda: score(apart())}
    return best_in_turns(given.repeats, contenders, lambda result: result[0].seconds)


def counted() -> tuple[Any, list[int]]:
    """Return a context in which it is noted how many tokens each batch has, and the notes."""
    read, tokens = OnnxEngine.read, []

    def noted(self: OnnxEngine, inputs: Any, outputs: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        return read(self, inputs, outputs)

    return patch.object(OnnxEngine, "read", noted), tokens


def apart() -> Any:
    """Return a context in which every sample has a sequence of its own."""
    return patch.object(groups, "shared_prefixes", lambda samples, *_: [[at] for at in range(len(samples))])


if __name__ == "__main__":
    sys.exit(main())

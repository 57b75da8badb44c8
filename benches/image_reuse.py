"""Ten samples an image: two graphs, each image encoded once, against one graph that sees an image a sample.

    python benches/image_reuse.py --samples 400

Makes a LLaVA whose vision tower does most of the work, a pool in which ten samples share each image,
and scores it with

- two graphs: the score stage, with everything it does (samples of one image also share its tokens, see
  prefix_sharing.py; the text model is a small part here);
- one graph: vision tower and scorer exported together, the same batches. Its inputs are prepared before the
  clock starts, which favours it.

Exits with 1 if an image is encoded more than once, or mean losses differ by more than 1e-4 nats.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import onnxruntime
import torch

from mllm_selector import families
from mllm_selector.demo.model import ModelSize
from mllm_selector.families.base import Family, Graph
from mllm_selector.families.images import load_image
from mllm_selector.families.loading import load_model
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import length_batches, scorer_batch
from mllm_selector.scoring.prefixes import alone
from mllm_selector.stages.export import _export
from scoring_setup import machine, make_llava, make_pool, prepare, score_once

SIZE = ModelSize(hidden=256, vision_layers=13, text_layers=1, image_side=96, patch_side=12, vocabulary=2000)
SHARED = 10


class Fused(torch.nn.Module):
    """Both modules as one: features are computed anew for every sample."""

    def __init__(self, vision: torch.nn.Module, scorer: torch.nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.scorer = scorer

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rows: torch.Tensor,
        pooled_positions: torch.Tensor,
        answer_positions: torch.Tensor,
        answer_tokens: torch.Tensor,
        **own: torch.Tensor,
    ) -> Any:
        """Return the scorer's outputs."""
        return self.scorer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_rows=image_rows,
            features=self.vision(pixel_values),
            pooled_positions=pooled_positions,
            answer_positions=answer_positions,
            answer_tokens=answer_tokens,
            **own,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nlvr", type=Path, metavar="DIR", help="an NLVR corpus; by default what is shipped")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--token-budget", type=int, default=2048)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return compare(Path(temporary), given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    pool, images = make_pool(folder, given.nlvr, given.samples)
    distinct = share_images(pool)
    parameters = make_llava(folder / "model", pool, SIZE, 2048)
    prepare(folder / "run", pool, images, folder / "model")
    options = {
        "device": "cpu",
        "threads": given.threads,
        "token_budget": given.token_budget,
        "image_budget": 1024,
    }
    family = families.load(folder / "model")
    export_fused(family, folder)
    ours = min(
        (score_once(folder / "run", **options) for _ in range(given.repeats)), key=lambda run: run.seconds
    )
    fused = min((by_one_graph(family, folder, given) for _ in range(given.repeats)), key=lambda run: run[0])
    worst = float(np.abs(ours.necessity - fused[1]).max())
    encoded = ours.counts["images_encoded"]
    print(f"{machine()}\n{parameters / 1e6:.1f} M parameters, {given.threads} threads\n")
    print("| graphs | samples/s | images encoded |\n|---|---|---|")
    print(f"| two | {given.samples / ours.seconds:.1f} | {encoded} |")
    print(f"| one | {given.samples / fused[0]:.1f} | {given.samples} |")
    print(f"\n{fused[0] / ours.seconds:.2f} times as fast; worst difference {worst:.1e} nats")
    return 0 if worst <= 1e-4 and encoded == distinct else 1


def share_images(pool: Path) -> int:
    """Give each ten samples one image; return how many images there are."""
    records = json.loads(pool.read_bytes())
    whole = [record for record in records if isinstance(record.get("image"), str)]
    names = list(dict.fromkeys(record["image"] for record in whole))[: -(-len(records) // SHARED)]
    for place, record in enumerate(records):
        texts = whole[place % len(whole)]["conversations"]
        record["conversations"] = texts
        record["image"] = names[place // SHARED]
    pool.write_text(json.dumps(records))
    return len(names)


def export_fused(family: Family, folder: Path) -> None:
    model = load_model(folder / "model")
    vision, scorer = family.vision_graph(model), family.scorer_graph(model)
    example = {**vision.example, **scorer.example}
    example.pop("features")
    axes = {name: named for name, named in scorer.axes.items() if name != "features"}
    axes["pixel_values"] = {0: "images"}
    _export(Graph(Fused(vision.module, scorer.module), example, axes, scorer.outputs), folder / "fused.onnx")


def by_one_graph(family: Family, folder: Path, given: argparse.Namespace) -> tuple[float, np.ndarray]:
    """Score the same batches; every sample brings its image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(folder / "fused.onnx", options, providers=["CPUExecutionProvider"])
    with RunDirectory(folder / "run") as run:
        samples = list(Pool.of(run))
    encoded = [family.encode(sample) for sample in samples]
    tokens = encoded[0].image_tokens[0]
    batches = length_batches([len(each) for each in encoded], given.token_budget)
    inputs = []
    for batch in batches:
        pictures = [family.prepare(load_image(samples[row].images[0])) for row in batch]
        starts = [[place * tokens] for place in range(len(batch))]
        inputs.append(
            family.vision_inputs(pictures)
            | scorer_batch(family, alone([encoded[row] for row in batch]), starts)
        )
    losses = np.full(len(samples), np.nan, dtype=np.float32)
    started = time.perf_counter()
    results = [session.run(["token_nll"], each)[0] for each in inputs]
    seconds = time.perf_counter() - started
    for batch, result in zip(batches, results, strict=True):
        counts = [np.count_nonzero(encoded[row].is_answer[1:]) for row in batch]
        for row, own in zip(batch, np.split(result, np.cumsum(counts)[:-1]), strict=True):
            losses[row] = own.mean()
    return seconds, losses


if __name__ == "__main__":
    sys.exit(main())

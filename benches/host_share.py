"""Whether the host keeps a GPU busy, without one: the score stage with a device that only takes time.

    python benches/host_share.py                          # LLaVA of 0.9 B and Qwen2.5-VL of 3.8 B parameters
    python benches/host_share.py --tflops 200 --workers 4

The device waits as long as one of `--tflops` would compute the vision tower and the text model (two FLOP for
each parameter and position, vocabulary apart) and returns numbers that mean nothing. All else is the score
stage: texts become tokens, JPEGs of 448 x 336 pixels are read, decoded and prepared, batches are put together
and parts written. Idle is the share of the time in which the device did not wait.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers as hf

from gpu_models import MODELS, PIXELS, make_model, make_pool
from mllm_selector.scoring import sweeps
from scoring_setup import machine, prepare, score_once

BUDGETS = {"token_budget": 16_384, "image_budget": 8192}


class Device:
    """Takes the time of a device and computes nothing; see `mllm_selector.engine.Engine`.

    Parameters
    ----------
    row_seconds, token_seconds : float
        What the vision tower takes for a feature row, and the text model for a position.
    width : int
        Of features and embeddings.
    """

    provider = "pretended"
    length_multiple = 8
    input_embedding_size = None

    def __init__(self, row_seconds: float, token_seconds: float, width: int) -> None:
        self._row_seconds, self._token_seconds = row_seconds, token_seconds
        self.embedding_size = width
        self.feature_row_bytes = 2 * width
        self.seconds = 0.0

    def reserve(self, rows: int) -> None:
        """Do nothing."""

    def see(self, inputs: dict[str, np.ndarray], start: int, rows: int) -> None:
        """Take the time of the vision tower."""
        self._take(rows * self._row_seconds)

    def read(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Take the time of the text model."""
        self._take(inputs["input_ids"].size * self._token_seconds)
        rows, samples, _ = inputs["pooled_positions"].shape
        found = dict.fromkeys(outputs, np.ones(len(inputs["answer_tokens"]), dtype=np.float32))
        vectors = np.full((rows * samples, self.embedding_size), self.embedding_size**-0.5, dtype=np.float32)
        return found | {"sample_embedding": vectors}

    def _take(self, seconds: float) -> None:
        # Like a run of ONNX Runtime, sleeping leaves Python to other threads.
        time.sleep(seconds)
        self.seconds += seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tflops", type=float, default=400.0, help="default: 400, what an H200 may reach")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    print(f"{machine()}; {os.cpu_count()} cores\n{given.samples} samples, {given.tflops:g} TFLOP/s\n")
    print("| model | workers | samples/s | the device alone | idle |\n|---|---|---|---|---|")
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), name, given)
    return 0


def compare(folder: Path, name: str, given: argparse.Namespace) -> None:
    pool, images = make_pool(folder, given.samples, PIXELS["full"])
    make_model(folder / "tiny", name, "tiny")
    prepare(folder / "run", pool, images, folder / "tiny", engine="torch")
    config, processor = MODELS[name]("full")
    config.save_pretrained(folder / "run" / "onnx" / "processor")
    processor.save_pretrained(folder / "run" / "onnx" / "processor")
    for workers in given.workers:
        device = make_device(config, given.tflops * 1e12)
        with mock.patch.object(sweeps, "open_engine", lambda *_, device=device, **__: device):
            scored = score_once(folder / "run", workers=workers, **BUDGETS)
        speed, alone = (given.samples / seconds for seconds in (scored.seconds, device.seconds))
        idle = 1 - device.seconds / scored.seconds
        print(f"| {name} | {workers} | {speed:.0f} | {alone:.0f} | {idle:.1%} |", flush=True)


def make_device(config: Any, flop_per_second: float) -> Device:
    """Return a device that takes as long as the model's tower and text model would."""
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(config).model
    tower, text = (model.visual if hasattr(model, "visual") else model.vision_tower), model.language_model
    seeing, reading = (sum(p.numel() for p in part.parameters()) for part in (tower, text))
    reading -= model.get_input_embeddings().weight.numel()
    # Qwen's rows are made of four patches, each of which the tower computes.
    positions = getattr(config.vision_config, "spatial_merge_size", 1) ** 2
    return Device(
        2 * seeing * positions / flop_per_second,
        2 * reading / flop_per_second,
        config.get_text_config().hidden_size,
    )


if __name__ == "__main__":
    sys.exit(main())

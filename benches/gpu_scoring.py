"""Scoring speed on one GPU: the ONNX engine against PyTorch, on models with random weights.

    python benches/gpu_scoring.py --model llava            # 0.9 B parameters, 5,000 samples, 336-pixel images
    python benches/gpu_scoring.py --model qwen2_5_vl       # 3.8 B parameters
    python benches/gpu_scoring.py --size tiny --device cpu --samples 64

Makes the model, the pool and the images, exports, and scores the same samples with

- onnx: the score stage with the exported graphs;
- apart: the same, a sequence for every sample, also where samples begin with the same images;
- written-out: graphs of a lower opset, in which attention is many operators;
- torch: the score stage with ``--engine torch``: eager mode, sdpa, equal batches and gather;
- compile: the same, both modules compiled by ``torch.compile``;
- loop: what users write today, ``model(**batch, labels=...)`` in file order, eight samples a batch.

Prints samples/s, the share of the measured matrix-product peak that the text part reaches while it computes
(its FLOP are counted by PyTorch), the idle share of the device, peak memory, and how far apart mean losses
are. Exits with 1 if they disagree by more than the precision allows.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu_models import MODELS, PIXELS, make_model, make_pool
from mllm_selector.engine import OnnxEngine
from mllm_selector.families.loading import load_model
from mllm_selector.resources import gpu_name
from mllm_selector.scoring import opening
from mllm_selector.scoring.torch_engine import TorchEngine
from mllm_selector.stages import export
from prefix_sharing import apart
from scoring_setup import Scored, machine, prepare, score_by_loop, score_once

ENGINES = ("onnx", "apart", "written-out", "torch", "compile", "loop")
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.16}
COUNTED = 64
"""Samples whose FLOP are counted; those of the pool follow by their tokens."""


@dataclass
class Reading:
    """What the text part has done: seconds, tokens with padding, FLOP where they are counted."""

    seconds: float = 0.0
    tokens: int = 0
    flop: float = 0.0


@dataclass
class Memory:
    """Device memory in MB while a block ran; empty without nvidia-smi."""

    samples: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{max(self.samples):,.0f}" if self.samples else "-"


class CompiledEngine(TorchEngine):
    """The PyTorch engine with both modules compiled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._vision.compile(dynamic=True)
        self._scorer.compile(dynamic=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="llava")
    parser.add_argument("--size", choices=sorted(PIXELS), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=sorted(TOLERANCE), help="default: float16, on the CPU float32")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--token-budget", default="auto")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--work", type=Path, help="folder to work in, kept; by default a temporary one")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; try --size tiny --device cpu")
    given.precision = given.precision or ("float16" if given.device == "cuda" else "float32")
    with tempfile.TemporaryDirectory() as temporary:
        return compare(given.work or Path(temporary), given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    pool, images = make_pool(folder, given.samples, PIXELS[given.size])
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    make_model(model, given.model, given.size)
    exports = {
        "onnx": "onnx",
        "apart": "onnx",
        "written-out": "written-out",
        "torch": "torch",
        "compile": "torch",
    }
    for folder_name in sorted({"torch", *(exports[name] for name in given.engines if name != "loop")}):
        with written_out() if folder_name == "written-out" else contextlib.nullcontext():
            engine = "torch" if folder_name == "torch" else "onnx"
            prepare(folder / folder_name, pool, images, model, engine=engine, precision=given.precision)
    options = {"device": given.device, "token_budget": given.token_budget, "workers": given.workers}
    flop_per_token = count_flop(folder, model, options, given)
    peak = matmul_peak(given.device, given.precision)
    print(f"\n{machine()}; {gpu_name()}")
    print(f"{given.model}, {given.size}, {given.samples} samples, {given.precision}")
    print(f"matrix products reach {peak / 1e12:.3f} TFLOP/s\n")
    print("| engine | samples/s | text part, share of peak | idle | peak memory, MB | worst difference |")
    print("|---|---|---|---|---|---|")
    first: Scored | None = None
    agree = True
    for name in given.engines:
        with watched() as memory, reading() as text, special(name):
            if name == "loop":
                scored = score_by_loop(folder / "torch", model, images, given.device, given.precision)
            else:
                scored = score_once(folder / exports[name], **options)
        first = first or scored
        worst = float(np.abs(scored.necessity - first.necessity).max())
        agree &= worst <= TOLERANCE[given.precision]
        share = f"{flop_per_token * text.tokens / text.seconds / peak:.1%}" if text.tokens else "-"
        idle = "-" if name == "loop" else f"{scored.idle:.1%}"
        speed = given.samples / scored.seconds
        print(f"| {name} | {speed:.1f} | {share} | {idle} | {memory} | {worst:.1e} |", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return 0 if agree else 1


def count_flop(folder: Path, model: Path, options: dict[str, Any], given: argparse.Namespace) -> float:
    """Return the text part's FLOP for a token, padding included, counted on a part of the pool."""
    pool, images = make_pool(folder / "counted", min(COUNTED, given.samples), PIXELS[given.size])
    prepare(folder / "counted" / "run", pool, images, model, engine="torch", precision=given.precision)
    with reading(count=True) as text:
        score_once(folder / "counted" / "run", **{**options, "token_budget": 4096})
    return text.flop / text.tokens


def matmul_peak(device: str, precision: str) -> float:
    """Measure the FLOP/s of large square matrix products."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def special(name: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which an engine scores."""
    if name == "compile":
        return mock.patch.object(opening, "TorchEngine", CompiledEngine)
    return apart() if name == "apart" else contextlib.nullcontext()


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Have the model exported as one is whose family shares no prefixes."""

    def load_eager(*arguments: Any, **options: Any) -> Any:
        return load_model(*arguments, **{**options, "attention": "eager"})

    with mock.patch.object(export, "load_model", load_eager), mock.patch.object(export, "FUSED_OPSET", None):
        yield


@contextlib.contextmanager
def reading(count: bool = False) -> Iterator[Reading]:
    """Time the text part of both engines; it ends with a copy to the host, so the device has finished."""
    text = Reading()
    before = {kind: kind.read for kind in (OnnxEngine, TorchEngine)}

    def timed(kind: Any) -> Any:
        def read(engine: Any, inputs: Any, outputs: Any) -> Any:
            synchronize(engine._device)
            started = time.perf_counter()
            with FlopCounterMode(display=False) if count else contextlib.nullcontext() as counter:
                result = before[kind](engine, inputs, outputs)
            text.seconds += time.perf_counter() - started
            text.tokens += inputs["input_ids"].size
            text.flop += counter.get_total_flops() if count else 0.0
            return result

        return read

    for kind in before:
        kind.read = timed(kind)
    try:
        yield text
    finally:
        for kind, read in before.items():
            kind.read = read


@contextlib.contextmanager
def watched() -> Iterator[Memory]:
    """Sample the memory of the device four times a second."""
    memory = Memory()
    if shutil.which("nvidia-smi") is None:
        yield memory
        return
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "250"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(
            target=lambda: memory.samples.extend(float(line) for line in process.stdout or ())
        )
        reader.start()
        try:
            yield memory
        finally:
            process.terminate()
            reader.join()


if __name__ == "__main__":
    sys.exit(main())

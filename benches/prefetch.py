"""Loading and preparing images: threads against processes, our ways against those of transformers.

    python benches/prefetch.py --images 300

Makes JPEG pictures of 640 x 480 pixels and prepares them (decode, resize, crop or cut into patches) as the
score stage does, for a LLaVA with 336-pixel pictures and for a Qwen2.5-VL, with 1, 2, ... workers of both
kinds. What processes prepare is handed over to this one, as the engine needs it here. The last column is the
image processor as transformers has it: Pillow resizes, and every pixel becomes a float32.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, Qwen2VLImageProcessorPil

from gpu_models import MODELS
from mllm_selector import families
from mllm_selector.families.base import Arrays, Family
from mllm_selector.families.images import load_image
from scoring_setup import machine


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = make_images(Path(folder), given.images)
        print(f"{machine()}; {os.cpu_count()} cores\n")
        print("| processor of | workers | threads, images/s | processes, images/s | threads, as it is |")
        print("|---|---|---|---|---|")
        for name in MODELS:
            model = make_processor(Path(folder) / name, name)
            for workers in given.workers:
                with ThreadPoolExecutor(workers) as threads:
                    by_threads = speed(threads, partial(prepare, model), paths)
                    as_it_is = speed(threads, partial(prepare_plainly, model), paths)
                with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
                    by_processes = speed(processes, partial(prepare, model), paths)
                print(f"| {name} | {workers} | {by_threads:.1f} | {by_processes:.1f} | {as_it_is:.1f} |")
    return 0


def make_images(folder: Path, count: int) -> list[Path]:
    draw = np.random.default_rng(0)
    paths = []
    for index in range(count):
        coarse = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def speed(workers: Executor, how: Callable[[Path], Any], paths: list[Path]) -> float:
    """Return images per second, the best of three turns; the workers are started before."""
    consume(workers.map(how, paths[:8]))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        consume(workers.map(how, paths))
        seconds.append(time.perf_counter() - started)
    return len(paths) / min(seconds)


def make_processor(folder: Path, name: str) -> Path:
    """Write what scoring reads of a model besides its graphs; pictures are as large as is usual."""
    config, processor = MODELS[name]("full")
    if name == "qwen2_5_vl":
        processor.image_processor.size = Qwen2VLImageProcessorPil().size
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def family(model: Path) -> Family:
    return families.load(model)


@functools.cache
def processor(model: Path) -> Any:
    return AutoImageProcessor.from_pretrained(model, backend="pil")


def prepare(model: Path, path: Path) -> Arrays:
    return family(model).prepare(load_image(path))


def prepare_plainly(model: Path, path: Path) -> np.ndarray:
    output = processor(model)(load_image(path), return_tensors="np")
    return np.asarray(output["pixel_values"], dtype=np.float32)


def consume(arrays: Iterable[Any]) -> None:
    for _ in arrays:
        pass


if __name__ == "__main__":
    sys.exit(main())

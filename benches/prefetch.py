"""Loading and preparing images: threads against processes, looked-up pixel values against computed ones.

    python benches/prefetch.py --images 300

Makes JPEG pictures of 640 x 480 pixels and prepares them (decode, resize, crop, normalise) with the image
processor of a LLaVA with 336-pixel pictures, as the score stage does, with 1, 2, ... workers of both kinds.
What processes prepare is handed over to this one, as the engine needs it here. The last column is the image
processor as transformers has it, which computes every pixel's value.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil

from mllm_selector.families.images import load_image
from mllm_selector.families.pixels import use_tables
from scoring_setup import machine

SIZE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
COMPUTED, LOOKED_UP = CLIPImageProcessorPil(**SIZE), CLIPImageProcessorPil(**SIZE)
use_tables(LOOKED_UP)


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
        print("| workers | threads, images/s | processes, images/s | threads, without tables |")
        print("|---|---|---|---|")
        for workers in given.workers:
            with ThreadPoolExecutor(workers) as threads:
                by_threads = speed(threads, prepare, paths)
                computed = speed(threads, compute, paths)
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
                by_processes = speed(processes, prepare, paths)
            print(f"| {workers} | {by_threads:.1f} | {by_processes:.1f} | {computed:.1f} |")
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


def speed(workers: Executor, how: Callable[[Path], np.ndarray], paths: list[Path]) -> float:
    """Return images per second; the workers are started before."""
    consume(workers.map(how, paths[:8]))
    started = time.perf_counter()
    consume(workers.map(how, paths))
    return len(paths) / (time.perf_counter() - started)


def prepare(path: Path) -> np.ndarray:
    return np.asarray(LOOKED_UP(load_image(path), return_tensors="np")["pixel_values"][0], dtype=np.float32)


def compute(path: Path) -> np.ndarray:
    return np.asarray(COMPUTED(load_image(path), return_tensors="np")["pixel_values"][0], dtype=np.float32)


def consume(arrays: Iterable[np.ndarray]) -> None:
    for _ in arrays:
        pass


if __name__ == "__main__":
    sys.exit(main())

"""Loading and preparing images: threads against processes, our ways against those of transformers.

    python benches/prefetch.py --images 300

Makes JPEG pictures of 640 x 480 pixels and prepares them (decode, resize, crop, normalise) as the score stage
does, with the image processors of a LLaVA with 336-pixel pictures and of Qwen2-VL, with 1, 2, ... workers of
both kinds. What processes prepare is handed over to this one, as the engine needs it here. The last column is
the image processor as transformers has it: Pillow resizes, and every pixel's value is computed.
"""

from __future__ import annotations

import argparse
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
from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

from mllm_selector.families.images import load_image
from mllm_selector.families.pixels import use_tables
from mllm_selector.families.resizing import use_core
from scoring_setup import machine

KINDS = {
    "LLaVA": partial(
        CLIPImageProcessorPil, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ),
    "Qwen2-VL": Qwen2VLImageProcessorPil,
}
PLAIN, OURS = ({name: kind() for name, kind in KINDS.items()} for _ in range(2))
for processor in OURS.values():
    use_tables(processor)
    use_core(processor)


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
        for name in KINDS:
            for workers in given.workers:
                with ThreadPoolExecutor(workers) as threads:
                    by_threads = speed(threads, partial(prepare, name), paths)
                    as_it_is = speed(threads, partial(prepare_plainly, name), paths)
                with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
                    by_processes = speed(processes, partial(prepare, name), paths)
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


def speed(workers: Executor, how: Callable[[Path], np.ndarray], paths: list[Path]) -> float:
    """Return images per second; the workers are started before."""
    consume(workers.map(how, paths[:8]))
    started = time.perf_counter()
    consume(workers.map(how, paths))
    return len(paths) / (time.perf_counter() - started)


def prepare(name: str, path: Path) -> np.ndarray:
    return pixels(OURS[name], path)


def prepare_plainly(name: str, path: Path) -> np.ndarray:
    return pixels(PLAIN[name], path)


def pixels(processor: Any, path: Path) -> np.ndarray:
    return np.asarray(processor(load_image(path), return_tensors="np")["pixel_values"], dtype=np.float32)


def consume(arrays: Iterable[np.ndarray]) -> None:
    for _ in arrays:
        pass


if __name__ == "__main__":
    sys.exit(main())

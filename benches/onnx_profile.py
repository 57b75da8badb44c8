"""Where ONNX Runtime's time goes: the operators of the scorer on a batch of a run's pool.

    python benches/cpu_scoring.py --work DIR && python benches/onnx_profile.py --run-dir DIR/onnx

Prints milliseconds by operator, and of a whole batch with each level of graph optimisation, with attention
written out in place of whole operators, and in PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import onnxruntime as ort

from mllm_selector import families
from mllm_selector.engine import SCORER
from mllm_selector.families.loading import load_model
from mllm_selector.pool import Pool
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.batching import length_batches, scorer_batch
from mllm_selector.scoring.opening import open_torch
from mllm_selector.scoring.prefixes import alone
from mllm_selector.stages.export import _export
from scoring_setup import machine

OUTPUTS = ["token_nll", "sample_embedding"]
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
SAMPLES = 200


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="a run directory with exported graphs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with RunDirectory(given.run_dir) as run:
        pool = Pool.of(run)
        samples = [pool.sample(row) for row in range(min(SAMPLES, len(pool)))]
        graph = run.onnx / SCORER
        model = run.path / run.need("seed").counts["model"]
        family = families.load(run.onnx / "processor")
    encoded = [family.encode(sample) for sample in samples]
    batches = length_batches([len(each) for each in encoded], given.token_budget)
    batch = [encoded[row] for row in batches[len(batches) // 2]]
    inputs = scorer_batch(family, alone(batch), [[0] * len(each.image_tokens) for each in batch])
    tokens = inputs["attention_mask"].size
    print(
        f"{machine()}; {given.threads} threads\nbatch of {len(batch)} samples, {tokens} tokens with padding\n"
    )

    session = open_session(graph, given.threads, LEVELS[-1])
    features = next(node for node in session.get_inputs() if node.name == "features")
    feeds = inputs | {"features": np.zeros((256, features.shape[1]), dtype=np.float32)}
    print("| graph optimisation | ms |\n|---|---|")
    for level in LEVELS:
        session = open_session(graph, given.threads, level)
        print(f"| {level} | {best(given.repeats, session, feeds):.1f} |")
    with tempfile.TemporaryDirectory() as temporary:
        eager = Path(temporary) / SCORER
        _export(family.scorer_graph(load_model(model, attention="eager")), eager)
        session = open_session(eager, given.threads, LEVELS[-1])
        print(f"| attention written out | {best(given.repeats, session, feeds):.1f} |")
    engine = open_torch(family, model, "float32", "cpu", given.threads)
    engine.reserve(256)
    print(f"| PyTorch | {fastest(given.repeats, lambda: engine.read(inputs, OUTPUTS)):.1f} |\n")
    print("| operator | ms | times |\n|---|---|---|")
    for name, (milliseconds, times) in by_operator(graph, given, feeds).items():
        print(f"| {name} | {milliseconds:.1f} | {times} |")
    return 0


def open_session(graph: Path, threads: int, level: str, profile: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def best(repeats: int, session: Any, feeds: dict[str, Any]) -> float:
    return fastest(repeats, lambda: session.run(OUTPUTS, feeds))


def fastest(repeats: int, compute: Callable[[], Any]) -> float:
    """Return the milliseconds of the fastest of several runs."""
    compute()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        compute()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def by_operator(
    graph: Path, given: argparse.Namespace, feeds: dict[str, Any]
) -> dict[str, tuple[float, int]]:
    """Return milliseconds and number of calls of each operator in one run, the slowest first."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(graph, given.threads, LEVELS[-1], Path(folder) / "profile")
        for _ in range(given.repeats):
            session.run(OUTPUTS, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
            times[event["args"]["op_name"]] += 1
    slowest = spent.most_common(12)
    return {name: (total / 1e3 / given.repeats, times[name] // given.repeats) for name, total in slowest}


if __name__ == "__main__":
    sys.exit(main())

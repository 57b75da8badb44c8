"""Opens a graph with ONNX Runtime's CUDA provider and runs it; `cuda_coverage.py` calls this and reads along.

    python benches/cuda_session.py GRAPH LENGTH ...

Prints JSON: for each node its provider, domain and operator. Runs the graph on zeros once for each length,
and says on stderr which length begins. A convolution is done by cuDNN, for which nothing can stand in: it
is left out of the graph that is run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

# As `engine._CUDA_OPTIONS`; the package itself is not imported, since another ONNX Runtime is here.
PROVIDERS = [
    ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
    "CPUExecutionProvider",
]
INFO, VERBOSE, ERROR = 1, 0, 3


class Sizes(dict[str, int]):
    """Sizes of axes by name: those that are counts of something, and for all others the length."""

    def __init__(self, length: int) -> None:
        super().__init__(batch=2, samples=1, answers=5)
        self.length = length

    def __missing__(self, name: str) -> int:
        return self.length


def main() -> None:
    graph = Path(sys.argv[1])
    session = open_session(graph, INFO)
    assert session.get_providers()[0] == PROVIDERS[0][0], "the CUDA provider does not start"
    nodes = [
        (part.ep_name, node.domain, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    print(json.dumps(nodes))
    session = open_session(without_convolutions(graph), ERROR)
    ort.set_default_logger_severity(VERBOSE)
    for length in map(int, sys.argv[2:]):
        print(f"\nLENGTH {length}", file=sys.stderr, flush=True)
        run(session, length)


def open_session(graph: Path, severity: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = severity
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(str(graph), options, providers=PROVIDERS)


def without_convolutions(graph: Path) -> Path:
    """Write the graph with an input in place of each convolution beside it, where its weights lie."""
    model = onnx.load(graph, load_external_data=False)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    if not convolutions:
        return graph
    known = {value.name: value for value in model.graph.value_info}
    for node in convolutions:
        model.graph.node.remove(node)
        model.graph.input.append(known[node.output[0]])
    cut = graph.with_stem(f"{graph.stem}-cut")
    onnx.save(model, cut)
    return cut


def run(session: Any, length: int) -> None:
    binding = session.io_binding()
    sizes = Sizes(length)
    for node in session.get_inputs():
        # The exporter writes what follows from other axes as an expression: "4*rows".
        shape = [size if isinstance(size, int) else eval(size, {}, sizes) for size in node.shape]
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        if kind == "bfloat16":
            zeros = ort.OrtValue.ortvalue_from_shape_and_type(shape, TensorProto.BFLOAT16, "cuda", 0)
            binding.bind_ortvalue_input(node.name, zeros)
        else:
            dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
            binding.bind_cpu_input(node.name, np.zeros(shape, dtype))
    for node in session.get_outputs():
        binding.bind_output(node.name, "cpu")
    session.run_with_iobinding(binding)


if __name__ == "__main__":
    main()

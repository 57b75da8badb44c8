"""Make the seed model ready for scoring: ONNX graphs, or the model in PyTorch, known to agree with it."""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from mllm_selector import families
from mllm_selector.artifacts import atomic_folder, write_json, writing
from mllm_selector.config import ExportOptions
from mllm_selector.engine import (
    INPUT_EMBEDDING,
    INPUTS,
    LOSS_OUTPUTS,
    LOSSES,
    SCORER,
    SCORER_OUTPUTS,
    VISION,
    Engine,
    OnnxEngine,
    has_cuda,
)
from mllm_selector.errors import ExportError, MissingPackageError, UsageError
from mllm_selector.families.base import Family, Graph
from mllm_selector.families.loading import check_exportable, load_model, to_precision
from mllm_selector.progress import Progress
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.opening import graph_folder, open_torch
from mllm_selector.scoring.parity import BatchDifference, Check, check_against, reference

__all__ = ["run"]

FUSED_OPSET = 23
"""The first ONNX opset with Attention, RMSNormalization and RotaryEmbedding, each computed as a whole.

It is for what sees, and for text models that are given positions: ONNX Runtime refuses a RotaryEmbedding
whose angles are one row for all samples, and masks that a model makes for itself are of more kinds than its
Attention takes.
"""

WRITTEN_OUT_OPSET = 22
"""For all other text models: Gemma's norms of 23 have no CUDA kernel."""

WRITTEN_OUT = {"": "eager", "text_config": "eager", "vision_config": "sdpa"}
"""The attention of models with such text: eager is written out."""

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.16}
"""Largest difference of a mean loss (nats) or of an embedding's element from the model's own, in float32."""


def run(run: RunDirectory, options: ExportOptions, progress: Progress) -> dict[str, Any]:
    """Write ``onnx/``: the graphs, the processor, ``config.json`` and ``check.json``.

    Everything is written to a temporary folder, checked there against the unmodified model, and renamed. With
    the PyTorch engine there are no graphs: the seed model itself scores, and is checked in the same way.

    Parameters
    ----------
    run : RunDirectory
        Its seed stage is done; ``counts["model"]`` of that stage names the model directory.
    options : ExportOptions
        Engine and precision.
    progress : Progress
        What is reported to.

    Returns
    -------
    dict
        ``family``, ``engine``, ``precision``, ``bytes`` of the graphs with their weights,
        ``worst_nll_difference`` and ``worst_embedding_difference`` of the check.

    Raises
    ------
    ExportError
        If a graph cannot be made, or differs from the model by more than the tolerance; nothing is left then.
    ModelError
        If the model directory cannot be read.
    UsageError
        If the model is known not to become graphs, or has no such layer.
    MissingPackageError
        If a package of the ``[train]`` or ``[cpu]`` extra is missing.
    """
    _need_packages(options)
    seed = run.need("seed")
    folder = run.path / seed.counts["model"]
    trust = bool(seed.options.get("trust_remote_code", False))
    if options.engine == "onnx":
        check_exportable(folder, trust_remote_code=trust)
    # A sample whose loss is not finite in half precision is scored again in float32.
    precisions = list(dict.fromkeys(["float32", options.precision]))
    # PyTorch runs the same modules whatever is asked for; of graphs there is one for each.
    asked = (SCORER_OUTPUTS, LOSS_OUTPUTS) if options.engine == "onnx" else (SCORER_OUTPUTS,)
    progress.start("export", total=1 + 2 * len(precisions), unit="steps")
    steps = itertools.count(1)
    with atomic_folder(run.onnx) as temporary:
        family = families.load(folder, trust_remote_code=trust)
        _check_layer(options.embedding_layer, family)
        attention = "sdpa" if family.shares_prefixes else WRITTEN_OUT
        model = load_model(folder, attention=attention, trust_remote_code=trust)
        # The reference is the float32 model as it was loaded, before anything is cut out of it or rounded.
        expected = reference(family, model, options.embedding_layer)
        progress.update(next(steps))
        if options.engine == "onnx":
            for precision in precisions:
                graphs = graph_folder(temporary, options.precision, precision)
                _write_graphs(family, model, precision, options.embedding_layer, graphs)
                progress.update(next(steps))
        del model
        with writing(run.onnx):
            family.save(temporary / "processor")
        checks = {}
        for precision in precisions:
            graphs = graph_folder(temporary, options.precision, precision)
            batches: list[BatchDifference] = []
            for outputs in asked:
                engine = _open(options, precision, graphs, outputs, family, folder, trust)
                batches += check_against(family, engine, expected, outputs).batches
                del engine
            checks[precision] = Check(tuple(batches))
            progress.update(next(steps))
        for precision, check in checks.items():
            _judge(check, precision, options.engine)
        written = {name: {"tolerance": TOLERANCE[name], **check.as_json()} for name, check in checks.items()}
        write_json(temporary / "check.json", {"engine": options.engine, **written})
    size = sum(path.stat().st_size for path in run.onnx.rglob("*.onnx*"))
    check = checks[options.precision]
    what = f"{size / 1e6:,.0f} MB of graphs" if size else "no graphs (PyTorch scores)"
    progress.finish(
        f"{what} in {options.precision}; mean loss differs from the model's own by at most "
        f"{check.worst_nll:.1e} in {check.comparisons} comparisons"
    )
    return {
        "family": type(family).__name__,
        "engine": options.engine,
        "precision": options.precision,
        "bytes": size,
        "worst_nll_difference": check.worst_nll,
        "worst_embedding_difference": check.worst_embedding,
    }


def _check_layer(layer: int, family: Family) -> None:
    layers = int(family.config.get_text_config().num_hidden_layers)
    if not -layers - 1 <= layer <= layers:
        msg = (
            f"--embedding-layer: {layer} is none of this model's; its layers are 1 to {layers}, 0 is the "
            "token embeddings, and -1 the last layer"
        )
        raise UsageError(msg)


def _write_graphs(family: Family, model: Any, precision: str, embedding_layer: int, folder: Path) -> None:
    text = FUSED_OPSET if family.shares_prefixes else WRITTEN_OUT_OPSET
    folder.mkdir(exist_ok=True)
    to_precision(model, precision)
    _export(family.vision_graph(model), folder / VISION, FUSED_OPSET)
    _export(family.scorer_graph(model, embedding_layer), folder / SCORER, text)
    _keep(folder / SCORER, (INPUT_EMBEDDING,), folder / INPUTS)
    _keep(folder / SCORER, LOSS_OUTPUTS, folder / LOSSES)
    _keep(folder / SCORER, SCORER_OUTPUTS, folder / SCORER)


def _open(
    options: ExportOptions,
    precision: str,
    graphs: Path,
    outputs: Sequence[str],
    family: Family,
    model: Path,
    trust_remote_code: bool,
) -> Engine:
    """Open what is to be checked, on the CPU where that can compute in this precision."""
    if options.engine == "torch":
        return open_torch(
            family,
            model,
            precision,
            "cpu",
            embedding_layer=options.embedding_layer,
            trust_remote_code=trust_remote_code,
        )
    return OnnxEngine(graphs, "cuda" if precision == "bfloat16" else "cpu", outputs=outputs)


def _export(graph: Graph, path: Path, opset: int | None = None) -> None:
    import torch

    # An axis name stands for one length, wherever it occurs.
    dims = {name: torch.export.Dim(name) for axes in graph.axes.values() for name in axes.values()}
    shapes = tuple(
        {axis: dims[name] for axis, name in graph.axes.get(input_name, {}).items()}
        for input_name in graph.example
    )
    log = io.StringIO()
    try:
        with _captured(log), torch.no_grad():
            program = torch.onnx.export(
                _by_position(graph.module.eval(), list(graph.example)),
                tuple(graph.example.values()),
                dynamo=True,
                input_names=list(graph.example),
                output_names=list(graph.outputs),
                dynamic_shapes=(shapes,),
                opset_version=opset,
            )
            assert program is not None  # what dynamo=True returns; for the type checker
            _drop_metadata(program.model)
    # torch.export raises a dozen unrelated classes; the model, not the caller, is what they are about.
    except Exception as error:
        msg = (
            f"{path.name}: torch.onnx cannot export this model ({type(error).__name__}: {error}); "
            "--engine torch scores it without an export. "
            f"Its last words: {log.getvalue()[-2000:].strip() or 'none'}"
        )
        raise ExportError(msg) from error
    with writing(path), _captured(log):
        program.save(path, external_data=True)


def _by_position(module: Any, names: Sequence[str]) -> Any:
    """Wrap a module so that its inputs come by position: torch 2.11 gives ``**own`` no dynamic shapes."""
    import torch

    class ByPosition(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> Any:
            return self.module(**dict(zip(names, tensors, strict=True)))

    return ByPosition()


def _keep(path: Path, outputs: Sequence[str], target: Path) -> None:
    """Write what of a graph some outputs need: ONNX Runtime always computes all of a graph.

    Weights stay in the file where they are, which the new graph refers to.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = onnx_ir.load(path)
    graph = model.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name in outputs]
    RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    with writing(target):
        onnx_ir.save(model, target)


def _drop_metadata(model: Any) -> None:
    """Remove the exporter's notes: Python stack traces with local paths, most of the file's size."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _judge(check: Check, precision: str, engine: str) -> None:
    tolerance = TOLERANCE[precision]
    worst = max(check.batches, key=lambda batch: batch.worst)
    if worst.worst <= tolerance:
        return
    advice = "Please report the model's name." if precision == "float32" else "Use --precision float32."
    msg = (
        f"the {engine} engine in {precision} does not agree with the model: on a batch of "
        f"{len(worst.tokens)} samples with {worst.tokens} tokens and {worst.images} images the mean loss "
        f"differs by {worst.nll_difference:.2e} nats, the mean entropy by {worst.entropy_difference:.2e}, "
        f"the embedding by {worst.embedding_difference:.2e} and that of the inputs by "
        f"{worst.input_difference:.2e}, more than {tolerance:g}. {advice}"
    )
    raise ExportError(msg)


@contextmanager
def _captured(log: io.StringIO) -> Iterator[None]:
    """Keep the exporter's prints, warnings and log records off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(log), redirect_stderr(log), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _need_packages(options: ExportOptions) -> None:
    for package in ("torch", "onnx", "onnxscript") if options.engine == "onnx" else ("torch",):
        try:
            __import__(package)
        except ImportError as error:
            msg = f"the export needs {package}: pip install 'mllm-selector[train]'"
            raise MissingPackageError(msg) from error
    if options.engine == "onnx" and options.precision == "bfloat16" and not has_cuda():
        msg = (
            "--precision bfloat16: ONNX Runtime computes it on CUDA only and finds no CUDA device that works "
            "here ('mllm-selector doctor' says what is missing); use float16, or --engine torch"
        )
        raise ExportError(msg)

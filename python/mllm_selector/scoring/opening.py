"""Opening the engine that the export stage prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from mllm_selector.engine import SCORER_OUTPUTS, Engine, OnnxEngine
from mllm_selector.families.base import Family
from mllm_selector.families.loading import load_model
from mllm_selector.rundir import RunDirectory
from mllm_selector.scoring.torch_engine import TorchEngine

__all__ = ["graph_folder", "open_engine", "open_torch"]


def graph_folder(folder: Path, chosen: str, precision: str) -> Path:
    """Where the graphs of a precision lie in the export's folder, `chosen` being the one that scores.

    In half precision there are float32 graphs besides, for samples whose loss is not finite.
    """
    return folder if precision == chosen else folder / precision


def open_engine(
    run: RunDirectory,
    family: Family,
    device: str,
    threads: int | None = None,
    note: Callable[[str], None] | None = None,
    precision: str | None = None,
    outputs: Sequence[str] = SCORER_OUTPUTS,
) -> Engine:
    """Open what the export stage of a run has prepared and checked.

    Parameters
    ----------
    run : RunDirectory
        Its seed and export stages are done.
    family : Family
        The model's family.
    device, threads, note, outputs
        See `OnnxEngine`.
    precision : str, optional
        By default the one that the export was made for; ``float32`` is always there.

    Raises
    ------
    ScoreError
        If the device cannot be used, or the graphs cannot be loaded or are of another version.
    ModelError
        If the engine is PyTorch and the seed model cannot be loaded.
    MissingPackageError
        If the engine's package is missing.
    """
    exported = run.need("export").options
    # Manifests of earlier versions name no engine.
    if exported.get("engine", "onnx") == "onnx":
        graphs = run.onnx if precision is None else graph_folder(run.onnx, exported["precision"], precision)
        engine = OnnxEngine(graphs, device, threads, note, outputs)
        engine.check_pictures(family.vision_inputs([family.prepare(Image.new("RGB", (64, 48)))]))
        return engine
    seed = run.need("seed")
    trust = bool(seed.options.get("trust_remote_code", False))
    model = run.path / seed.counts["model"]
    return open_torch(
        family,
        model,
        precision or exported["precision"],
        device,
        threads,
        note,
        embedding_layer=exported.get("embedding_layer", -1),
        trust_remote_code=trust,
    )


def open_torch(
    family: Family,
    folder: Path,
    precision: str,
    device: str,
    threads: int | None = None,
    note: Callable[[str], None] | None = None,
    *,
    embedding_layer: int = -1,
    trust_remote_code: bool = False,
) -> TorchEngine:
    """Load a model for the PyTorch engine, with the attention that transformers takes by itself (sdpa)."""
    model = load_model(folder, precision=precision, attention=None, trust_remote_code=trust_remote_code)
    scorer = family.scorer_graph(model, embedding_layer)
    return TorchEngine(family.vision_graph(model), scorer, device, threads, note)

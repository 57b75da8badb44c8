"""The engine on PyTorch: what the ONNX engine is compared with, and for models that do not export.

It runs the very modules that `mllm_selector.engine.OnnxEngine` has as graphs, on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mllm_selector.engine import INPUT_EMBEDDING, length_multiple, memory_errors
from mllm_selector.errors import DeviceMemoryError, ScoreError

if TYPE_CHECKING:
    import torch

    from mllm_selector.families.base import Graph

__all__ = ["TorchEngine"]


class TorchEngine:
    """Both modules on one device; see `mllm_selector.engine.Engine`.

    Parameters
    ----------
    vision, scorer : Graph
        `Family.vision_graph` and `Family.scorer_graph` of a model on the CPU; their modules are moved.
    device : str
        ``cpu``, ``cuda``, or ``auto`` for CUDA where it works.
    threads : int, optional
        Threads for computing on the CPU, for the whole process; by default PyTorch's own choice.
    note : callable, optional
        Takes a sentence when ``auto`` ends on the CPU.

    Raises
    ------
    ScoreError
        If CUDA is asked for and does not work.
    """

    def __init__(
        self,
        vision: Graph,
        scorer: Graph,
        device: str = "auto",
        threads: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        import torch

        self._torch = torch
        self._device = _device(device, note)
        self.provider = f"torch-{self._device}"
        self.length_multiple = length_multiple(self._device)
        if threads is not None:
            torch.set_num_threads(threads)
        # TensorFloat-32, PyTorch's default for convolutions, would round every float32 product to ten bits.
        torch.backends.cudnn.allow_tf32 = False
        self._vision = vision.module.to(self._device).eval()
        self._scorer = scorer.module.to(self._device).eval()
        example = scorer.example["features"]
        self._features = torch.zeros(1, example.shape[1], dtype=example.dtype, device=self._device)
        inputs = {name: tensor.to(self._device) for name, tensor in scorer.example.items()}
        with torch.inference_mode():
            outputs = dict(zip(scorer.outputs, self._scorer(**inputs), strict=True))
        self.embedding_size = int(outputs["sample_embedding"].shape[1])
        self.input_embedding_size: int | None = int(outputs[INPUT_EMBEDDING].shape[1])

    @property
    def feature_row_bytes(self) -> int:
        """Size of one feature row in bytes."""
        return int(self._features.shape[1]) * self._features.element_size()

    def reserve(self, rows: int) -> None:
        """See `Engine.reserve`."""
        if rows > len(self._features):
            width = self._features.shape[1]
            self._features = self._features[:1].clone()  # so that old and new need not fit together
            with self._computing():
                self._features = self._features.new_zeros(rows, width)

    def see(self, inputs: dict[str, NDArray[Any]], start: int, rows: int) -> None:
        """See `Engine.see`."""
        with self._computing():
            tensors = {name: self._on_device(array) for name, array in inputs.items()}
            self._features[start : start + rows] = self._vision(**tensors)

    def read(self, inputs: dict[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `Engine.read`."""
        with self._computing():
            tensors = {name: self._on_device(array) for name, array in inputs.items()}
            if tuple(outputs) == (INPUT_EMBEDDING,):
                needed = {name: tensors[name] for name in ("input_ids", "image_rows", "pooled_positions")}
                scorer: Any = self._scorer
                embedding = scorer.embed_inputs(**needed, features=self._features)
                return {INPUT_EMBEDDING: embedding.cpu().numpy()}
            values = self._scorer(**tensors, features=self._features, outputs=outputs)
            return {name: value.cpu().numpy() for name, value in zip(outputs, values, strict=True)}

    @contextmanager
    def _computing(self) -> Iterator[None]:
        try:
            with memory_errors(), self._torch.inference_mode():
                yield
        except DeviceMemoryError:
            # Blocks kept for later are of the sizes that did not fit.
            if self._device == "cuda":
                self._torch.cuda.empty_cache()
            raise

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _device(wanted: str, note: Callable[[str], None] | None) -> str:
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        if wanted == "auto" and note is not None:
            note("scoring on the CPU: PyTorch finds no CUDA device that works")
        return "cpu"
    if not torch.cuda.is_available():
        msg = (
            f"--device cuda: PyTorch {torch.__version__} finds no CUDA device that works; check with "
            "'nvidia-smi' that there is one and that its driver is new enough, or use --device cpu"
        )
        raise ScoreError(msg)
    return "cuda"

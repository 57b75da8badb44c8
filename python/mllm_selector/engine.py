"""What computes scores: the contract of an engine, and the engine on ONNX Runtime.

Image features go from the vision graph to the scorer without leaving the device: the vision graph writes its
rows into one block of memory, and the scorer reads from it the rows that it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import DeviceMemoryError, MissingPackageError, ScoreError

__all__ = [
    "INPUTS",
    "INPUT_EMBEDDING",
    "LOSSES",
    "LOSS_OUTPUTS",
    "SCORER",
    "SCORER_OUTPUTS",
    "VISION",
    "Engine",
    "OnnxEngine",
    "has_cuda",
    "length_multiple",
    "memory_errors",
    "onnxruntime_conflict",
    "working_providers",
]

SCORER_OUTPUTS = ("token_nll", "token_entropy", "token_hit", "sample_embedding")
"""Outputs of every scorer, described in `mllm_selector.families.scorer.ScorerGraph.forward`."""

LOSS_OUTPUTS = ("token_nll", "sample_embedding")
"""Those that most scoring wants; each of the others goes through all logits again, or several times."""

INPUT_EMBEDDING = "input_embedding"
"""A further output, for which the language model is not run; the export makes a graph of its own of it."""

VISION = "vision.onnx"
SCORER = "scorer.onnx"
LOSSES = "losses.onnx"
"""What of the scorer makes `LOSS_OUTPUTS`; its weights are those in the scorer's file."""
INPUTS = "inputs.onnx"
"""What of the scorer makes the embedding of the inputs; its weights, too, are those in the scorer's file."""

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    # TensorFloat-32, on by default, would round every float32 product to ten bits.
    "use_tf32": "0",
    # The default times all algorithms of a convolution anew for each number of images, and which one wins is
    # a matter of chance.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default doubles the memory that it takes, which batches of many shapes do not come to need.
    "arena_extend_strategy": "kSameAsRequested",
}
# An ONNX model of one Identity node (opset 17), to see whether a provider starts.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a001011"
)
# What ONNX Runtime takes for the type of a block of memory, and the size of an element in bytes. NumPy has no
# bfloat16; its number is that of onnx.TensorProto.
_TYPES: dict[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 4),
    "tensor(float16)": (np.float16, 2),
    "tensor(bfloat16)": (16, 2),
}
# What NumPy calls the types of pictures.
_PICTURE_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}


# How ONNX Runtime, CUDA, cuBLAS, PyTorch and the C++ library say that memory is lacking; none has a class of
# its own for it in every case.
_NO_MEMORY = (
    "failed to allocate memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "can't allocate memory",
    "not enough memory",
    "alloc_failed",
)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the many ways in which a lack of memory is told into one.

    Raises
    ------
    DeviceMemoryError
        If the block fails for want of memory. Retry after the handler only: the traceback keeps arrays alive.
    """
    try:
        yield
    # Exceptions of ONNX Runtime share no base class below Exception.
    except Exception as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or any(sign in said for sign in _NO_MEMORY):
            raise DeviceMemoryError(str(error)) from None
        raise


def onnxruntime_conflict() -> str | None:
    """Say what is wrong if both packages of ONNX Runtime are installed, and how to mend it.

    They unpack into one folder: the one installed last wins, and removing one breaks the other.

    Returns
    -------
    str or None
        None if at most one of them is installed.
    """
    if not (_installed("onnxruntime") and _installed("onnxruntime-gpu")):
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; mend it with "
        "'pip uninstall -y onnxruntime onnxruntime-gpu', then \"pip install 'mllm-selector[gpu]'\" on a "
        "machine with an NVIDIA GPU, else \"pip install 'mllm-selector[cpu]'\""
    )


def working_providers() -> list[str]:
    """List the execution providers that start here: CUDA or not, and the CPU.

    The list of *available* providers only says what the package was built with, so each is tried.

    Raises
    ------
    MissingPackageError
        If ONNX Runtime is not installed.
    ScoreError
        If both of its packages are.
    """
    ort = _import_onnxruntime()
    providers = [name for name in (_CUDA, _CPU) if name in ort.get_available_providers()]
    if _CUDA in providers:
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    sessions = [ort.InferenceSession(_IDENTITY, options, providers=[name]) for name in providers]
    started = [session.get_providers()[0] for session in sessions]
    return [name for name, got in zip(providers, started, strict=True) if name == got]


def has_cuda() -> bool:
    """Say whether ONNX Runtime's CUDA provider starts here."""
    return _CUDA in working_providers()


def length_multiple(device: str) -> int:
    """Return `Engine.length_multiple` on ``cpu`` or ``cuda``.

    Of the attention on CUDA, what takes a mask and keeps scores out of memory wants rows of the mask that are
    aligned to 16 bytes, in ONNX Runtime (`benches/cuda_coverage.py`) as in PyTorch.
    """
    return 8 if device == "cuda" else 1


class Engine(Protocol):
    """What runs the two modules of a model: the one that sees, and the one that reads.

    Attributes
    ----------
    provider : str
        What computes, and on which kind of device.
    length_multiple : int
        What the length of a batch is to be a multiple of, padding included, for the sake of speed.
    embedding_size : int
        Width of the embeddings.
    """

    provider: str
    length_multiple: int
    embedding_size: int

    @property
    def input_embedding_size(self) -> int | None:
        """Width of the input embeddings; None if the export was made before there were any."""

    @property
    def feature_row_bytes(self) -> int:
        """Size of one feature row in bytes."""

    def reserve(self, rows: int) -> None:
        """Make room for feature rows; what was there is lost if the memory has to grow.

        This and the following raise DeviceMemoryError if the device's memory does not suffice.
        """

    def see(self, inputs: dict[str, NDArray[Any]], start: int, rows: int) -> None:
        """Turn images into feature rows and keep them on the device.

        Parameters
        ----------
        inputs : dict of str to ndarray
            `Family.vision_inputs` of some images.
        start, rows : int
            Where their feature rows go, and how many there are.
        """

    def read(self, inputs: dict[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Score a batch.

        Parameters
        ----------
        inputs : dict of str to ndarray
            All inputs of the scorer except the features.
        outputs : sequence of str
            Which of its outputs are wanted. For ``input_embedding``, asked for alone, the language model is
            not run, and only ``input_ids``, ``image_rows`` and ``pooled_positions`` count.

        Returns
        -------
        dict of str to ndarray
            The outputs by name.
        """


class OnnxEngine:
    """The exported graphs on ONNX Runtime; see `Engine`.

    Parameters
    ----------
    folder : Path
        Holds ``vision.onnx``, ``scorer.onnx``, ``losses.onnx`` and, for input embeddings, ``inputs.onnx``.
    device : str
        ``cpu``, ``cuda``, or ``auto`` for CUDA where it starts.
    threads : int, optional
        Threads for computing on the CPU; by default one for each core.
    note : callable, optional
        Takes a sentence when ``auto`` ends on the CPU.
    outputs : sequence of str
        What `read` will be asked for at most, besides ``input_embedding``: ONNX Runtime always computes all
        of a graph, so there is one without what is rarely wanted.

    Attributes
    ----------
    provider : str
        The execution provider that runs the graphs.
    length_multiple : int
        See `Engine`.
    embedding_size : int
        Width of the embeddings.

    Raises
    ------
    MissingPackageError
        If ONNX Runtime is not installed.
    ScoreError
        If both of its packages are, if CUDA is asked for and does not start, or if a graph cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        threads: int | None = None,
        note: Callable[[str], None] | None = None,
        outputs: Sequence[str] = SCORER_OUTPUTS,
    ) -> None:
        self._ort = _import_onnxruntime()
        self._threads = threads
        self._folder = folder
        providers = self._providers(device)
        self._vision = self._open(folder / VISION, providers)
        self.provider = str(self._vision.get_providers()[0])
        if providers[0] != _CPU and self.provider == _CPU and device == "cuda":
            raise ScoreError(_no_cuda("the CUDA provider is installed but does not start"))
        if device == "auto" and self.provider == _CPU and note is not None:
            note("scoring on the CPU: ONNX Runtime finds no CUDA device that works")
        scorer = folder / (LOSSES if set(outputs) <= set(LOSS_OUTPUTS) else SCORER)
        # What the first session could not start is not tried a second time.
        self._scorer = self._open(scorer, providers if self.provider == _CUDA else [_CPU])
        if self._scorer.get_providers()[0] != self.provider:
            raise ScoreError(_no_cuda("the CUDA provider started for one graph only"))
        self._device = "cuda" if self.provider == _CUDA else "cpu"
        self.length_multiple = length_multiple(self._device)
        inputs = {node.name: node for node in self._scorer.get_inputs()}
        if len(inputs["pooled_positions"].shape) != 3:
            raise ScoreError(_other_version(scorer))
        features = inputs["features"]
        self._feature_type, self._feature_bytes = _TYPES[features.type]
        self._feature_width = int(features.shape[1])
        embedding = next(node for node in self._scorer.get_outputs() if node.name == "sample_embedding")
        self.embedding_size = int(embedding.shape[1])
        self._features = self._new_features(1)

    @property
    def feature_row_bytes(self) -> int:
        """Size of one feature row in bytes."""
        return self._feature_width * self._feature_bytes

    @property
    def input_embedding_size(self) -> int | None:
        """See `Engine.input_embedding_size`."""
        if not (self._folder / INPUTS).exists():
            return None
        (embedding,) = self._inputs.get_outputs()
        return int(embedding.shape[1])

    @cached_property
    def _inputs(self) -> Any:
        """The graph for input embeddings, opened when it is needed: it holds the token embeddings again."""
        return self._open(self._folder / INPUTS, self._providers(self._device))

    def check_pictures(self, inputs: dict[str, NDArray[Any]]) -> None:
        """Compare the inputs of the vision graph with those that the model's family makes here.

        Parameters
        ----------
        inputs : dict of str to ndarray
            `Family.vision_inputs` of any picture.

        Raises
        ------
        ScoreError
            If the graph takes other ones: it was exported by another version of this package or transformers.
        """
        taken = {node.name: _PICTURE_TYPES.get(node.type) for node in self._vision.get_inputs()}
        if taken != {name: str(array.dtype) for name, array in inputs.items()}:
            raise ScoreError(_other_version(self._folder / VISION))

    def reserve(self, rows: int) -> None:
        """See `Engine.reserve`."""
        if rows > self._features.shape()[0]:
            self._features = self._new_features(1)  # so that old and new need not fit together
            with memory_errors():
                self._features = self._new_features(rows)

    def see(self, inputs: dict[str, NDArray[Any]], start: int, rows: int) -> None:
        """Run the vision graph; see `Engine.see`."""
        binding = self._vision.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output(
            "features",
            self._device,
            0,
            self._feature_type,
            (rows, self._feature_width),
            self._features.data_ptr() + start * self.feature_row_bytes,
        )
        with memory_errors():
            self._vision.run_with_iobinding(binding)

    def read(self, inputs: dict[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run the scorer; see `Engine.read`."""
        session = self._inputs if tuple(outputs) == (INPUT_EMBEDDING,) else self._scorer
        binding = session.io_binding()
        needed = {node.name for node in session.get_inputs()}
        for name, array in inputs.items():
            if name in needed:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_ortvalue_input("features", self._features)
        for output in outputs:
            binding.bind_output(output, "cpu")
        with memory_errors():
            session.run_with_iobinding(binding)
        return {name: value.numpy() for name, value in zip(outputs, binding.get_outputs(), strict=True)}

    def _new_features(self, rows: int) -> Any:
        shape = [rows, self._feature_width]
        return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, self._feature_type, self._device, 0)

    def _providers(self, device: str) -> list[Any]:
        if device == "cpu":
            return [_CPU]
        if _CUDA not in self._ort.get_available_providers():
            if device == "cuda":
                raise ScoreError(_no_cuda("the installed onnxruntime has no CUDA provider"))
            return [_CPU]
        # Finds the CUDA libraries that [gpu] installs as Python packages.
        self._ort.preload_dlls()
        return [(_CUDA, _CUDA_OPTIONS), _CPU]

    def _open(self, path: Path, providers: list[Any]) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        # Each graph has threads of its own, which by default go on asking for work after a run and so take
        # the cores from the other graph and from the images' loaders.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        try:
            return self._ort.InferenceSession(str(path), options, providers=providers)
        # Its exceptions share no base class below Exception.
        except Exception as error:
            msg = f"{path} cannot be loaded ({error}); run 'mllm-selector export' on this run directory again"
            raise ScoreError(msg) from error


def _import_onnxruntime() -> Any:
    conflict = onnxruntime_conflict()
    if conflict is not None:
        raise ScoreError(conflict)
    try:
        import onnxruntime
    except ImportError as error:
        msg = (
            "scoring needs ONNX Runtime: pip install 'mllm-selector[cpu]', or 'mllm-selector[gpu]' on a "
            "machine with an NVIDIA GPU"
        )
        raise MissingPackageError(msg) from error
    return onnxruntime


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _other_version(path: Path) -> str:
    return (
        f"{path} was exported by another version of mllm-selector or transformers; score with that version, "
        "or use another --run-dir"
    )


def _no_cuda(what: str) -> str:
    return (
        f"--device cuda: {what}; install it with \"pip install 'mllm-selector[gpu]'\" (after 'pip uninstall "
        "-y onnxruntime'), check with 'nvidia-smi' that the driver supports CUDA 13, or use --device cpu"
    )

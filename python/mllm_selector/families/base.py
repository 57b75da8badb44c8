"""The contract between the pipeline and one family of models.

To score with a model that this package does not know, write a class like
`mllm_selector.families.llava.LlavaFamily` (about 100 lines) and name it to `mllm_selector.families.register`.
A family answers four questions:

1. *Which tokens?* `Family.encode`: a sample's token ids with image placeholders expanded, which of them are
   answer tokens, and how many tokens each image takes. `ChatEncoder` does all but the expansion.
2. *Which pixels?* `Family.prepare`: one picture as the arrays that the model's own image processor makes of
   it; `Family.vision_inputs` puts several together.
3. *How are images seen?* `Family.vision_graph`: a torch module from these arrays to one feature row for each
   image token.
4. *How is text read?* `Family.scorer_graph`: a torch module from token ids and feature rows to losses and
   embeddings; `mllm_selector.families.scorer.ScorerGraph` serves every model with an embedding, a decoder
   and a vocabulary projection.

Questions 1 and 2 are asked while scoring and must be answered without torch; 3 and 4 only for the export.
The export compares the graphs with the unmodified model on several batches before they count, so a family
that splits its model wrongly is found out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_selector.families.chat import ChatEncoder, Conversation, TokenizedChat
from mllm_selector.families.loading import load_config, load_processor

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["SCORER_OUTPUTS", "Arrays", "Encoded", "Family", "Graph", "expand_images"]

SCORER_OUTPUTS = ("token_nll", "token_entropy", "token_hit", "sample_embedding")
"""Outputs of every scorer, described in `mllm_selector.families.scorer.ScorerGraph.forward`."""

Arrays = dict[str, NDArray[Any]]
"""Inputs of a graph by name."""


@dataclass(frozen=True)
class Encoded:
    """A sample as the scorer reads it.

    Attributes
    ----------
    ids : ndarray of int64, shape (length,)
        Token ids, image placeholders expanded.
    is_answer : ndarray of bool, shape (length,)
        True at answer tokens.
    is_image : ndarray of bool, shape (length,)
        True at positions that take a feature row in place of a token embedding.
    image_tokens : tuple of int
        Feature rows of each image, in order; they sum to the number of True values in `is_image`.
    """

    ids: NDArray[np.int64]
    is_answer: NDArray[np.bool_]
    is_image: NDArray[np.bool_]
    image_tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Graph:
    """A torch module and how to export it.

    Attributes
    ----------
    module : torch.nn.Module
        Takes the tensors of `example` by their names, returns a tensor for each of `outputs`.
    example : dict of str to torch.Tensor
        Inputs by name. Every dynamic axis has a length of at least 2, since the exporter bakes a 1 in.
    axes : dict of str to dict of int to str
        Names of the dynamic axes of each input; axes of one name have one length.
    outputs : tuple of str
        Names of the outputs.
    """

    module: torch.nn.Module
    example: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


class Family(ABC):
    """One model of a family: how its samples are encoded and how it is cut into graphs.

    Parameters
    ----------
    folder : Path
        A model directory; ``config.json`` and the processor's files are read, no weights.
    trust_remote_code : bool
        Whether Python code that comes with the model may run.

    Attributes
    ----------
    model_types : tuple of str
        Values of ``model_type`` in ``config.json`` that the family serves.
    config : transformers.PreTrainedConfig
        The content of ``config.json``.
    processor : transformers.ProcessorMixin
        The model's processor.
    chat : ChatEncoder
        Renders and tokenizes conversations.

    Raises
    ------
    ModelError
        If the directory lacks something, or the family does not support this variant of the model.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.config = load_config(folder, trust_remote_code=trust_remote_code)
        self.processor = load_processor(folder, trust_remote_code=trust_remote_code)
        self.chat = ChatEncoder.of(self.processor)

    @classmethod
    @abstractmethod
    def check_config(cls, config: Any, model: str) -> None:
        """Refuse variants of the model that the family does not support, before any weight is read.

        Parameters
        ----------
        config : transformers.PreTrainedConfig
            The content of ``config.json``.
        model : str
            The model's name, for the message.

        Raises
        ------
        ModelError
            If the variant is not supported.
        """

    @property
    def max_positions(self) -> int | None:
        """Most tokens that the model has positions for; None if there is no limit."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def image_backend(self) -> str:
        """Variant of the image processor in use, ``pil`` or ``torchvision``."""
        return str(getattr(self.processor.image_processor, "backend", "unknown"))

    @property
    def pad_token_id(self) -> int:
        """Id written into padding, which no output depends on."""
        return int(self.processor.tokenizer.pad_token_id or 0)

    def save(self, folder: Path) -> None:
        """Write what this class reads of a model directory, so that scoring needs no more than that."""
        self.processor.save_pretrained(folder)
        self.config.save_pretrained(folder)

    @abstractmethod
    def encode(self, sample: Conversation) -> Encoded:
        """Turn a sample into tokens.

        Raises
        ------
        SampleError
            If this sample cannot be encoded.
        """

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Arrays:
        """Turn one RGB picture into arrays, by the model's own image processor; called from threads."""

    def vision_inputs(self, prepared: Sequence[Arrays]) -> Arrays:
        """Put prepared pictures together as inputs of the vision graph; by default, stacks them."""
        return {name: np.stack([image[name] for image in prepared]) for name in prepared[0]}

    def scorer_inputs(self, batch: Sequence[Encoded]) -> Arrays:
        """Put encoded samples together, padded on the right: the scorer's inputs made from tokens alone.

        Families whose scorer needs more than ids and mask (position ids, token types) add to these.

        Returns
        -------
        dict of str to ndarray
            ``input_ids`` and ``attention_mask``, int64, shape (samples, longest).
        """
        shape = (len(batch), max(map(len, batch)))
        ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, sample in enumerate(batch):
            ids[row, : len(sample)] = sample.ids
            mask[row, : len(sample)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """Return what the unmodified model's ``forward`` takes for a batch: the reference of the export."""
        import torch

        inputs = self.scorer_inputs(batch)
        if prepared:
            inputs |= self.vision_inputs(prepared)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    @abstractmethod
    def vision_graph(self, model: Any) -> Graph:
        """Cut out the part that sees: arrays of `vision_inputs` to ``features`` (rows, width).

        Rows are in the order of the images and, within an image, of its tokens.
        """

    @abstractmethod
    def scorer_graph(self, model: Any, embedding_layer: int = -1) -> Graph:
        """Cut out the part that reads; inputs and outputs as of `ScorerGraph`, plus inputs of its own."""


def expand_images(tokens: TokenizedChat, counts: Sequence[int]) -> Encoded:
    """Repeat each image placeholder as often as its image has feature rows.

    Parameters
    ----------
    tokens : TokenizedChat
        A conversation with one placeholder for each image.
    counts : sequence of int
        Feature rows of each image.
    """
    repeats = np.ones(len(tokens.ids), dtype=np.int64)
    repeats[tokens.is_image] = counts
    return Encoded(
        ids=np.repeat(tokens.ids, repeats),
        is_answer=np.repeat(tokens.is_answer, repeats),
        is_image=np.repeat(tokens.is_image, repeats),
        image_tokens=tuple(counts),
    )

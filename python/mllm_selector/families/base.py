"""The contract between the pipeline and one family of models.

A family says, for the models of some ``model_type``:

1. *Which tokens?* `Family.image_block`: what stands in the text for a picture of a certain size, and how many
   feature rows it has. `Family.encode` does the rest.
2. *Which pixels?* `Family.prepare`: one picture as the arrays that the model's own image processor makes of
   it; `Family.vision_inputs` puts several together.
3. *How are images seen?* `Family.vision_graph`: a torch module from these arrays to one feature row for each
   image token.
4. *How is text read?* `Family.scorer_graph`: a torch module from token ids and feature rows to losses and
   embeddings; `mllm_selector.families.scorer.ScorerGraph` serves every model with an embedding, a decoder
   and a vocabulary projection.

Questions 1 and 2 are asked while scoring and must be answered without torch; 3 and 4 only for the export.
The export compares the graphs with the unmodified model on several batches before they count, so a family
that splits its model wrongly is found out. docs/writing-a-family.md walks through a small one.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mllm_selector.errors import SampleError
from mllm_selector.families.chat import IMAGE_MARK, ChatEncoder, Conversation, encode_for_training
from mllm_selector.families.images import Size, image_size
from mllm_selector.families.loading import load_config, load_processor
from mllm_selector.families.parts import load_parts
from mllm_selector.families.pixels import Normalization, normalization
from mllm_selector.pool import PoolImage

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = [
    "BRANCHES",
    "Arrays",
    "Encoded",
    "Family",
    "Graph",
    "ImageBlock",
    "check_rows",
]

BRANCHES = "branches"
"""Input of scorers whose samples may share what they begin with: 0 at shared tokens, else whose they are."""

SHARING_TEXTS = frozenset(
    (
        "llama",
        "mistral",
        "ministral3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "qwen2_vl_text",
        "qwen2_5_vl_text",
        "qwen3_vl_text",
        "qwen3_vl_moe_text",
    )
)
"""Text models of transformers that take position ids and any mask, and know places by these alone."""

Arrays = dict[str, NDArray[Any]]
"""Inputs of a graph by name."""


@dataclass(frozen=True)
class ImageBlock:
    """What stands in the text for one image.

    Attributes
    ----------
    text : str
        Put in the place of the chat text's image placeholder. It holds the model's feature token once for
        each run of feature rows, beside marks of rows, tiles and the like.
    runs : tuple of int
        Feature rows of each feature token in `text`.
    grid : tuple of int
        Rows and columns of the features, where positions depend on them.
    """

    text: str
    runs: tuple[int, ...]
    grid: tuple[int, int] = (0, 0)

    @property
    def rows(self) -> int:
        """Feature rows of the image."""
        return sum(self.runs)


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
    image_grids : tuple of (int, int)
        Rows and columns of each image's features, where positions depend on them.
    per_token : dict of str to ndarray of int64, shape (..., length)
        Further inputs of the scorer (position ids, token types); padded with zeros.
    """

    ids: NDArray[np.int64]
    is_answer: NDArray[np.bool_]
    is_image: NDArray[np.bool_]
    image_tokens: tuple[int, ...]
    image_grids: tuple[tuple[int, int], ...] = ()
    per_token: Arrays = field(default_factory=dict)

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
    image_token_name : str
        Attribute of the tokenizer that names the placeholder which the chat template writes for an image.
    image_token : str
        That placeholder, where the tokenizer has no such attribute.
    one_size : bool
        Whether all pictures have the same feature rows whatever their size, so that sizes are not read.
    causal : bool
        Whether a token sees all tokens before it and no other, whatever stands there.
    config : transformers.PreTrainedConfig
        The content of ``config.json``.
    parts : ProcessorParts
        Tokenizer, image processor and settings.
    chat : ChatEncoder
        Renders and tokenizes conversations.

    Raises
    ------
    ModelError
        If the directory lacks something, or the family does not support this variant of the model.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    image_token_name: ClassVar[str] = "image_token"
    image_token: ClassVar[str] = IMAGE_MARK
    one_size: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.config = load_config(folder, trust_remote_code=trust_remote_code)
        self.parts = load_parts(folder, trust_remote_code=trust_remote_code)
        self._trust_remote_code = trust_remote_code
        placeholder = getattr(self.parts.tokenizer, self.image_token_name, None) or self.image_token
        self.chat = ChatEncoder(self.parts.tokenizer, self.template, placeholder)

    @classmethod  # noqa: B027 - most families have nothing to refuse
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
    def template(self) -> str | None:
        """The chat template: the model's own, or None for that of `ChatEncoder`."""
        return self.parts.chat_template

    @cached_property
    def processor(self) -> Any:
        """The whole processor of transformers, which scoring does without."""
        return load_processor(self.folder, trust_remote_code=self._trust_remote_code)

    @cached_property
    def max_positions(self) -> int | None:
        """Most tokens that the model has positions for; None if there is no limit."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @cached_property
    def shares_prefixes(self) -> bool:
        """Whether samples that begin alike may share it: the scorer then takes `BRANCHES` and positions."""
        text = self.config.get_text_config()
        kinds = getattr(text, "layer_types", None)
        if kinds is None:
            kinds = [
                "full_attention" if getattr(text, "sliding_window", None) is None else "sliding_attention"
            ]
        return self.causal and text.model_type in SHARING_TEXTS and set(kinds) == {"full_attention"}

    @cached_property
    def vocabulary(self) -> int:
        """Number of tokens that the model has a logit for."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def image_backend(self) -> str:
        """Variant of the image processor in use, ``pil`` or ``torchvision``."""
        return str(getattr(self.parts.image_processor, "backend", "unknown"))

    @cached_property
    def normalization(self) -> Normalization | None:
        """How the vision graph makes numbers of pictures, which are bytes then; see `graphs.from_bytes`.

        None where the image processor makes them by itself.
        """
        return normalization(self.parts.image_processor)

    def with_numbers(self) -> Self:
        """Return this family with pictures as the numbers that the image processor makes by itself."""
        other = copy.copy(self)
        other.__dict__["normalization"] = None
        return other

    @property
    def pad_token_id(self) -> int:
        """Id written into padding, which no output depends on."""
        return int(self.parts.tokenizer.pad_token_id or 0)

    @cached_property
    def feature_token_id(self) -> int:
        """Id of the token in whose place feature rows stand."""
        return int(self.config.image_token_id)

    @cached_property
    def feature_token(self) -> str:
        """The token in whose place feature rows stand."""
        return str(self.parts.tokenizer.convert_ids_to_tokens(self.feature_token_id))

    def save(self, folder: Path) -> None:
        """Write what this class reads of a model directory, so that scoring needs no more than that."""
        self.processor.save_pretrained(folder)
        self.config.save_pretrained(folder)

    @abstractmethod
    def image_block(self, size: Size) -> ImageBlock:
        """Say what stands in the text for an image.

        Parameters
        ----------
        size : (int, int)
            Width and height of the upright picture; (1, 1) if all have `one_size`.
        """

    def image_blocks(self, sizes: Sequence[Size]) -> list[ImageBlock]:
        """Say what stands in the text for the images of one sample; by default, for each by itself."""
        return [self.image_block(size) for size in sizes]

    def encode(self, sample: Conversation, size_of: Callable[[PoolImage], Size] = image_size) -> Encoded:
        """Turn a sample into tokens.

        Parameters
        ----------
        sample : Conversation
            The sample.
        size_of : callable
            Gives width and height of an image.

        Raises
        ------
        SampleError
            If this sample cannot be encoded.
        """
        chat = self.chat.render(sample.messages, len(sample.images))
        sizes = [(1, 1) if self.one_size else size_of(image) for image in sample.images]
        blocks = self.image_blocks(sizes)
        tokens = self.chat.tokenize(chat.with_images(self.chat.image_token, [block.text for block in blocks]))
        runs = [run for block in blocks for run in block.runs]
        is_feature = tokens.ids == self.feature_token_id
        if np.count_nonzero(is_feature) != len(runs):
            msg = f"image-marks: the text itself holds {self.feature_token!r}, where only an image may stand"
            raise SampleError(msg)
        repeats = np.ones(len(tokens.ids), dtype=np.int64)
        repeats[is_feature] = runs
        ids = np.repeat(tokens.ids, repeats)
        return self.positioned(
            Encoded(
                ids=ids,
                is_answer=np.repeat(tokens.is_answer, repeats),
                is_image=ids == self.feature_token_id,
                image_tokens=tuple(block.rows for block in blocks),
                image_grids=tuple(block.grid for block in blocks),
            )
        )

    def inputs_of(self, sample: Conversation, encoded: Encoded) -> Encoded:
        """Cut a sample down to what its input embedding is made of.

        Parameters
        ----------
        sample : Conversation
            The sample.
        encoded : Encoded
            The same, from `encode`.

        Returns
        -------
        Encoded
            The tokens of the text of the user's turns, a line break between turns, then the feature rows of
            the images, and no answer. Where the user says nothing, all tokens of the sample but its images.
        """
        turns = (
            content.replace(IMAGE_MARK, " ").strip() for role, content in sample.messages if role == "user"
        )
        text = "\n".join(turn for turn in turns if turn)
        words = np.asarray(
            self.parts.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
        )
        if not len(words):
            words = encoded.ids[~encoded.is_image]
        ids = np.concatenate([words, np.full(sum(encoded.image_tokens), self.feature_token_id)])
        return self.positioned(
            Encoded(
                ids=ids,
                is_answer=np.zeros(len(ids), dtype=np.bool_),
                is_image=np.arange(len(ids)) >= len(words),
                image_tokens=encoded.image_tokens,
                image_grids=encoded.image_grids,
            )
        )

    def positioned(self, sample: Encoded) -> Encoded:
        """Add what the model's scorer needs for each token beside its id, as `Encoded.per_token`."""
        if not self.shares_prefixes:
            return sample
        places = np.arange(len(sample), dtype=np.int64)
        return replace(sample, per_token={"position_ids": places, BRANCHES: np.zeros_like(places)})

    def pixels(self, images: Any, **options: Any) -> NDArray[Any]:
        """Run the image processor.

        Parameters
        ----------
        images : PIL.Image.Image or nested list of them
            As the image processor takes them.
        **options
            Of its own.

        Returns
        -------
        ndarray, shape (..., channels, height, width)
            Its ``pixel_values``: uint8 where there is a `normalization`, else float32.
        """
        if self.normalization is not None:
            options |= {"do_rescale": False, "do_normalize": False}
        output = self.parts.image_processor(images, return_tensors="np", **options)
        dtype = np.float32 if self.normalization is None else np.uint8
        return np.asarray(output["pixel_values"], dtype=dtype)

    @abstractmethod
    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """Turn one RGB picture into arrays, by the model's own image processor; called from threads.

        Parameters
        ----------
        picture : PIL.Image.Image
            Upright, as `mllm_selector.families.images.load_image` gives it.
        rows : int, optional
            Feature rows that the image has in its sample, for models that see an image in several ways.

        Returns
        -------
        dict of str to ndarray
            Laid along the first axis by `vision_inputs`.
        """

    def vision_inputs(self, prepared: Sequence[Arrays]) -> Arrays:
        """Put prepared pictures together as inputs of the vision graph; by default, along the first axis."""
        return {name: np.concatenate([image[name] for image in prepared]) for name in prepared[0]}

    def scorer_inputs(self, batch: Sequence[Encoded], length: int | None = None) -> Arrays:
        """Put encoded samples together, padded on the right: the scorer's inputs made from tokens alone.

        Parameters
        ----------
        batch : sequence of Encoded
            The samples.
        length : int, optional
            What they are padded to, by default the longest.

        Returns
        -------
        dict of str to ndarray
            ``input_ids`` and ``attention_mask``, int64, shape (samples, length), and all that is
            `per_token`, shape (..., samples, length).
        """
        length = length or max(map(len, batch))
        arrays = [
            {"input_ids": sample.ids, "attention_mask": np.ones(len(sample), np.int64), **sample.per_token}
            for sample in batch
        ]
        padding = {"input_ids": self.pad_token_id}
        return {
            name: np.stack([_padded(each[name], length, padding.get(name, 0)) for each in arrays], axis=-2)
            for name in arrays[0]
        }

    def model_inputs(self, batch: Sequence[Encoded]) -> Arrays:
        """Return `scorer_inputs` without what the unmodified model finds by itself."""
        inputs = self.scorer_inputs(batch)
        for name in (BRANCHES, "position_ids"):
            inputs.pop(name, None)
        return inputs

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """Return what the unmodified model's ``forward`` takes for a batch: the reference of the export.

        Parameters
        ----------
        batch : sequence of Encoded
            The samples.
        prepared : sequence of dict of str to ndarray
            Their pictures, from `prepare` of the family `with_numbers`.
        """
        import torch

        inputs = self.model_inputs(batch)
        if prepared:
            inputs |= self.vision_inputs(prepared)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def training_inputs(
        self, sample: Conversation, load_image: Callable[[PoolImage], Image.Image]
    ) -> dict[str, torch.Tensor]:
        """Encode a sample for training by the model's own processor; see `encode_for_training`."""
        return encode_for_training(self.processor, sample, load_image, self.chat)

    @abstractmethod
    def vision_graph(self, model: Any) -> Graph:
        """Cut out the part that sees: arrays of `vision_inputs` to ``features`` (rows, width).

        Rows are in the order of the images and, within an image, of its tokens.
        """

    def scorer_graph(self, model: Any, embedding_layer: int = -1) -> Graph:
        """Cut out the part that reads; inputs and outputs as of `ScorerGraph`, plus inputs of its own."""
        from mllm_selector.families.scorer import ScorerGraph

        parts = (model.get_input_embeddings(), model.get_decoder(), model.get_output_embeddings())
        return ScorerGraph(*parts, embedding_layer).graph(shares_prefixes=self.shares_prefixes)


def check_rows(found: int, rows: int | None) -> None:
    """Compare the feature rows of a picture with those that its sample was encoded for.

    Raises
    ------
    SampleError
        If they differ: the size in the image's header is not the size of its picture.
    """
    if rows is not None and found != rows:
        msg = f"image-unreadable: its header promises another size than the picture has ({found} != {rows})"
        raise SampleError(msg)


def _padded(array: NDArray[Any], length: int, value: int) -> NDArray[Any]:
    width = [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])]
    return np.pad(array, width, constant_values=value)

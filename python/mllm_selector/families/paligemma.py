"""PaliGemma 1 and 2: images and question are read in both directions, the answer in one.

Beyer et al., "PaliGemma", arXiv 2407.07726; Steiner et al., "PaliGemma 2", arXiv 2412.03555. The models are
made for one question: all images, the begin-of-sequence token, the question, a line break, the answer. A
conversation of several turns is read as a longer answer, of which the answers count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mllm_selector.families.base import Arrays, Encoded, Family, Graph, ImageBlock
from mllm_selector.families.chat import Conversation
from mllm_selector.families.images import Size
from mllm_selector.pool import PoolImage

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

__all__ = ["PaliGemmaFamily"]

# The published models bring no chat template; this one writes what their processor makes of a question and
# the answer, its `suffix`. A system turn stands before the first question.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{{ eos_token }}"
    "{% else %}"
    "{% for part in message.content if part.type == 'image' %}{{ image_token }}{% endfor %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '\n' }}"
    "{% endif %}"
    "{% endfor %}"
)


class PaliGemmaFamily(Family):
    """`PaliGemmaForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    one_size: ClassVar[bool] = True

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        # As the model's own processor does: the begin-of-sequence token comes after the images.
        self.parts.tokenizer.add_bos_token = False
        self.parts.tokenizer.add_eos_token = False

    @property
    def template(self) -> str:
        """The template of a question with its answer."""
        return self.parts.chat_template or TEMPLATE

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        vision = self.config.vision_config
        return ImageBlock(self.feature_token, ((vision.image_size // vision.patch_size) ** 2,))

    def positioned(self, sample: Encoded) -> Encoded:
        """Add ``blocks``: all that comes before the first answer."""
        first = int(np.argmax(sample.is_answer)) if sample.is_answer.any() else len(sample)
        blocks = np.where(np.arange(len(sample)) < first, 0, -1)
        return replace(sample, per_token={"blocks": blocks})

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (1, 3, size, size)."""
        return {"pixel_values": self.pixels(picture)}

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`; the model wants token types, 1 from the first answer on."""
        inputs = super().torch_inputs(batch, prepared)
        return inputs | {"token_type_ids": (inputs.pop("blocks") < 0).long()}

    def training_inputs(
        self, sample: Conversation, load_image: Callable[[PoolImage], Image.Image]
    ) -> dict[str, torch.Tensor]:
        """Encode a sample for training; the model's own processor takes one question with images only."""
        import torch

        encoded = self.encode(sample)
        plain = self.with_numbers()
        prepared = [plain.prepare(load_image(image)) for image in sample.images]
        inputs = self.torch_inputs([encoded], prepared)
        labels = torch.from_numpy(np.where(encoded.is_answer, encoded.ids, -100))
        per_token = {name: value[0] for name, value in inputs.items() if name != "pixel_values"}
        return {**inputs, **per_token, "labels": labels}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        from mllm_selector.families.graphs import picture_graph

        return picture_graph(model, (self.config.vision_config.image_size,) * 2, self.normalization)

    def scorer_graph(self, model: Any, embedding_layer: int = -1) -> Graph:
        """See `Family.scorer_graph`."""
        from mllm_selector.families.gemma_graphs import gemma_scorer

        return gemma_scorer(model, embedding_layer, first_position=1, window_over_blocks=False)

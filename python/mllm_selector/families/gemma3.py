"""Gemma 3 with a vision tower: the tokens of a picture attend to each other in both directions.

"Gemma 3 Technical Report", arXiv 2503.19786.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mllm_selector.errors import ModelError
from mllm_selector.families.base import Arrays, Encoded, Family, Graph, ImageBlock
from mllm_selector.families.images import Size

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

__all__ = ["Gemma3Family"]


class Gemma3Family(Family):
    """`Gemma3ForConditionalGeneration` of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    image_token_name: ClassVar[str] = "boi_token"
    image_token: ClassVar[str] = "<start_of_image>"
    one_size: ClassVar[bool] = True

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        if self.parts.image_processor.do_pan_and_scan:
            msg = f"{folder}: do_pan_and_scan of the image processor is not supported; set it to false"
            raise ModelError(msg)

    def image_block(self, size: Size) -> ImageBlock:
        """See `Family.image_block`."""
        tokenizer = self.parts.tokenizer
        text = f"\n\n{tokenizer.boi_token}{self.feature_token}{tokenizer.eoi_token}\n\n"
        return ImageBlock(text, (self.config.mm_tokens_per_image,))

    def positioned(self, sample: Encoded) -> Encoded:
        """Add ``blocks``: the tokens of each image."""
        blocks = np.full(len(sample), -1, dtype=np.int64)
        blocks[sample.is_image] = np.repeat(np.arange(len(sample.image_tokens)), sample.image_tokens)
        return replace(sample, per_token={"blocks": blocks})

    def prepare(self, picture: Image.Image, rows: int | None = None) -> Arrays:
        """See `Family.prepare`: ``pixel_values``, shape (1, 3, size, size)."""
        return {"pixel_values": self.pixels(picture)}

    def torch_inputs(self, batch: Sequence[Encoded], prepared: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """See `Family.torch_inputs`; the model wants token types, 1 at image tokens."""
        inputs = super().torch_inputs(batch, prepared)
        del inputs["blocks"]
        return inputs | {"token_type_ids": (inputs["input_ids"] == self.feature_token_id).long()}

    def vision_graph(self, model: Any) -> Graph:
        """See `Family.vision_graph`."""
        import torch

        from mllm_selector.families.gemma_graphs import SoftTokensGraph
        from mllm_selector.families.graphs import from_bytes

        side = self.config.vision_config.image_size
        graph = Graph(
            module=SoftTokensGraph(model.model),
            example={"pixel_values": torch.zeros(2, 3, side, side)},
            axes={"pixel_values": {0: "pictures"}},
            outputs=("features",),
        )
        return from_bytes(graph, self.normalization)

    def scorer_graph(self, model: Any, embedding_layer: int = -1) -> Graph:
        """See `Family.scorer_graph`."""
        from mllm_selector.families.gemma_graphs import gemma_scorer

        return gemma_scorer(model, embedding_layer, first_position=0, window_over_blocks=True)

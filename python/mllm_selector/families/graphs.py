"""The torch modules that turn pictures into feature rows, which become ONNX graphs.

Imported only where a model is exported or run by torch: everything else in this package works without torch.
What the exporter (`torch.onnx.export(dynamo=True)`) gets right decides how they are written: nothing depends
on a value of an input except through indexing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mllm_selector.families.base import Graph
from mllm_selector.families.pixels import Normalization

__all__ = [
    "AnyresVisionGraph",
    "LlavaVisionGraph",
    "PictureVisionGraph",
    "TileVisionGraph",
    "from_bytes",
    "picture_graph",
]


class LlavaVisionGraph(nn.Module):
    """Pictures to feature rows, as `LlavaModel.get_image_features` computes them.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The whole model, of which tower and projector are used.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        layers = model.config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.drops_class_token = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features, shape (images * tokens, width), of pixels, shape (images, 3, size, size)."""
        weight = next(self.projector.parameters())
        states = self.tower(pixel_values.to(weight.dtype), output_hidden_states=True).hidden_states
        chosen = [states[layer] for layer in self.layers]
        if self.drops_class_token:
            chosen = [state[:, 1:] for state in chosen]
        features: Tensor = self.projector(torch.cat(chosen, dim=-1))
        return features.reshape(-1, features.shape[-1])


class AnyresVisionGraph(nn.Module):
    """Tiles to feature rows, as the `pack_image_features` of LLaVA-NeXT and LLaVA-OneVision lays them out.

    Parameters
    ----------
    model : LlavaNextForConditionalGeneration or LlavaOnevisionForConditionalGeneration
        The whole model, of which tower, projector and newline are used.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tiles = LlavaVisionGraph(model)
        self.newline = model.model.image_newline

    def forward(self, pixel_values: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
        """Return features, shape (rows, width).

        Parameters
        ----------
        pixel_values : Tensor, shape (tiles, 3, size, size)
            The tiles of all pictures.
        taps : Tensor of int64, shape (rows, 4)
            Features that a row is the sum of: 0 the newline, then those of the tiles in order.
        weights : Tensor of float32, shape (rows, 4)
            Their weights.
        """
        features = torch.cat([self.newline.unsqueeze(0), self.tiles(pixel_values)])
        tapped = features.index_select(0, taps.reshape(-1)).reshape(*taps.shape, -1)
        # A product, since the exporter makes float32 of a sum in half precision.
        return (weights.to(features.dtype).unsqueeze(1) @ tapped).squeeze(1)


class PictureVisionGraph(nn.Module):
    """Pictures of one size to feature rows, by the model's own `get_image_features`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model whose method takes pixels alone and gives all pictures the same number of features.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.dtype = next(self.model.vision_tower.parameters()).dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features, shape (pictures * tokens, width), of pixels, (pictures, 3, height, width)."""
        output = self.model.get_image_features(pixel_values.to(self.dtype), return_dict=True)
        features: Tensor = output.pooler_output
        return features.reshape(-1, features.shape[-1])


class TileVisionGraph(nn.Module):
    """Tiles to feature rows, as SmolVLM and Idefics3 compute them where no tile is padded.

    The parts of the tower are called one by one: transformers before 5.23 writes the positions by an indexed
    assignment, which PyTorch 2.11 exports to a graph that cannot be loaded.

    Parameters
    ----------
    model : SmolVLMForConditionalGeneration or Idefics3ForConditionalGeneration
        The whole model, of which tower and connector are used.
    tile : int
        Side of a tile in pixels.
    """

    def __init__(self, model: Any, tile: int) -> None:
        super().__init__()
        self.tower = model.model.vision_model
        self.connector = model.model.connector
        embeddings = self.tower.embeddings
        positions = _tile_positions(tile // embeddings.patch_size, embeddings.num_patches_per_side)
        self.positions: Tensor
        self.register_buffer("positions", positions)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features, shape (tiles * rows, width), of pixels, shape (tiles, 3, size, size)."""
        dtype = next(self.connector.parameters()).dtype
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values.to(dtype)).flatten(2).transpose(1, 2)
        embedded = patches + embeddings.position_embedding(self.positions)
        # The tower's own forward would make a mask of ones, which flash attention does not take.
        states = self.tower.encoder(embedded, attention_mask=None).last_hidden_state
        features: Tensor = self.connector(self.tower.post_layernorm(states))
        return features.reshape(-1, features.shape[-1])


def _tile_positions(patches: int, known: int) -> Tensor:
    """Return which position each patch of a tile has, as `Idefics3VisionEmbeddings` computes it in float32.

    Rounded as there, which for some sizes gives two neighbours one position.
    """
    edges = torch.arange(1 / known, 1.0, 1 / known)
    fractions = (torch.arange(patches) * (1.0 / torch.tensor(patches))).clamp(max=1.0 - 1e-6)
    along = torch.bucketize(fractions, edges, right=True)
    return (along.unsqueeze(1) * known + along).reshape(1, -1)


class _FromBytes(nn.Module):
    """Makes numbers of bytes for another module; see `from_bytes`."""

    def __init__(self, seeing: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.seeing = seeing
        self.divisor = float(normalization.divisor)
        self.mean: Tensor
        self.register_buffer("mean", torch.from_numpy(normalization.mean.copy()))
        self.deviation: Tensor
        self.register_buffer("deviation", torch.from_numpy(normalization.deviation.copy()))

    def forward(self, pixel_values: Tensor, **others: Tensor) -> Tensor:
        numbers = (pixel_values.float() / self.divisor - self.mean) / self.deviation
        features: Tensor = self.seeing(pixel_values=numbers, **others)
        return features


def from_bytes(graph: Graph, normalization: Normalization | None) -> Graph:
    """Have a vision graph take bytes in place of numbers.

    Parameters
    ----------
    graph : Graph
        Takes ``pixel_values``, float32, shape (..., channels, height, width).
    normalization : Normalization or None
        `Family.normalization`; with None the graph stays as it is.
    """
    if normalization is None:
        return graph
    module = _FromBytes(graph.module, normalization)
    pixels = graph.example["pixel_values"].to(torch.uint8)
    return replace(graph, module=module, example={**graph.example, "pixel_values": pixels})


def picture_graph(model: Any, size: Sequence[int], normalization: Normalization | None = None) -> Graph:
    """Describe the export of `PictureVisionGraph`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        See `PictureVisionGraph`.
    size : (int, int)
        Height and width of the pictures.
    normalization : Normalization, optional
        See `from_bytes`.
    """
    graph = Graph(
        module=PictureVisionGraph(model),
        example={"pixel_values": torch.zeros(2, 3, *size)},
        axes={"pixel_values": {0: "pictures"}},
        outputs=("features",),
    )
    return from_bytes(graph, normalization)

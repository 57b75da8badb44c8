"""The torch modules that become ONNX graphs.

Imported only where a model is exported: everything else in this package works without torch.

What the exporter (`torch.onnx.export(dynamo=True)`) gets right decides how they are written: losses are
gathered from log-softmax and summed by a comparison instead of `cross_entropy` and `index_add`, and nothing
depends on a value of an input except through indexing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["LlavaVisionGraph", "ScorerGraph", "scorer_example"]


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


class ScorerGraph(nn.Module):
    """Token ids and image features to answer losses and embeddings, one row for each sample.

    Only answer positions reach the vocabulary projection. Which feature row stands at which position is
    said by the caller, so features of an image can serve many samples from where they lie.

    Parameters
    ----------
    embedding : torch.nn.Module
        Token ids to embeddings.
    decoder : torch.nn.Module
        A Hugging Face text model: ``inputs_embeds`` and ``attention_mask`` to ``last_hidden_state``.
    head : torch.nn.Module
        Hidden states to logits.
    """

    outputs: ClassVar[tuple[str, ...]] = ("nll_sum", "answer_count", "sample_embedding")

    def __init__(self, embedding: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.decoder = decoder
        self.head = head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_rows: Tensor,
        features: Tensor,
        answer_positions: Tensor,
        answer_samples: Tensor,
        answer_tokens: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score a batch.

        Parameters
        ----------
        input_ids, attention_mask : Tensor of int64, shape (batch, length)
            Padded on the right.
        image_rows : Tensor of int64, shape (batch, length)
            Row of `features` that stands at this position, -1 where a token does.
        features : Tensor, shape (rows, width)
            At least one row, whether used or not.
        answer_positions : Tensor of int64, shape (answers,)
            Place in the flattened batch, ``sample * length + position``, that predicts each answer token.
        answer_samples, answer_tokens : Tensor of int64, shape (answers,)
            The sample that each answer token belongs to, and its id.

        Returns
        -------
        nll_sum : Tensor of float32, shape (batch,)
            Negative log-likelihood of the sample's answer tokens, in nats.
        answer_count : Tensor of int64, shape (batch,)
            Answer tokens of the sample.
        sample_embedding : Tensor of float32, shape (batch, width)
            Mean of the last hidden state over the sample's positions, L2-normalised.
        """
        batch, length = input_ids.shape
        is_image = image_rows >= 0
        tokens = self.embedding(torch.where(is_image, torch.zeros_like(input_ids), input_ids))
        rows = image_rows.clamp(min=0).reshape(-1)
        images = features.index_select(0, rows).reshape(batch, length, -1)
        merged = torch.where(is_image.unsqueeze(-1), images, tokens)
        states = self.decoder(
            inputs_embeds=merged, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state

        logits = self.head(states.reshape(batch * length, -1).index_select(0, answer_positions)).float()
        likelihood = torch.log_softmax(logits, -1).gather(1, answer_tokens.unsqueeze(1)).squeeze(1)
        own = answer_samples.unsqueeze(0) == torch.arange(batch, device=input_ids.device).unsqueeze(1)
        nll_sum = torch.where(own, -likelihood.unsqueeze(0), likelihood.new_zeros(())).sum(1)

        weight = attention_mask.unsqueeze(-1).float()
        # A mean first, so that the squares of the norm cannot overflow in long samples.
        mean = (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1)
        embedding = mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return nll_sum, own.to(torch.int64).sum(1), embedding


def scorer_example(graph: ScorerGraph) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Return example inputs of a scorer and the names of their dynamic axes."""
    weight = next(graph.embedding.parameters())
    batch = {0: "batch", 1: "length"}
    example = {
        "input_ids": torch.ones(2, 7, dtype=torch.int64),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "image_rows": torch.tensor([[-1, 0, 1, -1, -1, -1, -1], [-1, 2, -1, -1, -1, -1, -1]]),
        "features": torch.zeros(3, weight.shape[-1], dtype=weight.dtype),
        "answer_positions": torch.tensor([4, 5, 9]),
        "answer_samples": torch.tensor([0, 0, 1]),
        "answer_tokens": torch.tensor([1, 1, 1]),
    }
    axes = {
        "input_ids": batch,
        "attention_mask": batch,
        "image_rows": batch,
        "features": {0: "rows"},
        "answer_positions": {0: "answers"},
        "answer_samples": {0: "answers"},
        "answer_tokens": {0: "answers"},
    }
    return example, axes

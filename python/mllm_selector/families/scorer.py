"""The part of a model that reads: token ids and image features to what is known of each answer token.

Imported only where a model is exported or run by torch. What the exporter (`torch.onnx.export(dynamo=True)`)
gets right decides how it is written: losses are gathered from log-softmax instead of `cross_entropy`, and
nothing depends on a value of an input except through indexing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm_selector.engine import INPUT_EMBEDDING, SCORER_OUTPUTS
from mllm_selector.families.base import BRANCHES, Graph

__all__ = ["ScorerGraph"]

Axes = dict[str, dict[int, str]]

ALL_OUTPUTS = (*SCORER_OUTPUTS, INPUT_EMBEDDING)


class ScorerGraph(nn.Module):
    """Token ids and image features to losses of answer tokens and an embedding of each sample.

    Only answer positions reach the vocabulary projection, and logits stay inside. Which feature row stands at
    which position is said by the caller, so features of an image can serve many samples from where they lie.

    A row of the batch is a sample, or several that share what they begin with (`BRANCHES`).

    A model that merges or reads in its own way overrides `merge` or `decode`; inputs of its own (position
    ids, token types), which `Family.scorer_inputs` makes, reach `decode` by their names.

    Parameters
    ----------
    embedding : torch.nn.Module
        Token ids to embeddings.
    decoder : torch.nn.Module
        A Hugging Face text model: ``inputs_embeds`` and ``attention_mask`` to ``last_hidden_state``.
    head : torch.nn.Module
        Hidden states to logits.
    embedding_layer : int
        Whose output is averaged to a sample's embedding, counted as in ``hidden_states`` of transformers:
        0 the token embeddings, -1 the last layer after the final norm.
    """

    def __init__(
        self, embedding: nn.Module, decoder: nn.Module, head: nn.Module, embedding_layer: int = -1
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.decoder = decoder
        self.head = head
        self.embedding_layer = embedding_layer

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_rows: Tensor,
        features: Tensor,
        pooled_positions: Tensor,
        answer_positions: Tensor,
        answer_tokens: Tensor,
        outputs: Sequence[str] = ALL_OUTPUTS,
        **own: Tensor,
    ) -> tuple[Tensor, ...]:
        """Score a batch.

        Parameters
        ----------
        input_ids, attention_mask : Tensor of int64, shape (rows, length)
            Padded on the right.
        image_rows : Tensor of int64, shape (rows, length)
            Row of `features` that stands at this position, -1 where a token does.
        features : Tensor, shape (feature rows, width)
            At least one row, whether used or not.
        pooled_positions : Tensor of int64, shape (rows, samples, length)
            For each sample of a row, 1 at the positions that its embedding is the mean of, else 0.
        answer_positions : Tensor of int64, shape (answers,)
            Place in the flattened batch, ``row * length + position``, that predicts each answer token.
        answer_tokens : Tensor of int64, shape (answers,)
            Id of each answer token.
        outputs : sequence of str
            Which of the following are wanted; nothing is computed for others alone.
        **own : Tensor
            Inputs of the model's own, for `decode`.

        Returns
        -------
        token_nll : Tensor of float32, shape (answers,)
            Negative log-likelihood of each answer token, in nats.
        token_entropy : Tensor of float32, shape (answers,)
            Entropy of the distribution that each answer token is drawn from, in nats.
        token_hit : Tensor of float32, shape (answers,)
            1 where the answer token is the most likely one, else 0.
        sample_embedding : Tensor of float32, shape (rows * samples, width)
            Mean of hidden states over the pooled positions, L2-normalised; zeros where none is pooled.
        input_embedding : Tensor of float32, shape (rows * samples, 3 * width)
            What is known before the decoder, see `embed_inputs`.
        """
        merged = self.merge(input_ids, image_rows, features)
        last, chosen = self.decode(merged, attention_mask, **own)
        made = self.losses(last, answer_positions, answer_tokens, outputs)
        if "sample_embedding" in outputs:
            made["sample_embedding"] = self.pool(chosen, pooled_positions)
        if INPUT_EMBEDDING in outputs:
            made[INPUT_EMBEDDING] = self._pool_inputs(merged, image_rows, pooled_positions)
        return tuple(made[name] for name in outputs)

    def embed_inputs(
        self, input_ids: Tensor, image_rows: Tensor, features: Tensor, pooled_positions: Tensor
    ) -> Tensor:
        """Return the embedding of what the decoder reads, without running it; inputs as of `forward`.

        Returns
        -------
        Tensor of float32, shape (rows * samples, 3 * width)
            Mean of the pooled token embeddings, mean and maximum of the image's feature rows, each
            L2-normalised, together L2-normalised again. What a sample lacks is zeros.
        """
        merged = self.merge(input_ids, image_rows, features)
        return self._pool_inputs(merged, image_rows, pooled_positions)

    def _pool_inputs(self, merged: Tensor, image_rows: Tensor, pooled_positions: Tensor) -> Tensor:
        # Feature rows may hold more beside what is read (DeepStack).
        states = merged[..., : next(self.embedding.parameters()).shape[-1]].float()
        is_image = (image_rows >= 0).unsqueeze(-1)
        has_image = is_image.long().sum(1) > 0
        largest = torch.where(is_image, states, torch.finfo(states.dtype).min).amax(1)
        largest = _normalised(torch.where(has_image, largest, torch.zeros_like(largest)))
        mean = self.pool(states, is_image.transpose(1, 2).long())
        # All samples of a row show the same images.
        of_images = torch.cat([mean, largest], dim=-1).unsqueeze(1)
        of_images = of_images.expand(-1, pooled_positions.shape[1], -1).flatten(0, 1)
        return _normalised(torch.cat([self.pool(states, pooled_positions), of_images], dim=-1))

    def merge(self, input_ids: Tensor, image_rows: Tensor, features: Tensor) -> Tensor:
        """Put feature rows in the place of image tokens.

        Returns
        -------
        Tensor, shape (rows, length, width)
            What the decoder reads.
        """
        batch, length = input_ids.shape
        is_image = image_rows >= 0
        tokens = self.embedding(torch.where(is_image, torch.zeros_like(input_ids), input_ids))
        rows = image_rows.clamp(min=0).reshape(-1)
        images = features.index_select(0, rows).reshape(batch, length, -1)
        return torch.where(is_image.unsqueeze(-1), images, tokens)

    def decode(self, merged: Tensor, attention_mask: Tensor, **own: Any) -> tuple[Tensor, Tensor]:
        """Run the decoder.

        Returns
        -------
        last, chosen : Tensor, shape (rows, length, width)
            Hidden states that logits are made of, and those of the layer that embeddings are made of.
        """
        branches = own.pop(BRANCHES, None)
        if branches is not None:
            attention_mask = self.branched_mask(attention_mask, branches, merged)
        states = self.decoder(
            inputs_embeds=merged,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=self.embedding_layer != -1,
            **own,
        )
        last = states.last_hidden_state
        return last, last if self.embedding_layer == -1 else states.hidden_states[self.embedding_layer]

    def branched_mask(self, attention_mask: Tensor, branches: Tensor, like: Tensor) -> Tensor:
        """Let each token see the shared ones and those of its own sample, up to itself; see `added_mask`."""
        query = torch.arange(like.shape[1], device=like.device).unsqueeze(1)
        before = (query.transpose(0, 1) <= query).unsqueeze(0)
        own = (branches.unsqueeze(1) == 0) | (branches.unsqueeze(1) == branches.unsqueeze(2))
        return self.added_mask(before & own & attention_mask.bool().unsqueeze(1), like)

    @staticmethod
    def added_mask(allowed: Tensor, like: Tensor) -> Tensor:
        """Return what is added to attention scores, shape (rows, 1, length, length)."""
        return torch.where(allowed, 0.0, torch.finfo(like.dtype).min).to(like.dtype).unsqueeze(1)

    def losses(
        self, states: Tensor, answer_positions: Tensor, answer_tokens: Tensor, outputs: Collection[str]
    ) -> dict[str, Tensor]:
        """Return what is wanted of each answer token's loss, entropy and hit; see `forward`."""
        states = states.reshape(-1, states.shape[-1]).index_select(0, answer_positions)
        logits = self.logits(states).float()
        likelihoods = torch.log_softmax(logits, -1)
        made = {"token_nll": -likelihoods.gather(1, answer_tokens.unsqueeze(1)).squeeze(1)}
        if "token_entropy" in outputs:
            made["token_entropy"] = -(likelihoods.exp() * likelihoods).sum(-1)
        if "token_hit" in outputs:
            made["token_hit"] = (logits.argmax(-1) == answer_tokens).float()
        return made

    def logits(self, states: Tensor) -> Tensor:
        """Project hidden states, shape (answers, width), to logits; models that cap them override it."""
        projected: Tensor = self.head(states)
        return projected

    def pool(self, states: Tensor, pooled_positions: Tensor) -> Tensor:
        """Average hidden states to an embedding of each sample; see `forward`."""
        weight = pooled_positions.float()
        # A mean first, so that the squares of the norm cannot overflow in long samples.
        mean = weight @ states.float() / weight.sum(-1, keepdim=True).clamp(min=1)
        return _normalised(mean).flatten(0, 1)

    def graph(
        self,
        example: dict[str, Tensor] | None = None,
        axes: Axes | None = None,
        *,
        shares_prefixes: bool = False,
    ) -> Graph:
        """Describe the export of this module.

        Parameters
        ----------
        example : dict of str to Tensor, optional
            Example of each input of the model's own, for a batch of 2 rows of 7 positions.
        axes : dict of str to dict of int to str, optional
            Names of their dynamic axes; ``batch`` and ``length`` are those of the ids.
        shares_prefixes : bool
            `Family.shares_prefixes`: whether `BRANCHES` and ``position_ids`` are inputs.
        """
        weight = next(self.embedding.parameters())
        batch = {0: "batch", 1: "length"}
        common = {
            "input_ids": torch.ones(2, 7, dtype=torch.int64),
            "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
            "image_rows": torch.tensor([[-1, 0, 1, -1, -1, -1, -1], [-1, 2, -1, -1, -1, -1, -1]]),
            "features": self.feature_example(3, weight),
            "pooled_positions": torch.tensor(
                [[[1] * 7, [0] * 7], [[1] * 4 + [0] * 3, [1, 1, 1, 0, 1, 0, 0]]]
            ),
            "answer_positions": torch.tensor([4, 5, 9]),
            "answer_tokens": torch.tensor([1, 1, 1]),
        }
        common_axes: Axes = {
            "input_ids": batch,
            "attention_mask": batch,
            "image_rows": batch,
            "features": {0: "rows"},
            "pooled_positions": {0: "batch", 1: "samples", 2: "length"},
            "answer_positions": {0: "answers"},
            "answer_tokens": {0: "answers"},
        }
        if shares_prefixes:
            common |= {
                "position_ids": torch.arange(7).expand(2, -1).clone(),
                BRANCHES: torch.tensor([[0] * 7, [0, 0, 0, 1, 2, 0, 0]]),
            }
            common_axes |= {"position_ids": batch, BRANCHES: batch}
        return Graph(self, common | (example or {}), common_axes | (axes or {}), ALL_OUTPUTS)

    def feature_example(self, rows: int, like: Tensor) -> Tensor:
        """Return example feature rows; models whose features are wider than their embeddings override it."""
        return torch.zeros(rows, like.shape[-1], dtype=like.dtype)


def _normalised(vectors: Tensor) -> Tensor:
    """Bring vectors to length 1; zeros stay."""
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit

"""Attention among patches, as a torch module; imported only where a model is exported or run by torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["attend"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: tuple[Tensor, Tensor],
    field: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Attend within the segments of a field.

    Parameters
    ----------
    query, key, value : Tensor, shape (patches, heads, size)
        Of each patch.
    rotation : tuple of Tensor, shape (patches, size)
        Cosine and sine of each patch's position.
    field : tuple of Tensor of int64
        Slots, shape (segments, longest), and places, see `mllm_selector.families.patches.segments`.
    scale : float
        Of the products of query and key.

    Returns
    -------
    Tensor, shape (patches, heads * size)
        Before the output projection.
    """
    slots, places = field
    count, longest = slots.shape
    rows = slots.clamp(min=0).reshape(-1)
    mask = torch.where(slots >= 0, 0.0, torch.finfo(query.dtype).min).to(query.dtype)[:, None, None, :]
    query, key = (_rotated(each, *rotation) for each in (query, key))
    query, key, value = (
        each.index_select(0, rows).reshape(count, longest, *each.shape[1:]).transpose(1, 2)
        for each in (query, key, value)
    )
    # The operator that this becomes wants a mask of full size.
    mask = mask.expand(-1, -1, longest, -1)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    mixed = mixed.transpose(1, 2).reshape(count * longest, -1)
    return mixed.index_select(0, places.reshape(-1))


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of features by the angle of their position, in float32."""
    first, second = states.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (states.float() * cos.float().unsqueeze(1) + turned * sin.float().unsqueeze(1)).to(states.dtype)

"""How the hidden states of a row become one vector: those of a position, or their mean.

Invariant: padding counts for nothing. It lies to the right of a text; images have none.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

__all__ = ["Pooling", "pool", "pooled_position"]

Pooling = Literal["first", "mean", "last"]


def pool(pooling: Pooling, features: Tensor, mask: Tensor | None) -> Tensor:
    """One vector per row, [n, H].

    Args:
        pooling: which.
        features: hidden states, [n, T, H].
        mask: padding mask, [n, T]; None for images.
    """
    match pooling:
        case "first":
            return features[:, 0]
        case "last":
            if mask is None:
                return features[:, -1]
            rows = torch.arange(len(features), device=features.device)
            return features[rows, mask.sum(dim=1) - 1]
        case "mean":
            if mask is None:
                return features.mean(dim=1)
            weight = mask.to(features.dtype).unsqueeze(2)
            return (features * weight).sum(dim=1) / weight.sum(dim=1)
        case other:
            assert_never(other)


def pooled_position(pooling: Pooling, hidden: Tensor, mask: Tensor | None) -> Tensor | None:
    """The position of each row that is pooled, [n]; None if it takes several."""
    match pooling:
        case "mean":
            return None
        case "first":
            return torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        case "last":
            if mask is None:
                return torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
            return mask.sum(dim=1) - 1
        case other:
            assert_never(other)

"""From the last hidden states to an answer: a node's own head, or the base's language-model head.

Invariant (E4): whatever is trainable here is part of the node. A classifier is a linear map per
node; a language model has none and answers through the frozen head of the base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from s3t.model.base import Base

__all__ = ["BIAS", "WEIGHT", "classify", "language_logits", "losses"]

WEIGHT = "head.weight"
BIAS = "head.bias"


def classify(base: Base, hidden: Tensor, mask: Tensor | None, head: Mapping[str, Tensor]) -> Tensor:
    """Class logits of stacked slots.

    Args:
        hidden: [G · n, T, H] after the last layer.
        mask: padding mask [G · n, T], None for images.
        head: weight [G, C, H] and bias [G, C].

    Returns:
        [G, n, C], float32.
    """
    slots = len(head[WEIGHT])
    pooled = base.pool(base.finish(hidden), mask).float()
    rows = pooled.view(slots, -1, pooled.shape[-1])
    return torch.baddbmm(head[BIAS].unsqueeze(1), rows, head[WEIGHT].transpose(1, 2))


def language_logits(base: Base, hidden: Tensor) -> Tensor:
    """Next-token logits [n, T, V], float32, through the base's frozen head."""
    assert base.lm_head is not None
    logits: Tensor = base.lm_head(base.finish(hidden))
    return logits.float()


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each row: logits [n, C], labels [n] → [n]."""
    return functional.cross_entropy(logits, labels, reduction="none")

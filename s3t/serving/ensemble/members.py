"""The members of an ensemble: one shard's active prefix each, and how several become one.

    adapters, heads of the members ──averaged──► one member       (``mean-adapters``)
    logits of the members ─────────aggregate───► one answer        (all other methods)

Invariant: a member holds the tensors of its own lineage and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.model.adapters.lora import LoraTarget
from s3t.model.head import BIAS, WEIGHT

__all__ = ["Member", "aggregate", "averaged"]


@dataclass(frozen=True, slots=True)
class Member:
    """One shard's active prefix.

    Attributes:
        shard: its number.
        lowest: lowest layer that carries an adapter.
        tensors: adapters or prompts of the lineage, and the head of the prefix's last stage.
        samples: samples that the prefix has seen, for weights by data.
    """

    shard: int
    lowest: int
    tensors: Mapping[str, Tensor]
    samples: int


def averaged(
    members: Sequence[Member], weights: Sequence[float], targets: Sequence[LoraTarget]
) -> Member:
    """One member whose adapters and head are the average of the members'.

    The average of the products B·A is exact: ranks stand side by side, B weighted. A member adds
    nothing in the layers below its lowest.

    Args:
        members: of one base.
        weights: one a member, summing to 1.
        targets: all adapted maps of the base.
    """
    tensors: dict[str, Tensor] = {}
    for target in targets:
        held = [(m, w) for m, w in zip(members, weights, strict=True) if m.lowest <= target.layer]
        if held:
            tensors[target.a] = torch.cat([m.tensors[target.a] for m, _ in held])
            tensors[target.b] = torch.cat([m.tensors[target.b] * w for m, w in held], dim=1)
    for name in (WEIGHT, BIAS):
        if name in members[0].tensors:
            each = torch.stack([member.tensors[name] for member in members])
            tensors[name] = torch.einsum("s,s...->...", torch.tensor(weights).to(each), each)
    lowest = min(member.lowest for member in members)
    return Member(members[0].shard, lowest, tensors, sum(member.samples for member in members))


def aggregate(logits: Tensor, weights: Tensor, method: str) -> Tensor:
    """Combine the members' logits.

    Args:
        logits: [S, n, C], or [S, n, T, V] of a language model.
        weights: [S], summing to 1.
        method: ``mean-probabilities``: Σ w·softmax; ``mean-logits``: softmax of Σ w·logits;
            ``vote``: the sum of the weights of the members whose argmax is the class.

    Returns:
        probabilities [n, C], or log probabilities [n, T, V].
    """
    shape = (-1,) + (1,) * (logits.ndim - 1)
    weights = weights.view(shape)  # [S] → [S, 1, 1], or [S, 1, 1, 1]
    language = logits.ndim == 4
    if method == "mean-logits":
        mean = (logits * weights).sum(dim=0)
        return mean.log_softmax(dim=-1) if language else mean.softmax(dim=-1)
    if method == "vote":
        votes = torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        return (votes * weights).sum(dim=0)
    if language:
        return (logits.log_softmax(dim=-1) + weights.log()).logsumexp(dim=0)
    return (logits.softmax(dim=-1) * weights).sum(dim=0)

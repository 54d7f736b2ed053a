"""The members of an ensemble: one shard's active prefix each, and how several become one.

    adapters, heads of the members ──averaged──► one member       (``mean-adapters``)
    logits of the members ─────────aggregate───► one answer        (all other methods)

Invariant: a member holds the tensors of its own lineage and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.model.adapters.lora import LoraTarget
from s3t.model.head import BIAS, WEIGHT

__all__ = [
    "METHODS",
    "WEIGHTS",
    "Member",
    "aggregate",
    "averaged",
    "base_member",
    "mean_by_entropy",
    "shares",
]


@dataclass(frozen=True, slots=True)
class Member:
    """One shard's active prefix.

    Attributes:
        shard: its number; −1 of the base alone.
        lowest: lowest layer that carries an adapter; of the base alone the number of layers.
        tensors: adapters or prompts of the lineage, and the head of the prefix's last stage.
        samples: samples that the prefix has seen, for weights by data.
    """

    shard: int
    lowest: int
    tensors: Mapping[str, Tensor]
    samples: int

    @property
    def rank(self) -> int:
        """Of its adapters; 0 without any."""
        return max(
            (len(t) for name, t in self.tensors.items() if name.endswith("lora_A")), default=0
        )


def base_member(depth: int, head: Mapping[str, Tensor]) -> Member:
    """The base alone, without any adapter.

    Args:
        depth: number of its layers.
        head: the public head of a classifier; empty of a language model.
    """
    return Member(-1, depth, head, 1)


def averaged(
    members: Sequence[Member], weights: Sequence[float], targets: Sequence[LoraTarget]
) -> Member:
    """One member whose adapters and head are the average of the members'.

    The average of the products B·A is exact: ranks stand side by side, B weighted. A member adds
    nothing in the layers below its lowest.

    Args:
        members: of one base.
        weights: [S]; the sum is 1, or what the adapters are multiplied by. Heads are averaged.
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
            shares = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
            tensors[name] = torch.einsum("s,s...->...", shares.to(each), each)
    lowest = min(member.lowest for member in members)
    return Member(members[0].shard, lowest, tensors, sum(member.samples for member in members))


def mean_probabilities(logits: Tensor, weights: Tensor) -> Tensor:
    """Σ w·softmax of the logits. Arguments and result as in ``aggregate``."""
    weights = _beside(logits, weights)
    if _of_tokens(logits):
        return (logits.log_softmax(dim=-1) + weights.log()).logsumexp(dim=0)
    return (logits.softmax(dim=-1) * weights).sum(dim=0)


def mean_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """Softmax of Σ w·logits. Arguments and result as in ``aggregate``."""
    mean = (logits * _beside(logits, weights)).sum(dim=0)
    return mean.log_softmax(dim=-1) if _of_tokens(logits) else mean.softmax(dim=-1)


def mean_by_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Σ v·softmax of token logits, where v ∝ w·exp(−entropy of the member) at each token.

    Arguments and result as in ``aggregate``, for tokens alone.
    """
    logs = logits.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1, keepdim=True)  # [S, n, T, 1]
    own = (_beside(logits, weights).log() - entropy).log_softmax(dim=0)
    return (logs + own).logsumexp(dim=0)


def vote(logits: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weights of the members whose likeliest class this is, [n, C]. Not for tokens."""
    votes = torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return (votes * _beside(logits, weights)).sum(dim=0)


METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean-probabilities": mean_probabilities,
    "mean-logits": mean_logits,
    "vote": vote,
    "mean-adapters": mean_probabilities,  # of one member, see ``averaged``
    "route": mean_probabilities,  # of one member, the one that the router chooses
}
"""How logits are combined, by ``aggregation.method``; a test holds names and config equal."""


WEIGHTS: Mapping[str, Callable[[Member], int]] = {
    "public": lambda member: 1,  # until they are fitted, see ``mixture``
    "uniform": lambda member: 1,
    "data": lambda member: member.samples,
}
"""What a member counts for, before all sum to 1, by ``aggregation.weights``; held equal too."""


def shares(weights: str, members: Sequence[Member]) -> list[float]:
    """What each member counts for, summing to 1.

    Args:
        weights: a name in ``WEIGHTS``.
        members: at least one.
    """
    counts = [WEIGHTS[weights](member) for member in members]
    return [count / sum(counts) for count in counts]


def aggregate(logits: Tensor, weights: Tensor, method: str) -> Tensor:
    """Combine the members' logits.

    Args:
        logits: [S, n, C], or [S, n, T, V] of a language model.
        weights: [S], summing to 1.
        method: a name in ``METHODS``.

    Returns:
        probabilities [n, C], or log probabilities [n, T, V].

    Raises:
        KeyError: an unknown method.
    """
    return METHODS[method](logits, weights)


def _beside(logits: Tensor, weights: Tensor) -> Tensor:
    """Weights [S] in as many dimensions as the logits have, [S, 1, …]."""
    return weights.view((-1,) + (1,) * (logits.ndim - 1))


def _of_tokens(logits: Tensor) -> bool:
    return logits.ndim == 4

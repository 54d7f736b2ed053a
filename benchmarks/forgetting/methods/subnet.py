"""BalancedSubnet: find the few weights without which the deleted rows are lost and the rest is not.

    score per weight ─► mask: 0 for the share of weights with the lowest |score|, else 1
                          ▲                       │
                          └── straight through ◄──┴─ loss(rest) − loss(deleted) of weight · mask

The scores are trained, the weights are not; in the end those masked are zero.

Source: Sakarvadia et al. 2024 (TinyMem), arXiv 2410.02159, and msakarvadia/memorization, where its
name is "random greedy": scores drawn at random, SGD with momentum 0.9 and decay 5e-4, the loss of
each row times the size of the batch. There the weights of the feed-forward maps are masked, here
those of the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.forgetting.learner import batches, real_mean
from benchmarks.forgetting.methods.request import Request
from benchmarks.forgetting.rows import Rows, joined

__all__ = ["masked", "subnet"]


class _Mask(torch.autograd.Function):
    """0 for the lowest share of the absolute scores, else 1; the gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, ratio: float) -> Tensor:
        return masked(scores, ratio)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def masked(scores: Tensor, ratio: float) -> Tensor:
    """The mask of some scores: exactly ⌊ratio · numbers⌋ zeros."""
    dropped = scores.abs().flatten().argsort(stable=True)[: int(ratio * scores.numel())]
    mask = torch.ones(scores.numel())
    mask[dropped] = 0
    return mask.view_as(scores)


def subnet(request: Request, *, ratio: float, epochs: int, rate: float) -> Iterator[None]:
    """Train the scores, then zero what they mask; yields then.

    Args:
        request: the rows and the model.
        ratio: share of each matrix that becomes zero.
        epochs: over all rows.
        rate: of the scores.
    """
    weights = request.learner.weights
    scores = {name: _drawn(weight, request.generator) for name, weight in weights.items()}
    optimizer = torch.optim.SGD([*scores.values()], lr=rate, momentum=0.9, weight_decay=5e-4)
    rows, deleted = joined([request.rest, request.forget]), {*request.forget.persons}
    for _ in range(epochs):
        for batch in batches(rows, request.batch, request.generator):
            signs = torch.tensor([-1.0 if person in deleted else 1.0 for person in batch.persons])
            optimizer.zero_grad()
            losses = _losses(request, scores, ratio, batch)
            (losses * signs * len(batch)).mean().backward()
            optimizer.step()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masked(scores[name], ratio))
    yield


def _losses(request: Request, scores: Mapping[str, Tensor], ratio: float, batch: Rows) -> Tensor:
    kept = {
        name: weight.detach() * _Mask.apply(scores[name].abs(), ratio)  # type: ignore[no-untyped-call]
        for name, weight in request.learner.weights.items()
    }
    out = functional_call(request.learner.model, kept, (), {"input_ids": batch.tokens})
    return real_mean(out.logits, batch)


def _drawn(weight: Tensor, generator: torch.Generator) -> nn.Parameter:
    scores = torch.empty_like(weight)
    nn.init.kaiming_uniform_(scores, a=math.sqrt(5), generator=generator)
    return nn.Parameter(scores)

"""Negative preference optimisation (NPO): ascent that slows down where the rows are forgotten.

    (2/β) · mean of log(1 + (π/π₀)^β)  +  retain · loss(rest)

π is the probability of a deleted row, π₀ that under the model as it was. Where π ≪ π₀ the gradient
fades, which keeps the model from collapsing; β → 0 is gradient ascent.

Source: Zhang, Lin, Bai and Mei 2024, arXiv 2404.05868, equation 3; with the second term NPO-RT.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.forgetting.learner import row_losses
from benchmarks.forgetting.methods.request import Request, epochs_of
from benchmarks.forgetting.rows import Rows

__all__ = ["npo_loss", "preference"]


def npo_loss(logs: Tensor, before: Tensor, beta: float) -> Tensor:
    """The loss of some rows.

    Args:
        logs: log probability of each row, summed over its tokens, [n].
        before: the same under the model as it was, [n].
        beta: inverse temperature.
    """
    return -functional.logsigmoid(-beta * (logs - before)).mean() * 2 / beta


def preference(
    request: Request, *, beta: float, retain: float, rate: float, epochs: int
) -> Iterator[None]:
    """Epochs of NPO; yields after each."""
    learner, forget = request.learner, request.forget
    first = row_losses(learner.logits, forget)
    before = dict(zip(forget.texts, first, strict=True))

    def loss(gone: Rows, kept: Rows) -> Tensor:
        tokens = gone.real[:, 1:].sum(dim=1)
        were = torch.stack([before[text] for text in gone.texts])
        found = npo_loss(-learner.losses(gone) * tokens, -were * tokens, beta)
        return found + retain * learner.losses(kept).mean() if retain else found

    return epochs_of(request, loss, rate, epochs)

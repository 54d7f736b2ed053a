"""What a method is given: the model that has learnt too much, and the rows on either side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.forgetting.learner import Learner, batches
from benchmarks.forgetting.rows import Rows

__all__ = ["Request", "epochs_of"]


@dataclass(frozen=True, eq=False)
class Request:
    """One deletion.

    Attributes:
        learner: trained on ``forget`` and ``rest``; its adapter is to be changed.
        forget: the deleted rows.
        rest: all others.
        batch: rows of a step.
        generator: of all that is drawn.
    """

    learner: Learner
    forget: Rows
    rest: Rows
    batch: int
    generator: torch.Generator


def epochs_of(
    request: Request, loss: Callable[[Rows, Rows], Tensor], rate: float, epochs: int
) -> Iterator[None]:
    """Minimise a loss by AdamW, an epoch being one pass over the deleted rows; yields after each.

    Args:
        request: the rows and the model.
        loss: of a batch of deleted rows and one of as many of the rest.
        rate: constant.
        epochs: at most.
    """
    weights = [*request.learner.weights.values()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for _ in range(epochs):
        kept = batches(request.rest, request.batch, request.generator)
        for number, gone in enumerate(batches(request.forget, request.batch, request.generator)):
            optimizer.zero_grad()
            loss(gone, kept[number % len(kept)]).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        yield

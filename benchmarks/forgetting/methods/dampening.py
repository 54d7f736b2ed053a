"""Selective synaptic dampening (SSD): weights that matter to the deleted rows alone are shrunk.

    I(D)    importance of a weight to data D: the diagonal of the Fisher information, the mean of
            its squared gradients
    if I(deleted) > α · I(all):   weight *= min(1, λ · I(all) / I(deleted))

Nothing is trained. Source: Foster, Schoepf and Brintrup 2023, arXiv 2308.07707, equations 3 to 6.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.forgetting.learner import Learner, batches
from benchmarks.forgetting.methods.request import Request
from benchmarks.forgetting.rows import Rows, joined

__all__ = ["dampening"]

_ROWS = 4
"""Rows whose gradient is squared together: few, since squares of sums are no sums of squares."""


def dampening(request: Request, *, select: float, dampen: float) -> Iterator[None]:
    """Shrink once; yields then.

    Args:
        request: the rows and the model.
        select: α, how much more a weight must matter to the deleted rows than to all.
        dampen: λ, how weak it may stay.
    """
    learner, generator = request.learner, request.generator
    of_deleted = _importance(learner, request.forget, generator)
    of_all = _importance(learner, joined([request.forget, request.rest]), generator)
    with torch.no_grad():
        for name, weight in learner.weights.items():
            gone, everything = of_deleted[name], of_all[name]
            factor = (dampen * everything / gone.clamp(min=torch.finfo(gone.dtype).tiny)).clamp(
                max=1
            )
            weight.copy_(torch.where(gone > select * everything, weight * factor, weight))
    yield


def _importance(learner: Learner, rows: Rows, generator: torch.Generator) -> dict[str, Tensor]:
    """Mean of the squared gradients, by weight."""
    found = {name: torch.zeros_like(weight) for name, weight in learner.weights.items()}
    parts = batches(rows, _ROWS, generator)
    for part in parts:
        loss = learner.losses(part).mean()
        gradients = torch.autograd.grad(loss, [*learner.weights.values()])
        for squares, gradient in zip(found.values(), gradients, strict=True):
            squares.add_(gradient**2 / len(parts))
    return found

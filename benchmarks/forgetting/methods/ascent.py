"""Gradient ascent on the deleted rows; and gradient difference, which holds on to the rest.

ascent       −loss(deleted)                  Jang et al. 2022, arXiv 2210.01504
difference   −loss(deleted) + loss(rest)     Liu, Liu and Stone 2022, arXiv 2203.12817, in the
                                             form of TOFU (Maini et al. 2024, arXiv 2401.06121)
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.forgetting.methods.request import Request, epochs_of

__all__ = ["ascent", "difference"]


def ascent(request: Request, *, rate: float, epochs: int) -> Iterator[None]:
    """Epochs of ascent; yields after each."""
    losses = request.learner.losses
    return epochs_of(request, lambda gone, kept: -losses(gone).mean(), rate, epochs)


def difference(request: Request, *, rate: float, epochs: int) -> Iterator[None]:
    """Epochs of ascent on the deleted rows and descent on as many others; yields after each."""
    losses = request.learner.losses
    return epochs_of(
        request, lambda gone, kept: losses(kept).mean() - losses(gone).mean(), rate, epochs
    )

"""Fine-tuning on the rest: train on, without the deleted rows, and hope that they fade.

Source: the baseline of most papers on unlearning, for instance TOFU (Maini et al. 2024,
arXiv 2401.06121) and TinyMem (Sakarvadia et al. 2024, arXiv 2410.02159, "clean fine-tuning").
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.forgetting.learner import batches
from benchmarks.forgetting.methods.request import Request

__all__ = ["rest"]


def rest(request: Request, *, rate: float, epochs: int) -> Iterator[None]:
    """Epochs over all rows that are left; yields after each."""
    weights = [*request.learner.weights.values()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for _ in range(epochs):
        for batch in batches(request.rest, request.batch, request.generator):
            optimizer.zero_grad()
            request.learner.losses(batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        yield

"""From the last hidden states to an answer: a node's own head, or the base's language-model head.

Invariant (E4): whatever is trainable here is part of the node. A classifier is a linear map per
node; a language model has none and answers through the frozen head of the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from s3t.errors import IntegrityError
from s3t.model.base import Base
from s3t.model.determinism import at_least, up_to_multiple
from s3t.store import tensors_digest, write_durably
from s3t.types import Digest, digest

__all__ = [
    "BIAS",
    "WEIGHT",
    "classify",
    "language_logits",
    "losses",
    "read_public_head",
    "write_public_head",
]

WEIGHT = "head.weight"
BIAS = "head.bias"


def classify(features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    """Class logits of stacked lanes.

    Args:
        features: one vector per row, [G · n, H] (see ``Base.features``).
        head: weight [G, C, H] and bias [G, C].

    Returns:
        [G, n, C], float32.
    """
    lanes, classes = head[WEIGHT].shape[:2]
    rows = features.float().view(lanes, -1, features.shape[-1])
    count, rows = rows.shape[1], at_least(rows)
    weight = up_to_multiple(head[WEIGHT], 1).transpose(1, 2)
    bias = up_to_multiple(head[BIAS].unsqueeze(1), 2)
    return torch.baddbmm(bias, rows, weight)[:, :count, :classes]


def language_logits(base: Base, hidden: Tensor) -> Tensor:
    """Next-token logits [n, T, V], float32, through the base's frozen head."""
    assert base.lm_head is not None
    logits: Tensor = base.lm_head(base.finish(hidden))
    return logits.float()


def write_public_head(path: Path, head: Mapping[str, Tensor], base: Digest) -> None:
    """Keep a head that was trained on public data, with a proof of its weights and its base."""
    tensors = {name: head[name].detach().cpu().contiguous() for name in (WEIGHT, BIAS)}
    proof = digest({"base": base, "weights": tensors_digest(tensors)})
    write_durably(path, save(tensors, metadata={"proof": proof}))


def read_public_head(path: Path, base: Digest) -> dict[str, Tensor]:
    """The head that ``write_public_head`` kept.

    Raises:
        IntegrityError: there is none, it is damaged, or it belongs to another base.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = {name: file.get_tensor(name) for name in (WEIGHT, BIAS)}
            if file.metadata()["proof"] == digest({"base": base, "weights": tensors_digest(head)}):
                return head
        reason = "it is damaged, or belongs to another base"
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error)
    raise IntegrityError(
        f"the public head {path} cannot be used ({reason}): restore it; a run has one only if "
        "stage.head=public or aggregation.on_exhausted=base was set when it was first trained"
    )


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each row: logits [n, C], labels [n] → [n]."""
    return functional.cross_entropy(logits, labels, reduction="none")

"""Merges all shards into one adapter: the exact average of B·A, or its best approximation by rank.

    Σ wₛ·BₛAₛ  =  [w₀B₀ │ w₁B₁ │ …] · [A₀ ; A₁ ; …]     ranks side by side
                    └─ QR, SVD of the small middle ─► the nearest product of rank R (Eckart, Young)

Invariant: all maps have one rank at the end. Maps that fewer shards adapt are filled up with zeros,
which change no answer. How much is cut off is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.model.adapters.lora import LoraTarget
from s3t.serving.ensemble.members import Member, averaged, shares

__all__ = ["Merged", "merge_members"]


@dataclass(frozen=True, eq=False)
class Merged:
    """The average of members.

    Attributes:
        member: the tensors, all maps of one rank.
        rank: that rank.
        error: Frobenius norm of what was cut off, divided by that of the average, over all maps; 0
            for the exact average.
    """

    member: Member
    rank: int
    error: float


def merge_members(
    members: Sequence[Member],
    weights: str,
    targets: Sequence[LoraTarget],
    rank: int | None = None,
    least: int = 1,
) -> Merged:
    """One member with the average of the members' adapters and heads.

    Args:
        members: of one base; at least one.
        weights: a name in ``WEIGHTS``.
        targets: all adapted maps of the base.
        rank: the greatest rank; by default the exact average's.
        least: the rank is filled up to this one.
    """
    whole = averaged(members, shares(weights, members), targets)
    held = [target for target in targets if target.a in whole.tensors]
    most = max(len(whole.tensors[target.a]) for target in held)
    final = max(most if rank is None else min(rank, most), least)
    tensors = dict(whole.tensors)
    lost = total = 0.0
    for target in held:
        a, b = tensors[target.a], tensors[target.b]
        if len(a) > final:
            a, b, cut = _nearest(a, b, final)
            lost += cut
        total += _norm(whole.tensors, target)
        tensors[target.a], tensors[target.b] = _padded(a, b, final)
    member = Member(whole.shard, whole.lowest, tensors, whole.samples)
    return Merged(member, final, (lost / total) ** 0.5 if total else 0.0)


def _nearest(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product B·A of a rank, and the square of the Frobenius norm of what is cut off.

    Args:
        a: [r, inputs].
        b: [outputs, r].
        rank: at most r.

    Returns:
        A [rank, inputs] and B [outputs, rank], each with the roots of the singular values, and the
        square of the norm.
    """
    left, upper = torch.linalg.qr(b.double())  # b = left · upper
    right, lower = torch.linalg.qr(a.double().t())  # a = lowerᵗ · rightᵗ
    u, values, v = torch.linalg.svd(upper @ lower.t())
    root = values[:rank].sqrt()
    near_b = (left @ u[:, :rank]) * root
    near_a = root[:, None] * (v[:rank] @ right.t())
    lost = float(values[rank:].square().sum())
    return near_a.to(a.dtype).contiguous(), near_b.to(b.dtype).contiguous(), lost


def _padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Both halves with zeros up to a rank."""
    more = rank - len(a)
    if not more:
        return a, b
    return (
        torch.cat([a, a.new_zeros(more, a.shape[1])]),
        torch.cat([b, b.new_zeros(len(b), more)], dim=1),
    )


def _norm(tensors: Mapping[str, Tensor], target: LoraTarget) -> float:
    """Square of the Frobenius norm of a product B·A, by products of its rank's size."""
    a, b = tensors[target.a].double(), tensors[target.b].double()
    return float(((b.t() @ b) * (a @ a.t())).sum())

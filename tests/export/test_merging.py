"""The average of shards as one adapter: exact side by side, nearest when cut."""

from __future__ import annotations

import pytest
import torch

from s3t.export.merging import merge_members
from s3t.model.adapters.lora import LoraTarget
from s3t.serving.ensemble.ensemble import Member

TARGETS = [LoraTarget(layer, "map", 6, 8) for layer in range(3)]


def member(shard: int, lowest: int, samples: int, rank: int = 2) -> Member:
    generator = torch.Generator().manual_seed(shard)
    tensors = {}
    for target in TARGETS:
        if target.layer >= lowest:
            tensors[target.a] = torch.randn(rank, target.inputs, generator=generator)
            tensors[target.b] = torch.randn(target.outputs, rank, generator=generator)
    return Member(shard, lowest, tensors, samples)


MEMBERS = [member(0, 0, 30), member(1, 2, 10), member(2, 1, 20)]


def product(tensors: dict[str, torch.Tensor], target: LoraTarget) -> torch.Tensor:
    if target.a not in tensors:
        return torch.zeros(target.outputs, target.inputs)
    return tensors[target.b] @ tensors[target.a]


@pytest.mark.parametrize("weights", ["uniform", "data"])
def test_the_average_is_exact_and_of_one_rank(weights: str) -> None:
    found = merge_members(MEMBERS, weights, TARGETS, least=8)
    shares = [0.5, 1 / 6, 1 / 3] if weights == "data" else [1 / 3] * 3
    assert (found.rank, found.error, found.member.lowest) == (8, 0.0, 0)
    for target in TARGETS:
        expected = sum(w * product(m.tensors, target) for m, w in zip(MEMBERS, shares, strict=True))
        a, b = found.member.tensors[target.a], found.member.tensors[target.b]
        assert (a.shape, b.shape) == ((8, 6), (8, 8))
        assert torch.allclose(b @ a, expected, atol=1e-5)
    assert merge_members(MEMBERS, weights, TARGETS).rank == 6, "three shards at the top layer"


def test_what_is_cut_is_the_least_there_is_and_is_told() -> None:
    whole = merge_members(MEMBERS, "uniform", TARGETS)
    lost = total = 0.0
    cut = merge_members(MEMBERS, "uniform", TARGETS, rank=3)
    for target in TARGETS:
        exact = product(whole.member.tensors, target)
        values = torch.linalg.svdvals(exact.double())
        lost += float(values[3:].square().sum())
        total += float(values.square().sum())
        found = cut.member.tensors[target.b] @ cut.member.tensors[target.a]
        assert torch.linalg.matrix_rank(found) <= 3
        assert float((found - exact).square().sum()) == pytest.approx(
            float(values[3:].square().sum()), abs=1e-4
        )
    assert cut.rank == 3 and cut.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert 0 < cut.error < 1


def test_a_rank_above_that_of_the_average_changes_nothing() -> None:
    assert merge_members(MEMBERS, "uniform", TARGETS, rank=50).rank == 6

"""The stacked optimizers: those of torch for one lane, and no lane depends on another."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from s3t.config import StageConfig
from s3t.training.node.optimizer import OPTIMIZERS, SCHEDULES, StackedOptimizer, learning_rate

CPU = torch.device("cpu")
STEPS = 12


def recipe(**values: Any) -> StageConfig:
    return StageConfig.model_validate({"learning_rate": 0.05, **values})


def tensors(seed: int) -> dict[str, Tensor]:
    """33 numbers: no multiple of a vector register."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(5, 6, generator=generator),
        "bias": torch.randn(3, generator=generator),
    }


def loss_of(leaves: dict[str, Tensor], step: int) -> Tensor:
    """[G] losses whose gradients are rough and change from step to step."""
    return (leaves["matrix"].sin() * (step + 1)).square().sum(dim=(1, 2)) + (
        leaves["bias"] - step
    ).abs().pow(1.5).sum(dim=1) * 10


def descend(lanes: StackedOptimizer, rates: list[float], steps: int = STEPS) -> None:
    for step in range(steps):
        now = torch.tensor(rates[: len(lanes)]) * (1 - step / 100)
        lanes.add(loss_of(lanes.leaves, step).sum())
        lanes.step(now)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_lane_is_torchs_optimizer(optimizer: str, decay: float, clip: float | None) -> None:
    chosen = recipe(optimizer=optimizer, weight_decay=decay, max_grad_norm=clip)
    rate = 0.05 if optimizer == "adamw" else 1e-4 if clip is None else 0.05
    lanes = StackedOptimizer([tensors(1)], chosen, CPU)
    descend(lanes, [rate])
    leaves = {name: t.clone().requires_grad_() for name, t in tensors(1).items()}
    other: torch.optim.Optimizer
    if optimizer == "adamw":
        other = torch.optim.AdamW(leaves.values(), lr=rate, weight_decay=decay)
    else:
        other = torch.optim.SGD(leaves.values(), lr=rate, momentum=0.9)
    for step in range(STEPS):
        now = rate * (1 - step / 100)
        other.param_groups[0]["lr"] = now
        other.zero_grad()
        loss = loss_of({name: leaf[None] for name, leaf in leaves.items()}, step).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        if optimizer == "sgd":  # torch's SGD has weight decay in the gradient only
            with torch.no_grad():
                for leaf in leaves.values():
                    leaf.mul_(1 - now * decay)
        other.step()
    found = lanes.take(0)
    for name, leaf in leaves.items():
        assert torch.allclose(found[name], leaf, rtol=1e-4, atol=1e-5), name
        assert float((found[name] - tensors(1)[name]).abs().max()) > 1e-2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_lane_has_the_same_bytes_in_any_company(optimizer: str) -> None:
    chosen = recipe(optimizer=optimizer, weight_decay=0.1, max_grad_norm=0.7)
    rates = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
    together = StackedOptimizer([tensors(seed) for seed in range(7)], chosen, CPU)
    descend(together, rates)
    for company in ([0], [6], [3, 2], [5, 1, 4]):
        lanes = StackedOptimizer([tensors(seed) for seed in company], chosen, CPU)
        descend(lanes, [rates[seed] for seed in company])
        for row, seed in enumerate(company):
            for name, tensor in lanes.take(row).items():
                assert torch.equal(tensor, together.take(seed)[name])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_lanes_that_are_done_leave_the_others_alone(optimizer: str) -> None:
    chosen = recipe(optimizer=optimizer)
    lanes = StackedOptimizer([tensors(seed) for seed in range(3)], chosen, CPU)
    descend(lanes, [0.01] * 3, 5)
    kept = lanes.take(0)
    lanes.keep(2)
    assert len(lanes) == 2
    assert all(torch.equal(lanes.take(0)[name], kept[name]) for name in kept)
    assert {len(leaf) for leaf in lanes.leaves.values()} == {2}
    descend(lanes, [0.01] * 2, 5)
    alone = StackedOptimizer([tensors(1)], chosen, CPU)
    descend(alone, [0.01], 5)
    descend(alone, [0.01], 5)
    assert all(torch.equal(lanes.take(1)[name], alone.take(0)[name]) for name in kept)


def test_clipping_bounds_each_lane_by_its_own_norm() -> None:
    lanes = StackedOptimizer([tensors(0), tensors(1)], recipe(max_grad_norm=1.0), CPU)
    weights = torch.tensor([1e3, 1e-3])
    matrix, bias = lanes.leaves["matrix"], lanes.leaves["bias"]
    lanes.add((matrix * weights[:, None, None]).sum() + 0 * bias.sum())
    lanes.step(torch.zeros(2))
    large, small = lanes.gradient.norm(dim=1).tolist()
    assert large == pytest.approx(1.0, rel=1e-5)
    assert small == pytest.approx(1e-3 * math.sqrt(30), rel=1e-5), "a small one is left alone"


def test_what_is_taken_is_a_copy() -> None:
    lanes = StackedOptimizer([tensors(0)], recipe(), CPU)
    taken = lanes.take(0)
    assert all(torch.equal(taken[name], tensor) for name, tensor in tensors(0).items())
    taken["matrix"].zero_()
    assert lanes.take(0)["matrix"].any()


def test_every_optimizer_and_schedule_of_the_config_has_its_own_function() -> None:
    """An unknown name is a ``KeyError``: nothing falls through to another one."""
    fields = StageConfig.model_fields
    assert {*OPTIMIZERS} == {*get_args(fields["optimizer"].annotation)}
    assert {*SCHEDULES} == {*get_args(fields["schedule"].annotation)}
    lion = recipe().model_copy(update={"optimizer": "lion"})
    with pytest.raises(KeyError, match="lion"):
        StackedOptimizer([tensors(1)], lion, CPU)


def test_constant() -> None:
    rate = learning_rate(recipe(), 10)
    assert {rate(step) for step in range(10)} == {0.05}


def test_warm_up_then_linear_to_zero() -> None:
    rate = learning_rate(recipe(schedule="linear", warmup=0.4), 10)
    rates = [rate(step) for step in range(11)]
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert rates[4:] == pytest.approx([0.05 * (6 - k) / 6 for k in range(7)])
    assert rates[10] == 0


def test_half_a_cosine() -> None:
    rate = learning_rate(recipe(schedule="cosine"), 8)
    assert [rate(step) for step in (0, 4, 8)] == pytest.approx([0.05, 0.025, 0.0])
    assert rate(2) == pytest.approx(0.05 * (1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_stages_have_a_rate_at_every_step(schedule: str, total: int) -> None:
    rate = learning_rate(recipe(schedule=schedule, warmup=0.9), total)
    assert all(rate(step) > 0 for step in range(total))


def test_every_leaf_begins_at_64_bytes() -> None:
    """A product may round by where its operands lie."""
    lanes = StackedOptimizer([tensors(seed) for seed in range(3)], recipe(), CPU)
    for leaf in lanes.leaves.values():
        assert all(one.data_ptr() % 64 == 0 for one in leaf)

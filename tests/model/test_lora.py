"""Stacked adapters: G lanes in one pass are G models of peft's, and no lane sees another."""

from __future__ import annotations

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Generator, Tensor, nn
from transformers.pytorch_utils import Conv1D

from s3t.model.adapters.lora import (
    Bank,
    LoraTarget,
    StackedLinear,
    adapted,
    find_targets,
    wrap_targets,
)

INPUTS, OUTPUTS, RANK, ALPHA = 12, 20, 3, 6.0
PLACE = (0, "map")


class Net(nn.Module):
    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.map: nn.Module = Conv1D(OUTPUTS, INPUTS) if conv else nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.map(x)
        return out


def net(conv: bool) -> Net:
    torch.manual_seed(3)
    made = Net(conv)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.requires_grad_(False)


def pairs(lanes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(lanes, RANK, INPUTS, generator=generator)
    return a, torch.randn(lanes, OUTPUTS, RANK, generator=generator)


def bank(a: Tensor, b: Tensor, dropout: float = 0.0, seeds: tuple[int, ...] = ()) -> Bank:
    generators = [Generator().manual_seed(seed) for seed in seeds]
    return Bank(len(a), {PLACE: (a, b)}, ALPHA / RANK, dropout, generators)


def stacked(conv: bool) -> StackedLinear:
    return StackedLinear(net(conv).map, LoraTarget(0, "map", INPUTS, OUTPUTS))


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_lanes_are_models_of_peft(conv: bool, lanes: int) -> None:
    a, b = pairs(lanes)
    rows = torch.randn(lanes, 4, 7, INPUTS)  # [G, n, T, inputs]
    layer = stacked(conv)
    with adapted(bank(a, b)):
        found = layer(rows.flatten(0, 1)).view(lanes, 4, 7, OUTPUTS)
    for lane in range(lanes):
        config = LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), target_modules=["map"], fan_in_fan_out=conv
        )
        model = get_peft_model(net(conv), config)  # type: ignore[arg-type]
        with torch.no_grad():
            model.get_submodule("base_model.model.map.lora_A.default").weight.copy_(a[lane])  # type: ignore[operator]
            model.get_submodule("base_model.model.map.lora_B.default").weight.copy_(b[lane])  # type: ignore[operator]
            expected = model(rows[lane])
        assert torch.allclose(found[lane], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_a_lane_has_the_same_bytes_and_gradients_in_any_company(conv: bool) -> None:
    a, b = pairs(5)
    layer, rows = stacked(conv), torch.randn(5, 4, 7, INPUTS)

    def run(lanes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        mine = (a[lanes].requires_grad_(), b[lanes].requires_grad_())
        with adapted(bank(*mine, dropout=0.4, seeds=tuple(lanes))):
            out = layer(rows[lanes].flatten(0, 1))
        grad_a, grad_b = torch.autograd.grad(out.square().sum(), mine)
        return out.detach().view(len(lanes), -1), grad_a, grad_b

    together = run([0, 1, 2, 3, 4])
    for company in ([0], [3], [4, 0], [2, 1, 3]):
        for part, whole in zip(run(company), together, strict=True):
            assert torch.equal(part, whole[company])


def test_dropout_keeps_the_mean_and_belongs_to_training() -> None:
    a, b = pairs(1)
    layer, rows = stacked(False), torch.ones(2000, INPUTS)
    with adapted(bank(a, b)):
        plain = layer(rows)
    with adapted(bank(a, b, dropout=0.5)):
        assert torch.equal(layer(rows), plain), "no generators, no dropout"
    with adapted(bank(a, b, dropout=0.5, seeds=(1,))):
        dropped = layer(rows)
    assert not torch.equal(dropped, plain)
    spread = dropped.std(dim=0) / 2000**0.5
    assert ((dropped.mean(dim=0) - plain.mean(dim=0)).abs() < 5 * spread).all()


def test_without_a_bank_it_is_the_linear_map() -> None:
    layer, rows = stacked(False), torch.randn(4, INPUTS)
    plain = layer.inner(rows)
    assert torch.equal(layer(rows), plain)
    with adapted(Bank(1, {}, 1.0)):
        assert torch.equal(layer(rows), plain)
    with adapted(Bank(1, {(1, "map"): (pairs(1))}, 1.0)):
        assert torch.equal(layer(rows), plain), "that is another layer's"


def test_banks_nest_and_are_put_back_after_an_error() -> None:
    layer, rows = stacked(False), torch.randn(4, INPUTS)
    a, b = pairs(2)
    outer, inner = bank(a[:1], b[:1]), bank(a[1:], b[1:])
    with adapted(outer):
        expected = layer(rows)
        with pytest.raises(ValueError, match="on purpose"), adapted(inner):
            assert not torch.equal(layer(rows), expected)
            raise ValueError("on purpose")
        assert torch.equal(layer(rows), expected)
        with adapted(None):
            assert torch.equal(layer(rows), layer.inner(rows))
    assert torch.equal(layer(rows), layer.inner(rows))


def test_a_bank_belongs_to_its_thread() -> None:
    layer, rows = stacked(False), torch.randn(4, INPUTS)
    a, b = pairs(3)
    expected = []
    for lane in range(3):
        with adapted(bank(a[lane : lane + 1], b[lane : lane + 1])):
            expected.append(layer(rows))
    barrier, wrong = threading.Barrier(4), []

    def serve(lane: int | None) -> None:
        mine = None if lane is None else bank(a[lane : lane + 1], b[lane : lane + 1])
        want = layer.inner(rows) if lane is None else expected[lane]
        with adapted(mine):
            barrier.wait()
            for _ in range(50):
                if not torch.equal(layer(rows), want):
                    wrong.append(lane)
            barrier.wait()

    threads = [threading.Thread(target=serve, args=(lane,)) for lane in (0, 1, 2, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(layer(rows), layer.inner(rows)), "this thread has none"


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"query": nn.Linear(4, 6), "value": nn.Linear(4, 8)})
        self.query = nn.Linear(4, 4)
        self.conv = Conv1D(10, 4)


def test_targets_are_found_by_last_name_and_by_path() -> None:
    layers = [Layer(), Layer()]
    every = find_targets(layers, None)
    assert [t.path for t in every[:4]] == ["attention.query", "attention.value", "query", "conv"]
    both = find_targets(layers, ["query", "value"])
    assert [t.path for t in both] == ["attention.query", "attention.value", "query"] * 2
    assert [t.layer for t in both] == [0, 0, 0, 1, 1, 1]
    assert [(t.inputs, t.outputs) for t in both[:3]] == [(4, 6), (4, 8), (4, 4)]
    (conv, _) = find_targets(layers, ["conv"])
    assert (conv.inputs, conv.outputs) == (4, 10), "a Conv1D keeps its weight transposed"
    assert [t.path for t in find_targets(layers, ["attention.value"])] == ["attention.value"] * 2
    with pytest.raises(LookupError, match="valu"):
        find_targets(layers, ["valu"])
    with pytest.raises(LookupError, match="auto"):
        find_targets([nn.ModuleDict({"norm": nn.LayerNorm(2)})], None)
    other = nn.ModuleDict({"dense": nn.Linear(2, 2)})  # layers need not be alike
    assert [(t.layer, t.path) for t in find_targets([layers[0].attention, other], None)] == [
        (0, "query"),
        (0, "value"),
        (1, "dense"),
    ]
    with pytest.raises(LookupError, match=r"\['conv'\]: layer 1 has \['dense'\]"):
        find_targets([layers[0], other], ["conv"])


def test_wrapping_replaces_exactly_the_targets() -> None:
    layers = [Layer(), Layer()]
    targets = find_targets(layers, ["value", "conv"])
    inner = [layers[t.layer].get_submodule(t.path) for t in targets]
    wrap_targets(layers, targets)
    for target, module in zip(targets, inner, strict=True):
        wrapped = layers[target.layer].get_submodule(target.path)
        assert isinstance(wrapped, StackedLinear)
        assert wrapped.inner is module
    assert all(isinstance(layer.query, nn.Linear) for layer in layers)
    assert sum(isinstance(m, StackedLinear) for one in layers for m in one.modules()) == 4


def test_names_sort_by_layer() -> None:
    targets = [LoraTarget(layer, "q", 1, 1) for layer in (0, 2, 10, 100)]
    assert [t.a for t in targets] == sorted(t.a for t in targets)
    assert targets[1].a == "layers.002.q.lora_A"
    assert targets[1].b == "layers.002.q.lora_B"

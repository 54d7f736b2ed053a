"""Stacked LoRA: the adapters of G lanes over one frozen base, in one forward pass.

    rows of lane 0 ┐                       ┌ A[0] B[0]
    rows of lane 1 ├─ one base product  +  ├ A[1] B[1]   bmm, a lane sees its own rows alone
    rows of lane 2 ┘                       └ A[2] B[2]

A lane is the place of one node in the stack: its adapters and its rows.

Invariant: what a lane computes does not depend on the other lanes, nor on how many there are; a
stack of one runs the same code. The bank in force belongs to the thread that set it, so that
concurrent predictions of different views share the base without a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor, nn
from transformers.pytorch_utils import Conv1D

from s3t.model.determinism import at_least, up_to_multiple
from s3t.model.quantized import QuantizedLinear
from s3t.types import BatchPart

__all__ = [
    "Bank",
    "LoraTarget",
    "StackedLinear",
    "adapted",
    "bank_in_force",
    "dropout_mask",
    "find_targets",
    "merge",
    "unwrap_targets",
    "wrap_targets",
]


@dataclass(frozen=True, slots=True, order=True)
class LoraTarget:
    """One adapted linear map.

    Attributes:
        layer: number of its layer.
        path: its module path inside the layer, such as ``self_attn.q_proj``.
        inputs, outputs: its widths.
    """

    layer: int
    path: str
    inputs: int
    outputs: int

    @property
    def a(self) -> str:
        """Name of the tensor A, [rank, inputs]."""
        return f"layers.{self.layer:03d}.{self.path}.lora_A"

    @property
    def b(self) -> str:
        """Name of the tensor B, [outputs, rank]."""
        return f"layers.{self.layer:03d}.{self.path}.lora_B"


@dataclass(frozen=True, slots=True)
class Bank:
    """The adapters of G lanes.

    Attributes:
        lanes: G.
        pairs: (layer, path) → A [G, rank, inputs] and B [G, outputs, rank].
        scale: alpha / rank.
        dropout: probability with which an adapter's input is dropped, in training.
        generators: one source of dropout per lane; empty outside training.
        merged: (layer, path) → base weight and adapter in one, [G, inputs, outputs]; a pair of the
            same place is added to it.
        part: which rows of each lane's batch these are, for random numbers that are drawn by row.
        recompute: whether a layer keeps only its input, and is run again in the backward pass.
        inference: layer → the whole layer with these adapters, for answers to few rows, of hidden
            states, mask and position (see ``FusedLayers.for_inference``).
        prompts: of each lane, [G, p, H], beside the tokens of its rows (see ``prompt``); or None.
    """

    lanes: int
    pairs: Mapping[tuple[int, str], tuple[Tensor, Tensor]]
    scale: float
    dropout: float = 0.0
    generators: Sequence[Generator] = field(default=())
    merged: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    part: BatchPart = field(default_factory=BatchPart)
    recompute: bool = False
    inference: Mapping[int, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]] = field(
        default_factory=dict
    )
    prompts: Tensor | None = None

    def first(self, lanes: int) -> Bank:
        """The bank of the first ``lanes`` lanes."""
        return replace(
            self,
            lanes=lanes,
            pairs={place: (a[:lanes], b[:lanes]) for place, (a, b) in self.pairs.items()},
            generators=self.generators[:lanes],
            merged={place: weight[:lanes] for place, weight in self.merged.items()},
            prompts=None if self.prompts is None else self.prompts[:lanes],
        )

    def only(self, lanes: Sequence[int]) -> Bank:
        """The bank of these lanes alone, in this order."""
        chosen = [*lanes]
        return replace(
            self,
            lanes=len(chosen),
            pairs={place: (a[chosen], b[chosen]) for place, (a, b) in self.pairs.items()},
            generators=[self.generators[lane] for lane in chosen] if self.generators else (),
            merged={place: weight[chosen] for place, weight in self.merged.items()},
            prompts=None if self.prompts is None else self.prompts[chosen],
        )


class _InForce(threading.local):
    bank: Bank | None = None


_IN_FORCE = _InForce()


@contextmanager
def adapted(bank: Bank | None) -> Iterator[None]:
    """Let ``bank`` adapt every wrapped linear map that this thread runs."""
    before = _IN_FORCE.bank
    _IN_FORCE.bank = bank
    try:
        yield
    finally:
        _IN_FORCE.bank = before


def bank_in_force() -> Bank | None:
    """The bank that adapts what this thread runs."""
    return _IN_FORCE.bank


class StackedLinear(nn.Module):
    """A frozen linear map and, when a bank holds it, each lane's low-rank addition.

    Input [G · rows, …, inputs], output [G · rows, …, outputs].
    """

    def __init__(self, inner: nn.Module, target: LoraTarget) -> None:
        super().__init__()
        self.inner = inner
        self.place = (target.layer, target.path)

    def forward(self, x: Tensor) -> Tensor:
        bank = _IN_FORCE.bank
        if bank is not None and (merged := bank.merged.get(self.place)) is not None:
            out = self._merged(x, merged, bank.lanes)
        else:
            out = self.inner(x)
        pair = bank.pairs.get(self.place) if bank is not None else None
        if bank is None or pair is None:
            return out
        a = up_to_multiple(pair[0].to(x.dtype), 1).transpose(1, 2)  # [G, K, r]
        b = up_to_multiple(pair[1].to(x.dtype), 2).transpose(1, 2)  # [G, r, N]
        rows = x.reshape(bank.lanes, -1, x.shape[-1])  # [G · n, …, K] → [G, n · …, K]
        count = rows.shape[1]
        if bank.generators and bank.dropout:
            rows = rows * dropout_mask(rows, bank)
        low = torch.bmm(at_least(rows), a)  # [G, m, r], m = 8 or more
        stacked = at_least(out.view(bank.lanes, -1, out.shape[-1]))  # [G · n, …, N] → [G, m, N]
        found = torch.baddbmm(stacked, low, b, alpha=bank.scale)[:, :count]
        return found.reshape(out.shape)  # [G, n · …, N] → [G · n, …, N]

    def _merged(self, x: Tensor, merged: Tensor, lanes: int) -> Tensor:
        rows = x.reshape(lanes, -1, x.shape[-1])  # [G · n, …, K] → [G, n · …, K]
        count, rows = rows.shape[1], at_least(rows)
        bias = getattr(self.inner, "bias", None)
        out = torch.bmm(rows, merged) if bias is None else torch.baddbmm(bias, rows, merged)
        found = out[:, :count]
        return found.reshape(*x.shape[:-1], merged.shape[-1])  # [G, n · …, N] → [G · n, …, N]


def find_targets(layers: Sequence[nn.Module], names: Sequence[str] | None) -> list[LoraTarget]:
    """Linear maps to adapt, in the order of the layers.

    Args:
        layers: the transformer's layers, bottom first.
        names: last parts of module paths, such as ``q_proj``; None for all linear maps.

    Raises:
        LookupError: with the names that are no linear map of a layer.
    """
    targets = []
    for number, layer in enumerate(layers):
        linear = {
            path: module
            for path, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D | QuantizedLinear)
        }
        ends = {path.rsplit(".", 1)[-1] for path in linear}
        wanted = ends if names is None else names
        missing = [name for name in wanted if name not in ends and name not in linear]
        if missing or not wanted:
            raise LookupError(f"{missing or 'auto'}: layer {number} has {sorted(ends)}")
        targets += [
            _target(number, path, module)
            for path, module in linear.items()
            if path in wanted or path.rsplit(".", 1)[-1] in wanted
        ]
    return targets


def wrap_targets(layers: Sequence[nn.Module], targets: Sequence[LoraTarget]) -> None:
    """Replace each target by a ``StackedLinear`` around it, in place."""
    for target in targets:
        layer = layers[target.layer]
        parent, _, name = target.path.rpartition(".")
        inner = layer.get_submodule(target.path)
        setattr(layer.get_submodule(parent), name, StackedLinear(inner, target))


def unwrap_targets(layers: Sequence[nn.Module], targets: Sequence[LoraTarget]) -> None:
    """Put each target back in the place of the ``StackedLinear`` around it."""
    for target in targets:
        layer = layers[target.layer]
        parent, _, name = target.path.rpartition(".")
        wrapped = layer.get_submodule(target.path)
        assert isinstance(wrapped, StackedLinear)
        setattr(layer.get_submodule(parent), name, wrapped.inner)


def merge(
    layers: Sequence[nn.Module], target: LoraTarget, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """The target's weight with each lane's adapter added, [G, inputs, outputs].

    Args:
        layers: wrapped layers.
        a, b: [G, rank, inputs] and [G, outputs, rank].
        scale: alpha / rank.
    """
    module = layers[target.layer].get_submodule(target.path)
    assert isinstance(module, StackedLinear)
    weight = module.inner.weight
    assert isinstance(weight, Tensor)
    turned = weight if isinstance(module.inner, Conv1D) else weight.t()
    left = up_to_multiple(a.to(weight.dtype), 1).transpose(1, 2)  # [G, inputs, r]
    right = up_to_multiple(b.to(weight.dtype), 2).transpose(1, 2)  # [G, r, outputs]
    # one at a time: a stack of one may be rounded otherwise than a stack of several
    each = [torch.addmm(turned, *pair, alpha=scale) for pair in zip(left, right, strict=True)]
    return torch.stack(each)


def _target(layer: int, path: str, module: nn.Module) -> LoraTarget:
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return LoraTarget(layer, path, int(inputs), int(outputs))
    assert isinstance(module, nn.Linear | QuantizedLinear)
    return LoraTarget(layer, path, module.in_features, module.out_features)


def dropout_mask(rows: Tensor, bank: Bank) -> Tensor:
    """Dropout of rows [G, n, K]: 0, or 1 / (1 − probability); the same shape.

    Each lane has a generator of its own, so its numbers do not depend on the stack. Each of the
    processes that a batch is divided among draws for the whole batch, so they do not depend on the
    number of processes either.
    """
    keep, (count, width) = 1.0 - bank.dropout, rows.shape[1:]
    whole = count * bank.part.size
    draws = [
        torch.rand((whole, width), generator=generator, device=rows.device, dtype=torch.float32)
        for generator in bank.generators
    ]
    draws = [draw[bank.part.of(whole)] for draw in draws]
    return (torch.stack(draws) < keep).to(rows.dtype) / keep

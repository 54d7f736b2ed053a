"""Frozen linear maps whose weights are kept in 8 or 4 bits; inputs and outputs are not quantized.

    weight [outputs, inputs] ─► packed, scales ─► dequantized for each pass ─► product ─► freed
                                                  (again in the backward pass)

bitsandbytes quantizes the weights when a base is loaded, and knows the formats. Its modules are
replaced for two reasons: they quantize the inputs as well, in 8 bits by the rows of a whole batch,
and they pack weights again for some processors. The maps here round a row as any other linear map
does, so grouping nodes changes no byte (E2). The packed bytes are tensors like all others, with
digests and write counters.

Invariant: the packed weights are only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["QuantizedLinear", "has_quantized", "quantizer_version", "replace_quantized"]

_PACKAGE = "bitsandbytes"


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + bias with W as bitsandbytes has quantized it.

    Args:
        linear: a ``Linear8bitLt`` or ``Linear4bit`` whose weight is quantized.
    """

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = int(linear.in_features), int(linear.out_features)
        self.bias: nn.Parameter | None = linear.bias
        weight = linear.weight
        packed = nn.Parameter(weight.data.detach().as_subclass(Tensor), requires_grad=False)
        self.weight = packed
        self._kind: dict[str, Any] | None = None
        self._names: tuple[str, ...] = ("scales",)
        if (state := getattr(weight, "quant_state", None)) is None:
            scales = linear.state.SCB if weight.SCB is None else weight.SCB
            self._keep("scales", scales)
            return
        held = state.as_dict(packed=False)
        self._names = tuple(name for name, value in held.items() if isinstance(value, Tensor))
        self._kind = {name: value for name, value in held.items() if name not in self._names}
        for name in self._names:
            self._keep(name, held[name])

    def _keep(self, name: str, tensor: Tensor) -> None:
        """As a parameter, which stays the same object where the base is moved to a device."""
        kept = tensor.detach().clone()
        self.register_parameter(name, nn.Parameter(kept, requires_grad=False))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """W, [outputs, inputs]."""
        if self._kind is None:
            scales: Tensor = self.get_parameter("scales")
            return self.weight.to(dtype).mul_((scales / 127).to(dtype).unsqueeze(1))
        from bitsandbytes.functional import QuantState, dequantize_4bit

        held = {name: self.get_parameter(name) for name in self._names}
        state = QuantState.from_dict(self._kind | held, device=self.weight.device)
        found: Tensor = dequantize_4bit(self.weight, state)
        return found.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] → […, outputs]."""
        out: Tensor = _QuantizedProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return out


class _QuantizedProduct(torch.autograd.Function):
    """A product whose backward pass reads the packed weight; the dequantized one is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return nn.functional.linear(x, linear.dequantized(x.dtype), linear.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.linear.dequantized(gradient.dtype), None


def replace_quantized(model: nn.Module) -> int:
    """Put ``QuantizedLinear`` where bitsandbytes' linear maps stand, in place; returns how many."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).__module__.startswith(f"{_PACKAGE}.") and isinstance(module, nn.Linear)
    ]
    for name, module in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, QuantizedLinear(module))
    return len(found)


def has_quantized(modules: Sequence[nn.Module]) -> bool:
    """Whether a map inside the modules is quantized."""
    return any(isinstance(inner, QuantizedLinear) for one in modules for inner in one.modules())


def quantizer_version() -> str | None:
    """Version of bitsandbytes; None where it is not installed."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return None

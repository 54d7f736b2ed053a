"""Finds by trying which layers of a base can be run written out.

No model family is named. A layer that has the parts of a ``FusedLayer`` is run on random input in
each order in which the parts may stand. The order whose output and gradient are the layer's own is
taken; a layer that agrees with no order keeps its own code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import permutations, product

import torch
from torch import Tensor, nn

from s3t.model.fused.layer import Activation, FusedLayer
from s3t.model.fused.linear import FrozenLinear

__all__ = ["match_layer"]

_ROLES = (
    ("q_proj", "query", "q_lin"),
    ("k_proj", "key", "k_lin"),
    ("v_proj", "value", "v_lin"),
)


def _gelu(approximate: str) -> Activation:
    return Activation(
        lambda u: nn.functional.gelu(u, approximate=approximate),
        lambda gradient, u: torch.ops.aten.gelu_backward(gradient, u, approximate=approximate),
    )


_ACTIVATIONS = (
    _gelu("none"),
    _gelu("tanh"),
    Activation(torch.relu, lambda gradient, u: gradient * (u > 0)),
    Activation(nn.functional.silu, torch.ops.aten.silu_backward),
)


def match_layer(
    layer: nn.Module,
    number: int,
    adapted: Collection[str],
    heads: int,
    hidden: Tensor,
    run: Callable[[Tensor], Tensor],
    mask: Tensor | None,
) -> FusedLayer | None:
    """The layer written out, or None if it is not one of these.

    Args:
        layer: a layer of the base, before its linear maps are wrapped.
        number: its number.
        adapted: paths of the linear maps that will be adapted.
        heads: attention heads.
        hidden: random hidden states [n, T, H] to try it with.
        run: the layer's own forward pass.
        mask: additive attention mask of the trial.
    """
    found = _parts(layer, number)
    if found is None or hidden.shape[-1] % heads:
        return None
    linears, norms = found
    if not set(adapted) <= {linear.place[1] for linear in linears}:
        return None
    with torch.enable_grad():
        x = hidden.detach().clone().requires_grad_()
        expected = run(x)
        direction = torch.linspace(-1, 1, expected.numel(), device=x.device).view_as(expected)
        direction = direction.to(x.dtype)
        (slope,) = torch.autograd.grad(expected, x, direction)
    for pre, order, activation in product((True, False), permutations(norms), _ACTIVATIONS):
        candidate = FusedLayer(linears, order, activation, heads, pre)
        with torch.enable_grad():
            out = candidate(x, mask, None)
            if not _close(out, expected):
                continue
            (own,) = torch.autograd.grad(out, x, direction)
        if _close(own, slope):
            return candidate
    return None


def _parts(layer: nn.Module, number: int) -> tuple[list[FrozenLinear], list[nn.LayerNorm]] | None:
    """The layer's six linear maps in the order of ``FusedLayer`` and its two norms."""
    modules = dict(layer.named_modules())
    linear = {path: m for path, m in modules.items() if isinstance(m, nn.Linear)}
    norms = [m for m in modules.values() if isinstance(m, nn.LayerNorm)]
    named = [[path for path in linear if path.rsplit(".", 1)[-1] in role] for role in _ROLES]
    if len(linear) != 6 or len(norms) != 2 or any(len(paths) != 1 for paths in named):
        return None
    paths = [paths[0] for paths in named]
    paths += [path for path in linear if path not in paths]
    width = linear[paths[0]].in_features
    inner = linear[paths[4]].out_features
    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    if [(linear[path].in_features, linear[path].out_features) for path in paths] != shapes:
        return None
    if any(norm.weight is None or norm.bias is None for norm in norms):
        return None
    return [FrozenLinear((number, path), linear[path]) for path in paths], norms


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-4 if one.dtype == torch.float32 else 1e-1
    return torch.allclose(one, other, rtol=0, atol=tolerance * float(other.detach().abs().max()))

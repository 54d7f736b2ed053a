"""One encoder layer with its forward and backward written out: what the block engine runs.

    pre-norm                                       post-norm
    x ─ norm ─ q, k, v ─ attention ─ o ─(+ x)─ y   x ─ q, k, v ─ attention ─ o ─(+ x)─ norm ─ y
    y ─ norm ─ up ─ activation ─ down ─(+ y)─ z    y ─ up ─ activation ─ down ─(+ y)─ norm ─ z

Why: a frozen layer needs the gradient of its input alone. Written out, that gradient is accumulated
by the matrix products themselves, nothing is kept for weights that stand still, and the last layer
of a stage computes one position of a row where the head reads one.

Invariants: a lane's numbers do not depend on the other lanes; the base's weights are only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3t.model.adapters.lora import Bank
from s3t.model.determinism import without_tail
from s3t.model.fused.linear import Product, Products

__all__ = ["Activation", "FusedLayer"]

_LONGEST = 256
"""Tokens up to which attention scores are kept for the backward pass; above, flash attention."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A function and its derivative times a gradient."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the backward pass of one layer reads."""

    attention: tuple[Tensor, Tensor, Tensor, Tensor]
    norms: tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    up: Tensor
    at: Tensor | None


class FusedLayer:
    """A layer of a frozen base, with the adapters of a bank's lanes.

    Args:
        products: q, k, v, o, up, down.
        norms: the one of the attention half, the one of the other half.
        activation: between up and down.
        heads: attention heads.
        pre: whether a half begins with its norm, or ends with it.
    """

    def __init__(
        self,
        products: Sequence[Product],
        norms: Sequence[nn.LayerNorm],
        activation: Activation,
        heads: int,
        pre: bool,
    ) -> None:
        self.products, self.norms = tuple(products), tuple(norms)
        self.activation, self.heads, self.pre = activation, heads, pre

    def takes(self, tokens: int) -> bool:
        """Whether all positions of rows of this length are run here."""
        return tokens <= _LONGEST

    def unchanged(self) -> bool:
        """Whether all copies of the base's weights are still what they are copies of."""
        return all(product.unchanged() for product in self.products)

    def __call__(
        self, hidden: Tensor, mask: Tensor | None, bank: Bank | None, at: Tensor | None = None
    ) -> Tensor:
        """The layer on hidden states.

        Args:
            hidden: [n, T, H], n a multiple of the bank's lanes.
            mask: additive attention mask [n, 1, 1, T], or None.
            bank: adapters in force.
            at: one position for each row, [n] int64, to compute no other; or None.

        Returns:
            [n, T, H], or [n, 1, H] with ``at``.
        """
        leaves = [leaf for product in self.products for leaf in product.leaves(bank)]
        if torch.is_grad_enabled() and (
            hidden.requires_grad or any(leaf.requires_grad for leaf in leaves)
        ):
            out: Tensor = _Run.apply(  # type: ignore[no-untyped-call]
                hidden, self, mask, bank, at, *leaves
            )
            return out
        return self.forward(hidden, Products(bank, keep=False), mask, at)[0]

    # ── forward ──────────────────────────────────────────────────────────────────────────────

    def forward(
        self, hidden: Tensor, run: Products, mask: Tensor | None, at: Tensor | None
    ) -> tuple[Tensor, _Kept]:
        """The layer, and what its backward pass reads."""
        count, tokens, width = hidden.shape
        q, k, v, o, up, down = self.products
        flat = None if at is None else torch.arange(count, device=at.device) * tokens + at
        x = hidden.reshape(-1, width)
        here = x if flat is None else x[flat]
        entering, first = self._normed(x, 0) if self.pre else (x, None)
        asking = entering if flat is None else entering[flat]
        heads = (
            self._split(run(q, asking), count),
            self._split(run(k, entering), count),
            self._split(run(v, entering), count),
        )
        shares = self._shares(heads[0], heads[1], mask)
        mixed = self._joined(torch.bmm(shares, heads[2]), count)
        middle = run(o, mixed, into=here)
        if self.pre:
            second_in, second = self._normed(middle, 1)
        else:
            middle, first = self._normed(middle, 0)
            second_in, second = middle, None
        wide = run(up, second_in)
        out = run(down, without_tail(self.activation.forward, wide), into=middle)
        if not self.pre:
            out, second = self._normed(out, 1)
        assert first is not None and second is not None
        kept = _Kept((*heads, shares), (first, second), wide, flat)
        return out.view(count, -1, width), kept

    def _normed(self, x: Tensor, which: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        norm = self.norms[which]
        out, mean, deviation = torch.native_layer_norm(
            x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        return out, (x, mean, deviation)

    def _split(self, x: Tensor, count: int) -> Tensor:
        """[n · T, H] → [n · heads, T, H / heads]."""
        apart = x.view(count, -1, self.heads, x.shape[1] // self.heads).transpose(1, 2)
        return apart.reshape(count * self.heads, -1, apart.shape[-1])

    def _joined(self, x: Tensor, count: int) -> Tensor:
        """[n · heads, T, H / heads] → [n · T, H]."""
        apart = x.view(count, self.heads, -1, x.shape[-1]).transpose(1, 2)
        return apart.reshape(-1, self.heads * x.shape[-1])

    def _shares(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of each position to each, [n · heads, Tq, T]."""
        scale = 1 / math.sqrt(q.shape[-1])
        if mask is None:
            start, beta = q.new_empty(1), 0
        else:
            tokens = k.shape[1]
            start = mask[:, 0].expand(-1, self.heads, tokens).reshape(-1, 1, tokens)
            beta = 1
        scores = torch.baddbmm(start, q, k.transpose(1, 2), beta=beta, alpha=scale)
        return scores.softmax(dim=-1)

    # ── backward ─────────────────────────────────────────────────────────────────────────────

    def backward(self, gradient: Tensor, run: Products, kept: _Kept, needed: bool) -> Tensor | None:
        """Gradient of the layer's input; those of the adapters are left in ``run``.

        Args:
            gradient: of the output, [n · T, H], or [n, H] for one position.
            needed: whether the input's is asked for; else None is returned.
        """
        up, down = self.products[4:]
        if not self.pre:
            gradient = self._norm_back(gradient, kept, 1)
        wide = without_tail(self.activation.backward, run.back(down, gradient), kept.up)
        inner = run.back(up, wide, into=None if self.pre else gradient)
        if self.pre:
            middle = self._norm_back(inner, kept, 1).add_(gradient)
        else:
            middle = self._norm_back(inner, kept, 0)
        entering = self._attention_back(middle, run, kept, needed)
        if entering is None:
            return None
        if self.pre:
            entering = self._norm_back(entering, kept, 0)
        if kept.at is None:
            return entering.add_(middle)
        return entering.index_add_(0, kept.at, middle)

    def _attention_back(
        self, middle: Tensor, run: Products, kept: _Kept, needed: bool
    ) -> Tensor | None:
        q, k, v, o = self.products[:4]
        asked, keys, values, shares = kept.attention
        count = len(asked) // self.heads
        mixed = self._split(run.back(o, middle), count)
        wanted = torch.bmm(mixed, values.transpose(1, 2))
        scores: Tensor = torch.ops.aten._softmax_backward_data(wanted, shares, -1, shares.dtype)
        scores.mul_(1 / math.sqrt(asked.shape[-1]))
        entering = None
        for product, position, left, right in (
            (v, None, shares.transpose(1, 2), mixed),
            (k, None, scores.transpose(1, 2), asked),
            (q, kept.at, scores, keys),
        ):
            if not needed and not run.trained(product):
                continue
            flat = self._joined(torch.bmm(left, right), count)
            if not needed:
                run.back(product, flat, needed=False)
            elif position is None:
                entering = run.back(product, flat, into=entering)
            else:
                assert entering is not None
                entering.index_add_(0, position, run.back(product, flat))
        return entering

    def _norm_back(self, gradient: Tensor, kept: _Kept, which: int) -> Tensor:
        norm, (x, mean, deviation) = self.norms[which], kept.norms[which]
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient,
            x,
            norm.normalized_shape,
            mean,
            deviation,
            norm.weight,
            norm.bias,
            [True, False, False],
        )[0]
        return found


class _Run(torch.autograd.Function):
    """The layer as one step of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        layer: FusedLayer,
        mask: Tensor | None,
        bank: Bank | None,
        at: Tensor | None,
        *leaves: Tensor,
    ) -> Tensor:
        run = Products(bank, keep=True)
        out, kept = layer.forward(hidden, run, mask, at)
        ctx.layer, ctx.run, ctx.kept, ctx.shape = layer, run, kept, hidden.shape
        ctx.again = None
        if bank is not None and bank.recompute:
            ctx.run = ctx.kept = None
            ctx.again = (hidden, bank, mask, at)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layer: FusedLayer = ctx.layer
        run, kept = ctx.run, ctx.kept
        if ctx.again is not None:
            hidden, bank, mask, at = ctx.again
            run = Products(bank, keep=True)
            _, kept = layer.forward(hidden, run, mask, at)
        needed = ctx.needs_input_grad[0]
        flat = gradients[0].reshape(-1, gradients[0].shape[-1])
        entering = layer.backward(flat, run, kept, needed)
        ctx.kept = ctx.again = None  # a graph is walked once
        found = [gradient for p in layer.products for gradient in run.gradients(p)]
        first = None if entering is None else entering.view(ctx.shape)
        return (first, None, None, None, None, *found)

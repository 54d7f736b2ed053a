"""A layer in answers to few rows: as few calls of torch as possible, no backward pass.

    x ─► one product [Wq Wk Wv] + one pair of adapters [Aq Ak Av], diag(Bq, Bk, Bv) ─► attention …

Why: with few rows a call costs more than what it computes. Query, key and value have one input, so
their products are joined, and their adapters' as well; the zeros between the B are cheaper than two
more calls. The layer itself, and the letters in shapes, are those of ``layer``.

Invariant: the base's weights are only read; what is joined is a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3t.model.adapters.lora import Bank
from s3t.model.fused.layer import FusedLayer
from s3t.model.fused.linear import FrozenLinear

__all__ = ["InferenceLayer", "JoinedLayer"]

_Pair = tuple[Tensor, Tensor]


class JoinedLayer:
    """A layer's own weights, query, key and value side by side."""

    def __init__(self, layer: FusedLayer) -> None:
        self.linears, self.norms = layer.linears, layer.norms
        self.activation = layer.activation.forward
        self.heads, self.pre = layer.heads, layer.pre
        qkv = self.linears[:3]
        with torch.inference_mode(False), torch.no_grad():
            self.weight = torch.cat([linear.weight for linear in qkv]).t().contiguous()
            zeros = self.weight.new_zeros(len(self.weight))
            biases = [zeros if p.bias is None else p.bias for p in qkv]
            self.bias = torch.cat(biases)

    def unchanged(self) -> bool:
        """Whether the copy is still what it is a copy of."""
        joined = torch.cat([linear.weight for linear in self.linears[:3]])
        return torch.equal(self.weight, joined.t())

    @staticmethod
    def bytes_of(layer: FusedLayer) -> int:
        """Size of the copy that joining makes."""
        return sum(linear.weight.nbytes for linear in layer.linears[:3])


class InferenceLayer:
    """A layer under the adapters of a bank's lanes; the bank must have no merged ones."""

    def __init__(self, base: JoinedLayer, bank: Bank) -> None:
        self._base, self._lanes = base, bank.lanes
        pairs = [self._pair(linear, bank) for linear in base.linears]
        self._qkv = self._joined(pairs[:3])
        self._mixed, self._up, self._down = pairs[3:]

    def __call__(self, hidden: Tensor, mask: Tensor | None, at: Tensor | None = None) -> Tensor:
        """The layer on hidden states.

        Args:
            hidden: [n, T, H], n a multiple of the lanes.
            mask: additive attention mask [n, 1, 1, T], or None.
            at: one position for each row, [n] int64, to compute no other; or None.

        Returns:
            [n, T, H], or [n, 1, H] with ``at``.
        """
        base, (count, _, width) = self._base, hidden.shape
        x = hidden.reshape(-1, width)  # [n, T, H] → [n · T, H]
        entering = self._normed(x, 0) if base.pre else x
        qkv = self._adapted(entering, torch.addmm(base.bias, entering, base.weight), self._qkv)
        apart = qkv.view(count, -1, 3, base.heads, width // base.heads)  # [n, T, 3, heads, H/heads]
        query, key, value = apart.permute(2, 0, 3, 1, 4)  # each [n, heads, T, H / heads]
        if at is not None:
            rows = torch.arange(count, device=at.device)
            query, x = query[rows, :, at].unsqueeze(2), hidden[rows, at]  # one position: Tq = 1
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(-1, width)  # [n, heads, Tq, H / heads] → [n · Tq, H]
        middle = self._linear(3, mixed, self._mixed).add_(x)
        if base.pre:
            inner = self._normed(middle, 1)
        else:
            middle = inner = self._normed(middle, 0)
        wide = base.activation(self._linear(4, inner, self._up))
        out = self._linear(5, wide, self._down).add_(middle)
        out = out if base.pre else self._normed(out, 1)
        return out.view(count, -1, width)  # [n · Tq, H] → [n, Tq, H]

    def _linear(self, which: int, x: Tensor, pair: _Pair | None) -> Tensor:
        linear = self._base.linears[which]
        if linear.bias is None:
            return self._adapted(x, torch.mm(x, linear.transposed), pair)
        return self._adapted(x, torch.addmm(linear.bias, x, linear.transposed), pair)

    def _adapted(self, x: Tensor, out: Tensor, pair: _Pair | None) -> Tensor:
        """``out`` [R, outputs] with the adapters' part for x [R, inputs] added, in place."""
        if pair is not None:
            low = torch.bmm(x.view(self._lanes, -1, x.shape[1]), pair[0])  # [G, R / G, rank]
            out.view(self._lanes, -1, out.shape[1]).baddbmm_(low, pair[1])
        return out

    def _normed(self, x: Tensor, which: int) -> Tensor:
        norm = self._base.norms[which]
        return nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    @staticmethod
    def _pair(linear: FrozenLinear, bank: Bank) -> _Pair | None:
        """A [G, inputs, rank] and scale · B [G, rank, outputs], or None."""
        if linear.place not in bank.pairs:
            return None
        kind = linear.weight.dtype
        a, b = bank.pairs[linear.place]
        left = a.to(kind).transpose(1, 2)  # [G, rank, inputs] → [G, inputs, rank]
        right = (b.to(kind) * bank.scale).transpose(1, 2)  # → [G, rank, outputs]
        return left.contiguous(), right.contiguous()

    def _joined(self, pairs: list[_Pair | None]) -> _Pair | None:
        """The adapters of query, key and value as one of the sum of their ranks."""
        held = [(number, pair) for number, pair in enumerate(pairs) if pair is not None]
        if not held:
            return None
        a = torch.cat([pair[0] for _, pair in held], dim=2)
        width, rank = a.shape[1], 0
        b = a.new_zeros((self._lanes, a.shape[2], 3 * width))
        for number, (_, each) in held:
            own = rank + each.shape[1]
            b[:, rank:own, number * width : (number + 1) * width] = each
            rank = own
        return a, b

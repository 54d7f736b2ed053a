"""A written-out layer in a pass of few rows: as few calls as it takes, no backward pass.

    x ─► one product [Wq Wk Wv] + one pair of adapters [Aq Ak Av], diag(Bq, Bk, Bv) ─► attention …

Why: with few rows a call costs more than what it computes. Query, key and value share their input,
so that their products, and their adapters', can be joined; the zeros between the B are cheaper than
two more calls. What the layer is otherwise is said in ``fused``.

Invariant: the base's weights are only read; what is joined is a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3t.model.adapters.lora import Bank
from s3t.model.fused.layer import FusedLayer
from s3t.model.fused.linear import Product

__all__ = ["JoinedLayer", "ServedLayer"]

_Pair = tuple[Tensor, Tensor]


class JoinedLayer:
    """A layer's own weights, query, key and value side by side.

    Args:
        layer: as it is trained.
    """

    def __init__(self, layer: FusedLayer) -> None:
        self.products, self.norms = layer.products, layer.norms
        self.activation = layer.activation.forward
        self.heads, self.pre = layer.heads, layer.pre
        asked = self.products[:3]
        with torch.inference_mode(False), torch.no_grad():
            self.weight = torch.cat([product.weight for product in asked]).t().contiguous()
            zeros = self.weight.new_zeros(len(self.weight))
            biases = [zeros if p.bias is None else p.bias for p in asked]
            self.bias = torch.cat(biases)

    def unchanged(self) -> bool:
        """Whether the copy is still what it is a copy of."""
        asked = torch.cat([product.weight for product in self.products[:3]])
        return torch.equal(self.weight, asked.t())

    @staticmethod
    def bytes_of(layer: FusedLayer) -> int:
        """Size of the copy that joining makes."""
        return sum(product.weight.nbytes for product in layer.products[:3])


class ServedLayer:
    """A layer under the adapters of a bank's lanes; merged ones are not for it.

    Args:
        base: the layer's own weights.
        bank: adapters of G lanes.
    """

    def __init__(self, base: JoinedLayer, bank: Bank) -> None:
        self._base, self._lanes = base, bank.lanes
        pairs = [self._pair(product, bank) for product in base.products]
        self._asked = self._joined(pairs[:3])
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
        x = hidden.reshape(-1, width)
        entering = self._normed(x, 0) if base.pre else x
        asked = self._adapted(entering, torch.addmm(base.bias, entering, base.weight), self._asked)
        query, key, value = asked.view(count, -1, 3, base.heads, width // base.heads).permute(
            2, 0, 3, 1, 4
        )
        if at is not None:
            rows = torch.arange(count, device=at.device)
            query, x = query[rows, :, at].unsqueeze(2), hidden[rows, at]
        shared = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = shared.transpose(1, 2).reshape(-1, width)
        middle = self._product(3, mixed, self._mixed).add_(x)
        if base.pre:
            inner = self._normed(middle, 1)
        else:
            middle = inner = self._normed(middle, 0)
        wide = base.activation(self._product(4, inner, self._up))
        out = self._product(5, wide, self._down).add_(middle)
        return (out if base.pre else self._normed(out, 1)).view(count, -1, width)

    def _product(self, which: int, x: Tensor, pair: _Pair | None) -> Tensor:
        product = self._base.products[which]
        if product.bias is None:
            return self._adapted(x, torch.mm(x, product.turned), pair)
        return self._adapted(x, torch.addmm(product.bias, x, product.turned), pair)

    def _adapted(self, x: Tensor, out: Tensor, pair: _Pair | None) -> Tensor:
        """``out`` [R, outputs] with the adapters' part for x [R, inputs] added, in place."""
        if pair is not None:
            low = torch.bmm(x.view(self._lanes, -1, x.shape[1]), pair[0])
            out.view(self._lanes, -1, out.shape[1]).baddbmm_(low, pair[1])
        return out

    def _normed(self, x: Tensor, which: int) -> Tensor:
        norm = self._base.norms[which]
        return nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    @staticmethod
    def _pair(product: Product, bank: Bank) -> _Pair | None:
        """A [G, inputs, rank] and scale · B [G, rank, outputs], or None."""
        if product.place not in bank.pairs:
            return None
        kind = product.weight.dtype
        a, b = bank.pairs[product.place]
        turned = a.to(kind).transpose(1, 2).contiguous()
        return turned, (b.to(kind) * bank.scale).transpose(1, 2).contiguous()

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

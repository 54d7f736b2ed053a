"""One frozen linear map under the adapters of G slots, forward and backward.

    y[g] = x[g] Wᵀ + bias + scale · (x[g] A[g]ᵀ) B[g]ᵀ          adapters that are trained
    y[g] = x[g] W'[g] + bias, W'[g] = Wᵀ + scale · A[g]ᵀ B[g]ᵀ   frozen ones, merged

Invariant: a slot sees its own rows alone; sums over the adapter and over what flows in from
elsewhere are made by the products themselves, in one order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3t.model.lora import Bank, dropout_mask

__all__ = ["Product", "Products"]

_TURNED_BYTES = 2**20
"""Weights up to this are kept turned as well: the forward product is then some 5 % faster."""


class Product:
    """A linear map of the base: where it stands, and its weights."""

    def __init__(self, place: tuple[int, str], linear: nn.Linear) -> None:
        self.place, self._linear = place, linear
        self._turned: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, [outputs, inputs]."""
        return self._linear.weight

    @property
    def bias(self) -> Tensor | None:
        """[outputs], or None."""
        return self._linear.bias

    @property
    def turned(self) -> Tensor:
        """Wᵀ, [inputs, outputs]."""
        weight = self._linear.weight
        if weight.nbytes > _TURNED_BYTES:
            return weight.t()
        if self._turned is None or self._turned.device != weight.device:
            with torch.inference_mode(False), torch.no_grad():
                self._turned = weight.t().contiguous()
        return self._turned

    def unchanged(self) -> bool:
        """Whether the turned copy is still the base's weight, turned."""
        return self._turned is None or torch.equal(self._turned, self._linear.weight.t())

    def leaves(self, bank: Bank | None) -> tuple[Tensor, ...]:
        """A and B of this map in the bank; nothing if it has none, or a merged one."""
        return () if bank is None else tuple(bank.pairs.get(self.place, ()))


class _Low:
    """What one adapter's backward pass reads."""

    def __init__(self, rows: Tensor, dropped: Tensor | None, low: Tensor) -> None:
        self.rows, self.dropped, self.low = rows, dropped, low


class Products:
    """One pass through the products of a layer, with one bank.

    Args:
        bank: adapters in force, or None.
        keep: whether a backward pass follows.
    """

    def __init__(self, bank: Bank | None, keep: bool) -> None:
        self._bank, self._keep = bank, keep
        self._lows: dict[tuple[int, str], _Low] = {}
        self._found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def __call__(self, product: Product, x: Tensor, into: Tensor | None = None) -> Tensor:
        """The map's output [R, outputs] for x [R, inputs], added to ``into`` (left as it is)."""
        bank = self._bank
        merged = None if bank is None else bank.merged.get(product.place)
        bias = product.bias
        if into is None:
            start = None if bias is None else bias
        else:
            start = into if bias is None else into + bias
        if bank is not None and merged is not None:
            return _stacked_product(x, merged, start, bank.slots)
        if start is None:
            out = torch.mm(x, product.turned)
        elif into is not None and bias is not None:
            out = start.addmm_(x, product.turned)  # ``start`` is our own
        else:
            out = torch.addmm(start, x, product.turned)
        pair = product.leaves(bank)
        if bank is not None and pair:
            self._adapt(product, x, out, bank, pair)
        return out

    def back(
        self, product: Product, gradient: Tensor, into: Tensor | None = None, needed: bool = True
    ) -> Tensor:
        """Gradient of the map's input, added to ``into`` in place; those of A and B are kept.

        Args:
            gradient: of the output, [R, outputs].
            into: a gradient that may be written to, [R, inputs].
            needed: whether the input's gradient is; else an empty tensor is returned.
        """
        bank = self._bank
        if bank is not None and (merged := bank.merged.get(product.place)) is not None:
            return _stacked_back(gradient, merged, into, bank.slots)
        if not needed:
            out = gradient.new_empty(0)
        elif into is None:
            out = torch.mm(gradient, product.weight)
        else:
            out = into.addmm_(gradient, product.weight)
        pair = product.leaves(bank)
        if bank is not None and pair:
            self._adapt_back(product, gradient, out if needed else None, bank, pair)
        return out

    def trained(self, product: Product) -> bool:
        """Whether an adapter of this map wants its gradient."""
        return any(leaf.requires_grad for leaf in product.leaves(self._bank))

    def gradients(self, product: Product) -> tuple[Tensor | None, ...]:
        """Gradients of the map's leaves after ``back``, in their order."""
        found = self._found.get(product.place)
        return found if found is not None else (None,) * len(product.leaves(self._bank))

    def _adapt(
        self, product: Product, x: Tensor, out: Tensor, bank: Bank, pair: tuple[Tensor, ...]
    ) -> None:
        a, b = (matrix.to(x.dtype) for matrix in pair)
        rows = x.view(bank.slots, -1, x.shape[1])
        dropped = None
        if bank.generators and bank.dropout:
            dropped = dropout_mask(rows, bank)
            rows = rows * dropped
        low = torch.bmm(rows, a.transpose(1, 2))
        out.view(bank.slots, -1, out.shape[1]).baddbmm_(low, b.transpose(1, 2), alpha=bank.scale)
        if self._keep:
            self._lows[product.place] = _Low(rows, dropped, low)

    def _adapt_back(
        self,
        product: Product,
        gradient: Tensor,
        entering: Tensor | None,
        bank: Bank,
        pair: tuple[Tensor, ...],
    ) -> None:
        a, b = (matrix.to(gradient.dtype) for matrix in pair)
        kept = self._lows.pop(product.place)
        apart = gradient.view(bank.slots, -1, gradient.shape[1])
        low = torch.bmm(apart, b).mul_(bank.scale)
        if pair[0].requires_grad:
            found_b = torch.bmm(apart.transpose(1, 2), kept.low).mul_(bank.scale)
            found_a = torch.bmm(low.transpose(1, 2), kept.rows)
            self._found[product.place] = found_a.to(pair[0].dtype), found_b.to(pair[1].dtype)
        if entering is not None:
            stacked = entering.view(bank.slots, -1, entering.shape[1])
            if kept.dropped is None:
                stacked.baddbmm_(low, a)
            else:
                stacked.add_(torch.bmm(low, a) * kept.dropped)


def _stacked_product(x: Tensor, merged: Tensor, start: Tensor | None, slots: int) -> Tensor:
    rows = x.view(slots, -1, x.shape[1])
    if start is None:
        return torch.bmm(rows, merged).view(-1, merged.shape[2])
    if start.ndim == 2:
        start = start.view(slots, -1, start.shape[1])
    return torch.baddbmm(start, rows, merged).view(-1, merged.shape[2])


def _stacked_back(gradient: Tensor, merged: Tensor, into: Tensor | None, slots: int) -> Tensor:
    rows, turned = gradient.view(slots, -1, gradient.shape[1]), merged.transpose(1, 2)
    if into is None:
        return torch.bmm(rows, turned).view(-1, merged.shape[1])
    into.view(slots, -1, into.shape[1]).baddbmm_(rows, turned)
    return into

"""One frozen linear map under the adapters of G lanes, forward and backward.

    y[g] = x[g] Wᵀ + bias + scale · (x[g] A[g]ᵀ) B[g]ᵀ          adapters that are trained
    y[g] = x[g] W'[g] + bias, W'[g] = Wᵀ + scale · A[g]ᵀ B[g]ᵀ   frozen ones, merged

Invariants: a lane sees its own rows alone; sums over the adapter and over what flows in from
elsewhere are made by the products themselves, in one order. No product has fewer than 8 rows of a
lane, nor an adapter a rank that is no multiple of 8: what is missing is zeros, whose results are
thrown away, because a row of a smaller product is rounded by how many there are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3t.model.adapters.lora import Bank, dropout_mask
from s3t.model.determinism import LEAST_ROWS, at_least, up_to_multiple

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
            return _stacked(x, merged, start, bank.lanes)
        if (lanes := self._short(x)) is not None:
            out = _stacked(x, product.turned.unsqueeze(0), start, lanes)
        elif start is None:
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
        """Gradient of the map's input, added to ``into``, in place or not; those of A and B are
        kept.

        Args:
            gradient: of the output, [R, outputs].
            into: a gradient that may be written to, [R, inputs].
            needed: whether the input's is; else an empty tensor is returned.
        """
        bank = self._bank
        if bank is not None and (merged := bank.merged.get(product.place)) is not None:
            return _stacked(gradient, merged.transpose(1, 2), into, bank.lanes, own=True)
        if not needed:
            out = gradient.new_empty(0)
        elif (lanes := self._short(gradient)) is not None:
            out = _stacked(gradient, product.weight.unsqueeze(0), into, lanes)
        elif into is None:
            out = torch.mm(gradient, product.weight)
        else:
            out = into.addmm_(gradient, product.weight)
        pair = product.leaves(bank)
        if bank is not None and pair:
            self._adapt_back(product, gradient, out if needed else None, bank, pair)
        return out

    def _short(self, x: Tensor) -> int | None:
        """The number of lanes, if each has fewer rows in ``x`` than round alike."""
        lanes = 1 if self._bank is None else self._bank.lanes
        return lanes if len(x) < LEAST_ROWS * lanes else None

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
        a, b = _padded(pair, x.dtype)
        rows = x.view(bank.lanes, -1, x.shape[1])
        dropped = None
        if bank.generators and bank.dropout:
            dropped = dropout_mask(rows, bank)
            rows = rows * dropped
        rows = at_least(rows)
        low = torch.bmm(rows, a.transpose(1, 2))
        _add(out.view(bank.lanes, -1, out.shape[1]), low, b.transpose(1, 2), bank.scale)
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
        a, b = _padded(pair, gradient.dtype)
        kept, rank = self._lows.pop(product.place), pair[0].shape[1]
        apart = at_least(gradient.view(bank.lanes, -1, gradient.shape[1]))
        low = torch.bmm(apart, b).mul_(bank.scale)
        if pair[0].requires_grad:
            found_b = torch.bmm(apart.transpose(1, 2), kept.low).mul_(bank.scale)[..., :rank]
            found_a = torch.bmm(low.transpose(1, 2), kept.rows)[:, :rank]
            self._found[product.place] = found_a.to(pair[0].dtype), found_b.to(pair[1].dtype)
        if entering is not None:
            stacked = entering.view(bank.lanes, -1, entering.shape[1])
            if kept.dropped is None:
                _add(stacked, low, a)
            else:
                stacked.add_(torch.bmm(low, a)[:, : stacked.shape[1]] * kept.dropped)


def _padded(pair: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A [G, r, inputs] and B [G, outputs, r], with zeros up to a rank that fills vectors."""
    return up_to_multiple(pair[0].to(dtype), 1), up_to_multiple(pair[1].to(dtype), 2)


def _add(into: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """Add the product of each lane to what it has of it, [G, n, N]; ``left`` may have more rows."""
    if left.shape[1] == into.shape[1]:
        into.baddbmm_(left, right, alpha=scale)
    else:
        into.add_(torch.bmm(left, right)[:, : into.shape[1]], alpha=scale)


def _stacked(
    x: Tensor, weights: Tensor, start: Tensor | None, lanes: int, own: bool = False
) -> Tensor:
    """x [G · n, K] times the weights [G, K, N] of each lane, or those [1, K, N] of all.

    Args:
        start: what it is added to, [G · n, N], or a bias [N].
        lanes: G.
        own: whether ``start`` may be written to.
    """
    rows, outputs = x.view(lanes, -1, x.shape[1]), weights.shape[2]
    if start is not None and start.ndim == 2:
        start = start.view(lanes, -1, outputs)
    if rows.shape[1] >= LEAST_ROWS:
        if start is None:
            return torch.bmm(rows, weights).view(-1, outputs)
        if own:
            return start.baddbmm_(rows, weights).view(-1, outputs)
        return torch.baddbmm(start, rows, weights).view(-1, outputs)
    few, rows = rows.shape[1], at_least(rows)
    if len(weights) == lanes:
        out = torch.bmm(rows, weights)
    else:
        out = torch.mm(rows.flatten(0, 1), weights[0]).view(lanes, -1, outputs)
    out = out[:, :few] if start is None else out[:, :few] + start
    return out.reshape(-1, outputs)

"""One frozen linear map under the adapters of G lanes, forward and backward.

    y[g] = x[g] Wᵀ + bias + scale · (x[g] A[g]ᵀ) B[g]ᵀ          adapters that are trained
    y[g] = x[g] W'[g] + bias, W'[g] = Wᵀ + scale · A[g]ᵀ B[g]ᵀ   frozen ones, merged

Invariants: a lane sees its own rows alone. What is added to a product (bias, residual, adapter) is
added by the product itself, in one order. A product has 8 rows or more of each lane, and a rank
that is a multiple of 8, because in smaller products the rounding of a row depends on the number of
rows. What is missing is filled up with zeros, whose results are dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3t.model.adapters.lora import Bank, dropout_mask
from s3t.model.determinism import LEAST_ROWS, at_least, up_to_multiple

__all__ = ["FrozenLinear", "LinearPass"]

_TRANSPOSED_BYTES = 2**20
"""Weights up to this are kept transposed as well: the forward product is then some 5 % faster."""


class FrozenLinear:
    """A linear map of the base: where it stands, and its weights."""

    def __init__(self, place: tuple[int, str], linear: nn.Linear) -> None:
        self.place, self._linear = place, linear
        self._transposed: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, [outputs, inputs]."""
        return self._linear.weight

    @property
    def bias(self) -> Tensor | None:
        """[outputs], or None."""
        return self._linear.bias

    @property
    def transposed(self) -> Tensor:
        """Wᵀ, [inputs, outputs]."""
        weight = self._linear.weight
        if weight.nbytes > _TRANSPOSED_BYTES:
            return weight.t()
        if self._transposed is None or self._transposed.device != weight.device:
            with torch.inference_mode(False), torch.no_grad():
                self._transposed = weight.t().contiguous()
        return self._transposed

    def unchanged(self) -> bool:
        """Whether the transposed copy is still the base's weight, transposed."""
        return self._transposed is None or torch.equal(self._transposed, self._linear.weight.t())

    def leaves(self, bank: Bank | None) -> tuple[Tensor, ...]:
        """A and B of this map in the bank; nothing if it has none, or a merged one."""
        return () if bank is None else tuple(bank.pairs.get(self.place, ()))


class _Low:
    """What one adapter's backward pass reads."""

    def __init__(self, rows: Tensor, dropped: Tensor | None, low: Tensor) -> None:
        self.rows, self.dropped, self.low = rows, dropped, low


class LinearPass:
    """One pass through the linear maps of a layer, with one bank."""

    def __init__(self, bank: Bank | None, keep: bool) -> None:
        self._bank, self._keep = bank, keep
        self._lows: dict[tuple[int, str], _Low] = {}
        self._found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def __call__(self, linear: FrozenLinear, x: Tensor, into: Tensor | None = None) -> Tensor:
        """The map's output [R, outputs] for x [R, inputs], added to ``into`` (left as it is)."""
        bank = self._bank
        merged = None if bank is None else bank.merged.get(linear.place)
        bias = linear.bias
        if into is None:
            start = None if bias is None else bias
        else:
            start = into if bias is None else into + bias
        if bank is not None and merged is not None:
            out = _stacked(x, merged, start, bank.lanes)
        elif (lanes := self._short(x)) is not None:
            out = _stacked(x, linear.transposed.unsqueeze(0), start, lanes)
        elif start is None:
            out = torch.mm(x, linear.transposed)
        elif into is not None and bias is not None:
            out = start.addmm_(x, linear.transposed)  # ``start`` is our own
        else:
            out = torch.addmm(start, x, linear.transposed)
        pair = linear.leaves(bank)
        if bank is not None and pair:
            self._adapt(linear, x, out, bank, pair)
        return out

    def back(
        self,
        linear: FrozenLinear,
        gradient: Tensor,
        into: Tensor | None = None,
        needed: bool = True,
    ) -> Tensor:
        """Gradient of the map's input, added to ``into``, in place or not; those of A and B are
        kept.

        Args:
            gradient: of the output, [R, outputs].
            into: a gradient that may be written to, [R, inputs].
            needed: whether the input's is; else an empty tensor is returned.
        """
        bank = self._bank
        if not needed:
            out = gradient.new_empty(0)
        elif bank is not None and (merged := bank.merged.get(linear.place)) is not None:
            out = _stacked(gradient, merged.transpose(1, 2), into, bank.lanes, own=True)
        elif (lanes := self._short(gradient)) is not None:
            out = _stacked(gradient, linear.weight.unsqueeze(0), into, lanes)
        elif into is None:
            out = torch.mm(gradient, linear.weight)
        else:
            out = into.addmm_(gradient, linear.weight)
        pair = linear.leaves(bank)
        if bank is not None and pair:
            self._adapt_back(linear, gradient, out if needed else None, bank, pair)
        return out

    def _short(self, x: Tensor) -> int | None:
        """The number of lanes, if each has fewer rows in ``x`` than round alike."""
        lanes = 1 if self._bank is None else self._bank.lanes
        return lanes if len(x) < LEAST_ROWS * lanes else None

    def trained(self, linear: FrozenLinear) -> bool:
        """Whether an adapter of this map wants its gradient."""
        return any(leaf.requires_grad for leaf in linear.leaves(self._bank))

    def gradients(self, linear: FrozenLinear) -> tuple[Tensor | None, ...]:
        """Gradients of the map's leaves after ``back``, in their order."""
        found = self._found.get(linear.place)
        return found if found is not None else (None,) * len(linear.leaves(self._bank))

    def _adapt(
        self, linear: FrozenLinear, x: Tensor, out: Tensor, bank: Bank, pair: tuple[Tensor, ...]
    ) -> None:
        a, b = _padded(pair, x.dtype)
        rows = x.view(bank.lanes, -1, x.shape[1])  # [G · n, K] → [G, n, K]
        dropped = None
        if bank.generators and bank.dropout:
            dropped = dropout_mask(rows, bank)
            rows = rows * dropped
        rows = at_least(rows)  # [G, m, K], m = 8 or more
        low = torch.bmm(rows, a.transpose(1, 2))  # [G, m, r]
        # [G · n, N] → [G, n, N], plus [G, m, r] × [G, r, N]
        _add(out.view(bank.lanes, -1, out.shape[1]), low, b.transpose(1, 2), bank.scale)
        if self._keep:
            self._lows[linear.place] = _Low(rows, dropped, low)

    def _adapt_back(
        self,
        linear: FrozenLinear,
        gradient: Tensor,
        entering: Tensor | None,
        bank: Bank,
        pair: tuple[Tensor, ...],
    ) -> None:
        a, b = _padded(pair, gradient.dtype)
        kept, rank = self._lows.pop(linear.place), pair[0].shape[1]
        apart = at_least(gradient.view(bank.lanes, -1, gradient.shape[1]))  # [G, m, N]
        low = torch.bmm(apart, b).mul_(bank.scale)  # [G, m, r]
        if pair[0].requires_grad:
            # [G, N, m] × [G, m, r] → [G, N, rank], and [G, r, m] × [G, m, K] → [G, rank, K]
            found_b = torch.bmm(apart.transpose(1, 2), kept.low).mul_(bank.scale)[..., :rank]
            found_a = torch.bmm(low.transpose(1, 2), kept.rows)[:, :rank]
            self._found[linear.place] = found_a.to(pair[0].dtype), found_b.to(pair[1].dtype)
        if entering is not None:
            stacked = entering.view(bank.lanes, -1, entering.shape[1])  # [G · n, K] → [G, n, K]
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
    rows, outputs = x.view(lanes, -1, x.shape[1]), weights.shape[2]  # [G · n, K] → [G, n, K]
    if start is not None and start.ndim == 2:
        start = start.view(lanes, -1, outputs)  # [G · n, N] → [G, n, N]
    if rows.shape[1] >= LEAST_ROWS:
        if start is None:
            return torch.bmm(rows, weights).view(-1, outputs)
        if own:
            return start.baddbmm_(rows, weights).view(-1, outputs)
        return torch.baddbmm(start, rows, weights).view(-1, outputs)
    few, rows = rows.shape[1], at_least(rows)  # [G, 8, K]
    if len(weights) == lanes:
        out = torch.bmm(rows, weights)
    else:
        out = torch.mm(rows.flatten(0, 1), weights[0]).view(lanes, -1, outputs)  # [G, 8, N]
    out = out[:, :few] if start is None else out[:, :few] + start
    return out.reshape(-1, outputs)  # [G, n, N] → [G · n, N]

"""The lattice of slice sets: the gain of training each further set, and the best chain to add.

              {0,1,2}            A trained set S of k slices covers every untouched set U ⊇ S: a
            ╱    │    ╲          shard with U untouched then serves k slices or more.
        {0,1}  {0,2}  {1,2}
          │  ╳    ╳  │           value of a tree   Σ_U law(U)·utility(longest set inside U)
         {0}    {1}   {2}        gain of S         (u_k − u_{k−1})·law{U ⊇ S: nothing of size k yet}
            ╲    │    ╱
                 ∅               A chain gains the sum over its sets, which differ in size.

Invariant: weights are whole multiples of 2^−40, so sums are exact in any order, and equal gains are
equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.untouched import Floats, contained, halves, set_sizes

__all__ = ["EXACT", "Coverage", "levels"]

EXACT = 14
"""Maximum number of slices for which all sets are computed; beyond, ``scenarios`` draws some."""

_UNIT = 2.0**40
Masks = npt.NDArray[np.intp]


@cache
def levels(slices: int) -> tuple[Masks, ...]:
    """The sets of 0, 1, … L slices, each as bit masks in ascending order."""
    sizes = set_sizes(slices)
    return tuple(np.flatnonzero(sizes == size) for size in range(slices + 1))


@cache
def _extensions(slices: int) -> tuple[Masks, ...]:
    """For each size k < L: each set of k slices with one more, [L − k, number of sets of size k].

    The slices that a set lacks are added in ascending order.
    """
    found = []
    for size, masks in enumerate(levels(slices)[:-1]):
        bits = np.arange(slices)
        lacking = (masks[:, None] >> bits & 1) == 0
        added = np.broadcast_to(bits, lacking.shape)[lacking].reshape(len(masks), slices - size)
        found.append(np.ascontiguousarray((masks[:, None] | 1 << added).T))
    return tuple(found)


class Coverage:
    """The untouched sets that a growing tree covers, and the gain of every further set.

    Attributes:
        slices: L.
        covered: [2^L], size of the longest trained set inside each untouched set.
        gains: [2^L], gain in value from training the set, if the chain below it is trained too.
    """

    def __init__(self, law: Floats, utility: Sequence[float]) -> None:
        """Start with no trained set.

        Args:
            law: [2^L], weight of each untouched set.
            utility: [L + 1], utility of a prefix of 0, 1, … L slices; must not fall.

        Raises:
            InputError: a utility that falls, or that does not fit the law.
        """
        self.slices = len(law).bit_length() - 1
        steps = np.diff(np.asarray(utility, dtype=np.float64))
        if len(steps) != self.slices or not (steps >= 0).all():
            raise InputError(
                f"utility {list(utility)}: expected {self.slices + 1} values that do not fall"
            )
        self._steps = steps
        self._worth = np.concatenate([[0.0], np.cumsum(steps)])
        self._weights = np.rint(law * _UNIT)
        self._sizes = set_sizes(self.slices)
        self.covered = np.zeros(1 << self.slices, dtype=np.uint8)
        self.gains = np.zeros(1 << self.slices)
        self._bias: Floats | None = None
        self._refresh(range(1, self.slices + 1))

    @property
    def value(self) -> float:
        """Expected utility above that of an empty prefix."""
        at = np.bincount(self.covered, weights=self._weights, minlength=self.slices + 1)
        return float(at @ self._worth) / _UNIT

    @property
    def bound(self) -> float:
        """``value`` if every set were trained, the maximum."""
        return float(self._weights @ self._worth[self._sizes]) / _UNIT

    def train(self, sets: Iterable[int]) -> None:
        """Add trained sets; the chain below each must be trained too, before or with it."""
        fresh = np.array(sorted(sets), dtype=np.intp)
        table = np.zeros_like(self.covered)
        table[fresh] = self._sizes[fresh]
        for without, with_ in halves(table):
            np.maximum(with_, without, out=with_)
        np.maximum(self.covered, table, out=self.covered)
        self._refresh(sorted({int(size) for size in self._sizes[fresh]}))

    def reset(self, sets: Iterable[int]) -> None:
        """Replace the trained sets by these."""
        self.covered[:] = 0
        self._refresh(range(1, self.slices + 1))
        if trained := list(sets):
            self.train(trained)

    def bias(self, factors: Floats | None) -> None:
        """Choose chains as if gains were multiplied by these factors, [2^L]; None for none.

        ``covered`` and ``value`` are not changed.
        """
        self._bias = factors

    def best_chain(
        self,
        starts: Iterable[int],
        blocked: Iterable[int] = (),
        *,
        price: Sequence[float] | None = None,
        deepest: int | None = None,
        whole: bool = False,
    ) -> tuple[float, int, tuple[int, ...]]:
        """The chain of new sets with the greatest gain less price, by a recursion over levels.

        Args:
            starts: sets from which a chain may start (0 is the empty set).
            blocked: sets that a chain may not enter, because they are trained already.
            price: [L], price of a set of 1, 2, … L slices; default 0.
            deepest: size of the largest set that a chain may reach; default L.
            whole: extend the chain to ``deepest`` even if that gains nothing.

        Returns:
            (gain less price, start, slices added in order). Ties go to the smallest slice number
            and the smallest start.
        """
        deepest = self.slices if deepest is None else deepest
        cost = [0.0] * self.slices if price is None else price
        ahead = np.zeros(1 << self.slices)  # of the best chain that goes on from each set
        from_here = self.gains * self._bias if self._bias is not None else self.gains.copy()
        from_here[np.array(sorted(blocked), dtype=np.intp)] = -np.inf
        masks, extensions = levels(self.slices), _extensions(self.slices)
        for size in range(deepest - 1, -1, -1):
            best = from_here[extensions[size]].max(axis=0) - cost[size]
            ahead[masks[size]] = best if whole else np.maximum(best, 0.0)
            from_here[masks[size]] += ahead[masks[size]]
        start = max(sorted(starts), key=lambda mask: ahead[mask])
        chain, mask = list[int](), start
        for size in range(int(self._sizes[start]), deepest):
            lacking = [c for c in range(self.slices) if not mask >> c & 1]
            c = max(lacking, key=lambda c: from_here[mask | 1 << c])
            if not whole and from_here[mask | 1 << c] - cost[size] <= 0:
                break
            chain.append(c)
            mask |= 1 << c
        return float(ahead[start]), start, tuple(chain)

    def _refresh(self, sizes: Iterable[int]) -> None:
        """Gains of all sets of these sizes, from what is covered now."""
        asked = list(sizes)
        if not asked:
            return
        left = np.where(self.covered < np.array(asked)[:, None], self._weights, 0.0)
        for size, sums in zip(asked, contained(left), strict=True):
            masks = levels(self.slices)[size]
            self.gains[masks] = sums[masks] * (self._steps[size - 1] / _UNIT)

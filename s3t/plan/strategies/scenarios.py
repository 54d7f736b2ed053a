"""Chains for many slices: gains over drawn scenarios instead of all 2^L sets.

    scenario    a moment of the horizon, and which slices are untouched then
    chain       from the root down, always to the slice that most of the scenarios still in reach
                have left, each counted by what it lacks; nodes trained already are walked through

Each chain is led by another part of the scenarios: led by the same ones it would soon fit them and
not the law they were drawn from. What it gains is counted over all of them.

Invariant: draws come from one fixed seed and are counted in whole numbers, so the same brief gives
the same chains everywhere. What is drawn chooses the tree; it never measures it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from s3t.plan.strategies.brief import Brief
from s3t.plan.survival.untouched import Floats

__all__ = ["grow"]

_DRAWS, _LEADING = 1 << 16, 1 << 12
"""Scenarios in all, and those that lead one chain."""
_DRAWN_CHAINS = 3
"""Chains in drawn order that are weighed against the led one: for very many slices alike, where
4,096 scenarios lead nowhere, one of them is often better."""
Prefix = tuple[int, ...]


def grow(brief: Brief, *, whole: bool) -> tuple[Prefix, ...]:
    """Leaves of a tree in which every slice set is trained once, chain by chain.

    Args:
        brief: with ``costs``, chains are cut where gain per cost is greatest and the whole stays
            within the budget; else there are at most ``budget`` leaves.
        whole: every chain goes on to all slices, and one set may be trained in several orders.
    """
    untouched = _drawn(brief)
    tree = _Tree(brief, untouched, whole)
    spent = 0.0
    while brief.costs is not None or len(tree.leaves()) < brief.budget:
        left = brief.budget - spent if brief.costs is not None else None
        options = [tree.worthwhile(*chain, left) for chain in tree.chains()]
        _, prefix, fresh, kept = max(options, key=lambda option: option[0])
        if not kept:
            break
        spent += sum(brief.node_costs[len(prefix) - fresh + at] for at in range(kept))
        tree.add(prefix[: len(prefix) - fresh + kept])
    return tree.leaves()


class _Tree:
    def __init__(self, brief: Brief, untouched: npt.NDArray[np.bool_], whole: bool) -> None:
        self._brief = brief
        self._untouched = untouched
        self._present = untouched.sum(axis=1)
        self._covered = np.zeros(len(untouched), dtype=np.int64)
        self._chains = 0
        self._draws = np.random.Generator(np.random.PCG64(1))
        self._rates = np.asarray(brief.scaled_rates)
        self._nodes: dict[Prefix, None] = {}
        self._sets: set[frozenset[int]] = set()
        self._whole = whole

    def leaves(self) -> tuple[Prefix, ...]:
        """Prefixes that no other one goes on from, in the order grown."""
        inner = {prefix[:-1] for prefix in self._nodes}
        return tuple(prefix for prefix in self._nodes if prefix not in inner)

    def chains(self) -> list[tuple[Prefix, int]]:
        """Chains from the root: one that is led, some drawn; how many of the last nodes are new."""
        return [self._led(), *(self._walked() for _ in range(_DRAWN_CHAINS))]

    def _walked(self) -> tuple[Prefix, int]:
        """A chain that takes slices in a drawn order, those that are hit less often earlier.

        Each slice draws log(u)·rate, and the greatest goes first: a slice with half the rate of
        another comes before it in two of three draws.
        """
        prefix: Prefix = ()
        fresh = 0
        score = np.log(self._draws.random(self._brief.slices)) * self._rates
        while len(prefix) < self._brief.slices:
            c = self._best(prefix, score)
            if c is None:
                break
            prefix = (*prefix, c)
            fresh += prefix not in self._nodes
        return prefix, fresh

    def _led(self) -> tuple[Prefix, int]:
        """A chain that always takes the slice for which the leading scenarios have most to gain."""
        part = slice(self._chains % (_DRAWS // _LEADING), None, _DRAWS // _LEADING)
        self._chains += 1
        # Whole numbers as floats: exact, and a matrix product of floats is the fast one.
        untouched = self._untouched[part].astype(np.float64)
        present, covered = self._present[part], self._covered[part]
        prefix: Prefix = ()
        rows, fresh = np.flatnonzero(present > covered), 0
        while len(prefix) < self._brief.slices:
            lacking = present[rows] - np.maximum(covered[rows], len(prefix))
            score = np.maximum(lacking, 0) @ untouched[rows]
            c = self._best(prefix, score)
            if c is None:
                break
            prefix = (*prefix, c)
            fresh += prefix not in self._nodes
            rows = rows[untouched[rows, c] > 0]
        return prefix, fresh

    def worthwhile(
        self, prefix: Prefix, fresh: int, left: float | None
    ) -> tuple[float, Prefix, int, int]:
        """How many of the new nodes to keep: up to the last that gains, or to the best ratio.

        Returns:
            (what is best: gain or ratio, the chain, new nodes in it, how many to keep).
        """
        worth = self._brief.worth
        gains, rows = [], np.flatnonzero(self._present > self._covered)
        for depth, c in enumerate(prefix, 1):
            rows = rows[self._untouched[rows, c]]
            gained = np.count_nonzero(self._covered[rows] < depth)
            gains.append((worth[depth] - worth[depth - 1]) * gained)
        known = len(prefix) - fresh
        if left is None:
            last = max((at for at in range(1, fresh + 1) if gains[known + at - 1] > 0), default=0)
            return sum(gains[known:]), prefix, fresh, fresh if self._whole else last
        kept, best, cost, gain = 0, 0.0, 0.0, 0.0
        for at in range(1, fresh + 1):
            cost += self._brief.node_costs[known + at - 1]
            gain += gains[known + at - 1]
            ratio = gain / cost
            if cost <= left + 1e-9 and ratio > best:
                kept, best = at, ratio
        return best, prefix, fresh, kept

    def add(self, prefix: Prefix) -> None:
        """Train a chain with all its prefixes."""
        rows = np.arange(len(self._untouched))
        for depth, c in enumerate(prefix, 1):
            rows = rows[self._untouched[rows, c]]
            self._nodes.setdefault(prefix[:depth])
            self._sets.add(frozenset(prefix[:depth]))
            self._covered[rows] = np.maximum(self._covered[rows], depth)

    def _best(self, prefix: Prefix, score: Floats) -> int | None:
        def open_(c: int) -> bool:
            longer = (*prefix, c)
            known = longer in self._nodes
            return known or self._whole or frozenset(longer) not in self._sets

        for c in np.argsort(-score, kind="stable").tolist():
            if c not in prefix and open_(c):
                return int(c)
        return None


def _drawn(brief: Brief) -> npt.NDArray[np.bool_]:
    """[draws, L], at moments spread evenly over the horizon."""
    generator = np.random.Generator(np.random.PCG64(0))
    moments = (np.arange(_DRAWS) + 0.5) / _DRAWS * brief.horizon
    rates = np.asarray(brief.scaled_rates)
    hit_by = generator.standard_exponential((_DRAWS, brief.slices))
    return hit_by > rates * moments[:, None]

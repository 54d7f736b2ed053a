"""Chains for many slices: gains are estimated over drawn scenarios instead of all 2^L sets.

    scenario    a moment of the horizon, and which slices are untouched then
    chain       from the root down, always to the slice that is untouched in most of the scenarios
                left, each weighted by what it lacks; it may pass through trained nodes

Each chain is chosen by another part of the scenarios; with the same ones for all it would soon fit
those scenarios and not their law. Its gain is counted over all scenarios.

Invariant: draws have one fixed seed and are counted in whole numbers, so a brief gives the same
chains on every machine. Draws only choose the tree; its figures are computed elsewhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from s3t.plan.strategies.brief import Brief
from s3t.plan.survival.untouched import Floats

__all__ = ["grow"]

_DRAWS, _LEADING = 1 << 16, 1 << 12
"""Number of scenarios, and of those that choose one chain."""
_DRAWN_CHAINS = 3
"""Number of chains in random order that are compared with the chosen one. For very many equal
slices 4,096 scenarios tell little, and one of these chains is often better."""
Prefix = tuple[int, ...]


def grow(brief: Brief, *, whole: bool) -> tuple[Prefix, ...]:
    """Grow a tree chain by chain, in which each slice set is trained once; returns its leaves.

    Args:
        brief: with ``costs``, each chain is cut where its gain per cost is greatest, and the tree
            stays within the budget; else it has at most ``budget`` leaves.
        whole: each chain goes on to all L slices, and a set may be trained in several orders.
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
        """Prefixes that no other prefix extends, in the order in which they were added."""
        inner = {prefix[:-1] for prefix in self._nodes}
        return tuple(prefix for prefix in self._nodes if prefix not in inner)

    def chains(self) -> list[tuple[Prefix, int]]:
        """One chosen chain and some drawn ones, each with the number of its last nodes that are
        new."""
        return [self._chosen(), *(self._random() for _ in range(_DRAWN_CHAINS))]

    def _random(self) -> tuple[Prefix, int]:
        """A chain in random order, in which slices that are hit less often tend to come first.

        Each slice draws log(u)·rate, and the greatest comes first: a slice with half the rate of
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

    def _chosen(self) -> tuple[Prefix, int]:
        """A chain that always takes the slice with the greatest gain in its part of the
        scenarios."""
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
        """Decide how many new nodes of a chain to keep: to the last that gains, or to the best
        ratio.

        Returns:
            the gain (or gain per cost), the chain, its number of new nodes, the number to keep.
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
        """Add a chain with all its prefixes."""
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
    """[draws, L], whether a slice is untouched, at times spread evenly over the horizon."""
    generator = np.random.Generator(np.random.PCG64(0))
    moments = (np.arange(_DRAWS) + 0.5) / _DRAWS * brief.horizon
    rates = np.asarray(brief.scaled_rates)
    hit_by = generator.standard_exponential((_DRAWS, brief.slices))
    return hit_by > rates * moments[:, None]

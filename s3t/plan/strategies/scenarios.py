"""Chains for many slices: gains over drawn scenarios instead of all 2^L sets.

    scenario    a moment of the horizon, and which slices are untouched then
    chain       from the root down, always to the slice that most of the scenarios still in reach
                have left, each counted by what it lacks; nodes trained already are walked through

Invariant: draws come from one fixed seed and are counted in whole numbers, so the same brief gives
the same chains everywhere. What is drawn chooses the tree; it never measures it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from s3t.plan.strategies.brief import Brief
from s3t.plan.survival.untouched import Floats

__all__ = ["grow"]

_DRAWS = 4096
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
        prefix, fresh = tree.descend()
        kept = tree.worthwhile(prefix, fresh, left)
        if not kept:
            break
        spent += sum(brief.node_costs[len(prefix) - fresh + at] for at in range(kept))
        tree.add(prefix[: len(prefix) - fresh + kept])
    return tree.leaves()


class _Tree:
    def __init__(self, brief: Brief, untouched: npt.NDArray[np.bool_], whole: bool) -> None:
        self._brief = brief
        # Whole numbers as floats: exact, and a matrix product of floats is the fast one.
        self._untouched = untouched.astype(np.float64)
        self._present = self._untouched.sum(axis=1)
        self._covered = np.zeros(len(untouched))
        self._nodes: dict[Prefix, None] = {}
        self._sets: set[frozenset[int]] = set()
        self._whole = whole

    def leaves(self) -> tuple[Prefix, ...]:
        """Prefixes that no other one goes on from, in the order grown."""
        inner = {prefix[:-1] for prefix in self._nodes}
        return tuple(prefix for prefix in self._nodes if prefix not in inner)

    def descend(self) -> tuple[Prefix, int]:
        """A chain from the root, and how many of its last nodes are new."""
        prefix: Prefix = ()
        rows = np.flatnonzero(self._present > self._covered)
        fresh = 0
        while len(prefix) < self._brief.slices:
            lacking = self._present[rows] - np.maximum(self._covered[rows], len(prefix))
            score = np.maximum(lacking, 0) @ self._untouched[rows]
            c = self._best(prefix, score)
            if c is None:
                break
            prefix = (*prefix, c)
            fresh += prefix not in self._nodes
            rows = rows[self._untouched[rows, c] > 0]
        return prefix, fresh

    def worthwhile(self, prefix: Prefix, fresh: int, left: float | None) -> int:
        """How many of the new nodes to keep: up to the last that gains, or to the best ratio."""
        if self._whole:
            return fresh
        worth = self._brief.worth
        gains, rows = [], np.flatnonzero(self._present > self._covered)
        for depth, c in enumerate(prefix, 1):
            rows = rows[self._untouched[rows, c] > 0]
            gained = np.count_nonzero(self._covered[rows] < depth)
            gains.append((worth[depth] - worth[depth - 1]) * gained)
        known = len(prefix) - fresh
        if left is None:
            return max((at for at in range(1, fresh + 1) if gains[known + at - 1] > 0), default=0)
        kept, best, cost, gain = 0, 0.0, 0.0, 0.0
        for at in range(1, fresh + 1):
            cost += self._brief.node_costs[known + at - 1]
            gain += gains[known + at - 1]
            ratio = gain / cost
            if cost <= left + 1e-9 and ratio > best:
                kept, best = at, ratio
        return kept

    def add(self, prefix: Prefix) -> None:
        """Train a chain with all its prefixes."""
        rows = np.arange(len(self._untouched))
        for depth, c in enumerate(prefix, 1):
            rows = rows[self._untouched[rows, c] > 0]
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
                return c if self._whole or score[c] > 0 else None
        return None


def _drawn(brief: Brief) -> npt.NDArray[np.bool_]:
    """[draws, L], at moments spread evenly over the horizon."""
    generator = np.random.Generator(np.random.PCG64(0))
    moments = (np.arange(_DRAWS) + 0.5) / _DRAWS * brief.horizon
    rates = np.asarray(brief.scaled_rates)
    hit_by = generator.standard_exponential((_DRAWS, brief.slices))
    return hit_by > rates * moments[:, None]

"""The set tree: each slice set is trained once, and branches end where more gains too little.

    cyclic, L = 3: 9 nodes, 18 slices       set tree: 7 nodes, 12 slices, the same protection
        0 ─ 01 ─ 012                            0 ─ 01 ─ 012
        1 ─ 12 ─ 120                            1 ─ 12
        2 ─ 20 ─ 201                            2 ─ 20

A prefix survives iff its set is untouched, so a second order of a set protects nothing more. The
tree is grown chain by chain: of all chains of new sets that start from a trained set (or from the
empty set), the one with the greatest gain per cost is added next. Then each branch in turn is
dropped and the tree grown again, as long as the value rises.

Source: this project (docs/design.md, "Why a set tree"): a greedy choice for a monotone coverage
within a budget. ``benchmarks/deletion_budget`` compares it with the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from s3t.plan.sequences import Sequences
from s3t.plan.strategies import scenarios
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.lattice import EXACT, Coverage
from s3t.plan.survival.untouched import Floats, set_sizes

__all__ = ["SetTree", "Step", "set_tree", "steps"]

Prefix = tuple[int, ...]
_SMALL, _SHAKES = 6, 64
"""Number of restarts of the search for up to 6 slices; half as many for each further slice."""
_BETTER = 1e-9
"""Smaller gains in value are ignored."""


@dataclass(frozen=True, slots=True)
class Step:
    """The tree after one more chain.

    Attributes:
        leaves: prefixes that no other prefix extends, in the order in which they were added.
        cost: cost of all nodes.
        value: expected utility above that of an empty prefix.
    """

    leaves: tuple[Prefix, ...]
    cost: float
    value: float


class SetTree:
    """A tree of prefixes that grows by chains. No two nodes have the same set of slices, whatever
    their order."""

    def __init__(self, law: Floats, utility: Sequence[float], costs: Sequence[float]) -> None:
        """Start with an empty tree.

        Args:
            law: [2^L], weight of each untouched set (``survival.untouched``).
            utility: [L + 1], utility of a prefix of 0, 1, … L slices.
            costs: [L], cost of a node of stage 1, 2, … L.
        """
        self._coverage = Coverage(law, utility)
        self._costs = tuple(float(cost) for cost in costs)
        self._prefix: dict[int, Prefix] = {0: ()}
        self.cost = 0.0

    @property
    def value(self) -> float:
        """Expected utility above that of an empty prefix."""
        return self._coverage.value

    @property
    def bound(self) -> float:
        """``value`` if every set were trained."""
        return self._coverage.bound

    @property
    def leaves(self) -> tuple[Prefix, ...]:
        """Prefixes that no other prefix extends, in the order in which they were added."""
        inner = {prefix[:-1] for prefix in self._prefix.values()}
        return tuple(p for p in self._prefix.values() if p and p not in inner)

    def extend_free(self, leaves: int) -> bool:
        """Add the chain with the greatest gain at any cost, within a number of leaves.

        Returns:
            False if no chain gains anything.
        """
        ends = self.leaves
        starts = self._prefix if len(ends) < leaves else [_mask(prefix) for prefix in ends]
        return self._add(*self._coverage.best_chain(starts, self._prefix)[1:])

    def extend(self, left: float) -> bool:
        """Add the chain with the greatest gain per cost that costs at most ``left``.

        The ratio is maximised by Dinkelbach's iteration: the best chain at one price per cost gives
        the next price, until no chain is better.

        Returns:
            False if no chain fits and gains.
        """
        best: tuple[int, Prefix] | None = None
        ratio = 0.0
        for deepest, starts in self._reach(left).items():
            while True:
                price = [ratio * cost for cost in self._costs]
                surplus, start, chain = self._coverage.best_chain(
                    starts, self._prefix, price=price, deepest=deepest
                )
                size = len(self._prefix[start])
                cost = sum(self._costs[size : size + len(chain)])
                if surplus <= 1e-15 or surplus / cost + ratio <= ratio:
                    break
                best, ratio = (start, chain), surplus / cost + ratio
        return best is not None and self._add(*best)

    def drop(self, leaf: Prefix) -> None:
        """Remove a leaf, and its ancestors that lead to no other leaf."""
        kept = {p for p in self._prefix.values() if p != leaf}
        while leaf and not any(p[: len(leaf)] == leaf for p in kept if p):
            del self._prefix[_mask(leaf)]
            self.cost -= self._costs[len(leaf) - 1]
            leaf = leaf[:-1]
            kept.discard(leaf)
        self._coverage.reset(mask for mask in self._prefix if mask)

    def bias(self, factors: Floats | None) -> None:
        """Choose chains as if gains were multiplied by these factors: [2^L], None for none."""
        self._coverage.bias(factors)

    def copy(self) -> dict[int, Prefix]:
        """A copy of the tree, for ``restore``."""
        return dict(self._prefix)

    def restore(self, prefixes: dict[int, Prefix]) -> None:
        """Set the tree back to a copy."""
        self._prefix = dict(prefixes)
        self.cost = sum(self._costs[len(p) - 1] for p in prefixes.values() if p)
        self._coverage.reset(mask for mask in prefixes if mask)

    def _reach(self, left: float) -> dict[int, list[int]]:
        """Where a chain of sets may start, by the size of the deepest set that can be paid for."""
        reach: dict[int, list[int]] = {}
        deepest = []
        for size in range(len(self._costs) + 1):
            end, cost = size, 0.0
            while end < len(self._costs) and cost + self._costs[end] <= left + 1e-9:
                cost += self._costs[end]
                end += 1
            deepest.append(end)
        for mask, prefix in self._prefix.items():
            if deepest[len(prefix)] > len(prefix):
                reach.setdefault(deepest[len(prefix)], []).append(mask)
        return reach

    def _add(self, start: int, chain: Prefix) -> bool:
        prefix, fresh = self._prefix[start], []
        for c in chain:
            prefix = (*prefix, c)
            fresh.append(_mask(prefix))
            self._prefix[fresh[-1]] = prefix
            self.cost += self._costs[len(prefix) - 1]
        if fresh:
            self._coverage.train(fresh)
        return bool(fresh)


def set_tree(brief: Brief) -> Sequences:
    """Grow a set tree within the budget of a brief; its leaves are the sequences.

    Within a number of sequences the chain with the greatest gain comes next, up to that many
    leaves; within a cost the one with the greatest gain per cost. Then branches are dropped and
    grown again while that helps. Nodes that gain nothing are left out, so there may be fewer
    leaves than asked for. Beyond ``lattice.EXACT`` slices gains are taken over drawn scenarios.

    Source: this project, see the module.
    """
    if brief.slices > EXACT:
        return scenarios.grow(brief, whole=False)
    tree = SetTree(brief.law, brief.worth, brief.node_costs)
    _fill(tree, brief)
    _exchange(tree, brief)
    for shake in range(_SHAKES >> max(0, brief.slices - _SMALL)):
        kept, value = tree.copy(), tree.value
        if value >= tree.bound - _BETTER:
            break
        _shake(tree, brief, shake)
        if tree.value <= value + _BETTER:
            tree.restore(kept)
    return tree.leaves


def _exchange(tree: SetTree, brief: Brief) -> None:
    """Drop each branch in turn and grow the tree again, as long as the value rises."""
    value = tree.value
    while True:
        before = value
        for leaf in tree.leaves:
            if leaf not in tree.leaves:
                continue  # grown on since the round began
            kept = tree.copy()
            tree.drop(leaf)
            _fill(tree, brief)
            if tree.value > value + _BETTER:
                value = tree.value
            else:
                tree.restore(kept)
        if value == before:
            return


def _shake(tree: SetTree, brief: Brief, number: int) -> None:
    """Drop several branches at once, grow others with randomly biased gains, then improve."""
    draws = np.random.Generator(np.random.PCG64(number))
    leaves = tree.leaves
    share = draws.uniform(0.2, 1.0)
    for leaf in leaves:
        if draws.random() < share:
            tree.drop(leaf)
    sizes = draws.uniform(-0.5, 0.5, brief.slices + 1)[set_sizes(brief.slices)]
    tree.bias(np.exp(sizes + draws.uniform(-0.2, 0.2, 1 << brief.slices)))
    _fill(tree, brief)
    tree.bias(None)
    _exchange(tree, brief)


def steps(brief: Brief) -> Iterator[Step]:
    """Yield the tree after each added chain, up to the brief's budget: rising cost and value.

    Args:
        brief: with ``costs``; up to ``lattice.EXACT`` slices.
    """
    tree = SetTree(brief.law, brief.worth, brief.node_costs)
    while tree.extend(brief.budget - tree.cost):
        yield Step(tree.leaves, tree.cost, tree.value)


def _fill(tree: SetTree, brief: Brief) -> None:
    """Grow until the budget is spent or no chain gains anything."""
    if brief.costs is None:
        while tree.extend_free(int(brief.budget)):
            pass
    else:
        while tree.extend(brief.budget - tree.cost):
            pass


def _mask(prefix: Prefix) -> int:
    return sum(1 << c for c in prefix)

"""The set tree: each slice set trained once, branches cut where they stop paying.

    cyclic, L = 3: 9 nodes, 18 slices       set tree: 7 nodes, 12 slices, the same protection
        0 ─ 01 ─ 012                            0 ─ 01 ─ 012
        1 ─ 12 ─ 120                            1 ─ 12
        2 ─ 20 ─ 201                            2 ─ 20

A prefix survives iff its set is untouched, so two orders of one set protect the same thing twice.
The tree is grown chain by chain: of all chains of new sets that start from a set trained already
(or from nothing) the one with the greatest gain per cost comes next. Then each branch in turn is
dropped and the tree grown again, as long as that helps.

Source: this project (docs/design.md, "Why a set tree"). Greedy choice of a monotone coverage within
a budget; measured against the optimum in benchmarks/deletion_budget.
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
"""Restarts of the search for up to 6 slices; half as many for each slice more."""
_BETTER = 1e-9
"""A smaller gain in value is not worth another tree."""


@dataclass(frozen=True, slots=True)
class Step:
    """The tree after one more chain.

    Attributes:
        leaves: the longest prefixes, in the order grown.
        cost: of all its nodes.
        value: expected utility above that of an empty prefix.
    """

    leaves: tuple[Prefix, ...]
    cost: float
    value: float


class SetTree:
    """A tree of slice sets that grows; every set in it is the prefix of exactly one node."""

    def __init__(self, law: Floats, utility: Sequence[float], costs: Sequence[float]) -> None:
        """An empty tree.

        Args:
            law: [2^L], weight of each untouched set (``survival.untouched``).
            utility: [L + 1], worth of a prefix of k slices.
            costs: [L], of a node of stage 1, 2, … L.
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
        """Prefixes that no other one goes on from, in the order grown."""
        inner = {prefix[:-1] for prefix in self._prefix.values()}
        return tuple(p for p in self._prefix.values() if p and p not in inner)

    def extend_free(self, leaves: int) -> bool:
        """Add the chain with the greatest gain, cost what it may, within a number of leaves."""
        ends = self.leaves
        starts = self._prefix if len(ends) < leaves else [_mask(prefix) for prefix in ends]
        return self._add(*self._coverage.best_chain(starts, self._prefix)[1:])

    def extend(self, left: float) -> bool:
        """Add the chain with the greatest gain per cost that ``left`` still pays for.

        The ratio is maximised by Dinkelbach's iteration: the best chain at a price per cost gives
        the next price, until no chain is worth more.

        Args:
            left: what the chain may cost at most.
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
        """Take out a leaf and the nodes that led to it alone."""
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
        """The tree as it is, for ``restore``."""
        return dict(self._prefix)

    def restore(self, prefixes: dict[int, Prefix]) -> None:
        """Go back to a copy."""
        self._prefix = dict(prefixes)
        self.cost = sum(self._costs[len(p) - 1] for p in prefixes.values() if p)
        self._coverage.reset(mask for mask in prefixes if mask)

    def _reach(self, left: float) -> dict[int, list[int]]:
        """By the deepest set that ``left`` pays for, the sets from which a chain may start."""
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
    """The set tree: its leaves, each the sequence that leads to it.

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
    """Drop each branch in turn and grow again, as long as the value gets better."""
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
    """Drop some branches at once, grow others with an eye that is a little off, then exchange."""
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
    """The tree after every chain, up to the brief's cost: a frontier of cost against value.

    Args:
        brief: with ``costs``; up to ``lattice.EXACT`` slices.
    """
    tree = SetTree(brief.law, brief.worth, brief.node_costs)
    while tree.extend(brief.budget - tree.cost):
        yield Step(tree.leaves, tree.cost, tree.value)


def _fill(tree: SetTree, brief: Brief) -> None:
    """Grow until the budget is spent or nothing gains any more."""
    if brief.costs is None:
        while tree.extend_free(int(brief.budget)):
            pass
    else:
        while tree.extend(brief.budget - tree.cost):
            pass


def _mask(prefix: Prefix) -> int:
    return sum(1 << c for c in prefix)

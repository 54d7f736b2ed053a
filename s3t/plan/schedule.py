"""Which prefix each shard serves after deletions. Pure: no I/O, no clock, no samples.

    slots hit ──outcome──► Outcome (nodes that die, new prefixes) ──apply──► Schedule

A node is *dead* if a slice of its prefix is hit; a purge removes it. It is *alive* if it and all
its ancestors are available and none is dead. Otherwise it is missing.

Invariant: the set of alive nodes only shrinks. So each shard's order of preference is fixed when
the schedule is made, its cursor only moves forward, and outcomes may be applied late, twice or in
any order. All deletions together take O(nodes), plus one step per deletion and shard hit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from s3t.errors import IntegrityError
from s3t.plan.trie import Forest, Node
from s3t.types import NodeKey, Slot

__all__ = ["Outcome", "Schedule", "ShardChange"]


@dataclass(frozen=True, slots=True)
class ShardChange:
    """The node that a shard serves before and after some hits, None for none; they may be equal."""

    shard: int
    before: Node | None
    after: Node | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The effect of some hits, or of some lost nodes, on a schedule.

    Attributes:
        slots: slots that were not hit before, sorted.
        died: keys of the nodes that were alive and no longer are, sorted. A missing node was not
            alive, so it is not listed; ``Schedule.dead`` lists it.
        changes: one for each shard that was hit or lost a node, by shard.
    """

    slots: tuple[Slot, ...]
    died: tuple[NodeKey, ...]
    changes: tuple[ShardChange, ...]


class Schedule:
    """The longest surviving prefix of each shard. Not thread-safe: the caller holds a lock."""

    def __init__(
        self,
        forest: Forest,
        shards: int,
        available: Collection[NodeKey],
        scores: Mapping[NodeKey, float],
        hits: Iterable[Slot] = (),
    ) -> None:
        """Order the alive nodes of each shard: greatest stage first, then greatest score, then key.

        Args:
            forest: all nodes of the plan.
            shards: m; a shard without nodes serves None.
            available: keys of the nodes whose files exist and were verified.
            scores: score on public validation rows, by key; NaN or no score counts as −inf.
            hits: slots that lost a sample.

        Raises:
            IntegrityError: a node or a hit lies in a shard that does not exist.
        """
        self._forest = forest
        self._shards = shards
        self._hits: set[Slot] = set()
        self._alive: list[set[NodeKey]] = [set() for _ in range(shards)]
        self._by_slot: dict[Slot, list[Node]] = {}
        available = frozenset(available)
        for node in forest.nodes:
            self._check_shard(node.shard)
            alive = self._alive[node.shard]
            if node.key in available and (node.parent is None or node.parent in alive):
                alive.add(node.key)
                self._by_slot.setdefault((node.shard, node.last), []).append(node)
        self._order = [
            sorted((forest[key] for key in alive), key=lambda node: _preference(node, scores))
            for alive in self._alive
        ]
        self._cursor = [0] * shards
        self._first_left = sum(1 for order in self._order for node in order if node.parent is None)
        self.apply(self.outcome(hits))

    @property
    def prefixes(self) -> tuple[Node | None, ...]:
        """The last node of the prefix that each shard serves, [m]; None for a shard without one."""
        return tuple(self._serving(shard, self._cursor[shard]) for shard in range(self._shards))

    @property
    def hits(self) -> frozenset[Slot]:
        """Every slot hit so far."""
        return frozenset(self._hits)

    @property
    def first_slices_left(self) -> int:
        """Number of (shard, first slice) whose node of stage 1 is alive."""
        return self._first_left

    @property
    def exhausted(self) -> bool:
        """Whether no shard has a surviving prefix."""
        return self._first_left == 0

    def alive(self, shard: int) -> frozenset[NodeKey]:
        """Keys of the shard's alive nodes."""
        return frozenset(self._alive[shard])

    def dead(self, shard: int) -> frozenset[NodeKey]:
        """Keys of the shard's dead nodes, available or not: those that a purge removes."""
        hit = {c for of, c in self._hits if of == shard}
        return frozenset(
            node.key for node in self._forest.of_shard(shard) if not hit.isdisjoint(node.prefix)
        )

    def is_alive(self, key: NodeKey) -> bool:
        """Whether the node is alive; False for a key outside the plan."""
        return key in self._forest and key in self._alive[self._forest[key].shard]

    def outcome(self, slots: Iterable[Slot]) -> Outcome:
        """The effect of hitting ``slots``. Changes nothing; ``apply`` does.

        Raises:
            IntegrityError: a slot of a shard that does not exist.
        """
        new = sorted({(int(shard), int(c)) for shard, c in slots} - self._hits)
        died: set[NodeKey] = set()
        for shard, c in new:
            self._check_shard(shard)
            for node in self._by_slot.get((shard, c), ()):
                self._kill(node, died)
        return self._decide(tuple(new), died, {shard for shard, _ in new})

    def without(self, keys: Iterable[NodeKey]) -> Outcome:
        """The effect of losing nodes whose files are missing or damaged, and their descendants.

        Changes nothing; ``apply`` does. The nodes stay lost until a new schedule is made.

        Raises:
            IntegrityError: a key outside the plan.
        """
        died: set[NodeKey] = set()
        touched: set[int] = set()
        for key in keys:
            if key not in self._forest:
                raise IntegrityError(f"node {key!r} is not in the plan: reload the run")
            node = self._forest[key]
            touched.add(node.shard)
            self._kill(node, died)
        return self._decide((), died, touched)

    def apply(self, outcome: Outcome) -> None:
        """Put an outcome into effect. It may come from an earlier state, or be applied twice."""
        self._hits.update(outcome.slots)
        for key in outcome.died:
            node = self._forest[key]
            if key in self._alive[node.shard]:
                self._alive[node.shard].remove(key)
                self._first_left -= node.parent is None
        for change in outcome.changes:
            self._cursor[change.shard] = self._advance(change.shard, frozenset())

    def _decide(self, slots: tuple[Slot, ...], died: set[NodeKey], touched: set[int]) -> Outcome:
        changes = tuple(
            ShardChange(
                shard,
                self._serving(shard, self._cursor[shard]),
                self._serving(shard, self._advance(shard, died)),
            )
            for shard in sorted(touched)
        )
        return Outcome(slots, tuple(sorted(died)), changes)

    def _kill(self, node: Node, died: set[NodeKey]) -> None:
        """Add the alive nodes of the node's subtree to ``died``."""
        alive, stack = self._alive[node.shard], [node]
        while stack:
            below = stack.pop()
            if below.key in alive and below.key not in died:  # no child of a dead node is alive
                died.add(below.key)
                stack.extend(self._forest.children(below.key))

    def _advance(self, shard: int, died: Collection[NodeKey]) -> int:
        order, alive, cursor = self._order[shard], self._alive[shard], self._cursor[shard]
        while cursor < len(order) and (order[cursor].key not in alive or order[cursor].key in died):
            cursor += 1
        return cursor

    def _serving(self, shard: int, cursor: int) -> Node | None:
        order = self._order[shard]
        return order[cursor] if cursor < len(order) else None

    def _check_shard(self, shard: int) -> None:
        if not 0 <= shard < self._shards:
            raise IntegrityError(
                f"shard {shard} does not exist, there are {self._shards}: "
                "ledger and plan do not belong together"
            )


def _preference(node: Node, scores: Mapping[NodeKey, float]) -> tuple[int, float, NodeKey]:
    score = scores.get(node.key, -math.inf)
    return (-node.stage, math.inf if math.isnan(score) else -score, node.key)

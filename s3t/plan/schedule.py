"""Which prefix each shard serves, as deletions come in. Pure: no I/O, no clock, no samples.

    slots hit ──outcome──► Outcome (what dies, what serves instead) ──apply──► state

A node is *alive* when it and all its ancestors are available and no slice of its prefix is hit,
*dead* when a slice of its prefix is hit (so its weights must go), else merely missing.

Invariant: alive nodes only become fewer. Hence each shard's order of preference is fixed at the
start, its cursor only moves forward, and outcomes may be applied late, twice or in any order. All
deletions together cost the number of nodes, plus one step per touched shard each.
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
    """What a touched shard serves, before and after; the same node when another one was hit."""

    shard: int
    before: Node | None
    after: Node | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What some hits, or some lost blocks, do to a schedule.

    Attributes:
        slots: newly hit (shard, slice), sorted; those hit before are left out.
        died: keys, sorted, that were alive before and no longer are. A node that was unavailable
            (itself or an ancestor) was not alive, so it is not among them; ``Schedule.dead``
            names it too.
        changes: one per touched shard, by shard.
    """

    slots: tuple[Slot, ...]
    died: tuple[NodeKey, ...]
    changes: tuple[ShardChange, ...]


class Schedule:
    """Per shard the longest surviving prefix. Not thread-safe: the caller holds the lock."""

    def __init__(
        self,
        forest: Forest,
        shards: int,
        available: Collection[NodeKey],
        scores: Mapping[NodeKey, float],
        hits: Iterable[Slot] = (),
    ) -> None:
        """Order every shard's alive nodes: greatest stage, then greatest score, then key.

        Args:
            forest: all nodes of the plan.
            shards: m; a shard without nodes serves None.
            available: keys whose weights are there and verified.
            scores: public validation score by key; a missing one (or NaN) counts as −inf.
            hits: slots that hold a deleted sample.

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
        """By shard, the last node of the prefix it serves, or None."""
        return tuple(self._serving(shard, self._cursor[shard]) for shard in range(self._shards))

    @property
    def hits(self) -> frozenset[Slot]:
        """Every slot hit so far."""
        return frozenset(self._hits)

    @property
    def first_slices_left(self) -> int:
        """Distinct (shard, first slice) that still carry a prefix."""
        return self._first_left

    @property
    def exhausted(self) -> bool:
        """No shard has a surviving prefix."""
        return self._first_left == 0

    def alive(self, shard: int) -> frozenset[NodeKey]:
        """Keys of the shard that can serve."""
        return frozenset(self._alive[shard])

    def dead(self, shard: int) -> frozenset[NodeKey]:
        """Keys of the shard whose lineage holds a hit slice, available or not: those to purge."""
        hit = {c for of, c in self._hits if of == shard}
        return frozenset(
            node.key for node in self._forest.of_shard(shard) if not hit.isdisjoint(node.prefix)
        )

    def is_alive(self, key: NodeKey) -> bool:
        """Whether the node can serve; False for a key outside the plan."""
        return key in self._forest and key in self._alive[self._forest[key].shard]

    def outcome(self, slots: Iterable[Slot]) -> Outcome:
        """What hitting ``slots`` would do. Changes nothing; ``apply`` does.

        Raises:
            IntegrityError: a slot of a shard that does not exist.
        """
        new = sorted({(int(shard), int(c)) for shard, c in slots} - self._hits)
        died: set[NodeKey] = set()
        for shard, c in new:
            self._check_shard(shard)
            for node in self._by_slot.get((shard, c), ()):
                self._fell(node, died)
        return self._decide(tuple(new), died, {shard for shard, _ in new})

    def without(self, keys: Iterable[NodeKey]) -> Outcome:
        """What losing ``keys`` (missing or corrupt weights) would do, with all that grew on them.

        Changes nothing; ``apply`` does. They stay lost until a new schedule is made.

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
            self._fell(node, died)
        return self._decide((), died, touched)

    def apply(self, outcome: Outcome) -> None:
        """Make an outcome true. An outcome from an earlier state, or a second time, is fine."""
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

    def _fell(self, node: Node, died: set[NodeKey]) -> None:
        """Add what is still alive of the node's subtree; below a dead node nothing is."""
        alive, stack = self._alive[node.shard], [node]
        while stack:
            fallen = stack.pop()
            if fallen.key in alive and fallen.key not in died:
                died.add(fallen.key)
                stack.extend(self._forest.children(fallen.key))

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

"""What is left to train, and which of it next. Plain bookkeeping: no store, no clock, no torch.

    (0) ── 3 ──► (0,1) ── 5 ──► (0,1,2)       a node is worth the longest chain that begins with
     8            5             3             it, so what ends last begins first

Ready is a node that is missing, that no deletion has hit, whose parent is there, and that no worker
has. A unit is nodes of one stage, to be trained stacked.

Invariant: a node that a deletion has hit is never handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from s3t.plan.trie import Forest, Node
from s3t.types import NodeKey, Slot

__all__ = ["ReadyNodes"]


class ReadyNodes:
    """The nodes of a forest, as they are trained.

    Args:
        forest: all nodes.
        cost: time that a node takes, in any unit.
        most: nodes of a unit at most.
    """

    def __init__(self, forest: Forest, cost: Callable[[Node], int], most: int) -> None:
        self.forest, self.most = forest, most
        self.cost = {node.key: cost(node) for node in forest}
        self.chain: dict[NodeKey, int] = {}
        for node in sorted(forest, key=lambda node: -node.stage):
            longest = max((self.chain[child.key] for child in forest.children(node.key)), default=0)
            self.chain[node.key] = self.cost[node.key] + longest
        ranked = sorted(forest, key=lambda node: (-self.chain[node.key], -node.samples, node.key))
        self._left = {node.key: node for node in ranked}
        self._there: set[NodeKey] = set()
        self._held: set[NodeKey] = set()

    @property
    def left(self) -> Collection[NodeKey]:
        """Nodes that are neither there nor hit, the longest chain first."""
        return self._left.keys()

    def mark(self, there: Iterable[NodeKey], hits: Collection[Slot]) -> list[NodeKey]:
        """Take note of the nodes that are there and of the slots hit; returns what came to be."""
        self._there = {*there}
        came = [key for key in self._left if key in self._there]
        dead = [key for key, node in self._left.items() if node.is_hit(hits)]
        for key in {*came, *dead}:
            del self._left[key]
        return came

    def hold(self, keys: Iterable[NodeKey]) -> None:
        """Nodes that a worker of this process has."""
        self._held.update(keys)

    def free(self, keys: Iterable[NodeKey]) -> None:
        """Nodes that it no longer has."""
        self._held.difference_update(keys)

    def unit(
        self, stage: int | None, away: Collection[NodeKey], idle: int, workers: int
    ) -> list[NodeKey]:
        """What a worker should train next; nothing if nothing is ready.

        Args:
            stage: the stage of its last unit, of which it holds the trunk's output.
            away: nodes that other processes have.
            idle: workers that have no unit, this one included.
            workers: all workers.
        """
        ready = [node for node in self._left.values() if self._is_ready(node, away)]
        if not ready:
            return []
        fair = sum(self.cost[key] for key in self._left) / workers
        chosen = ready[0].stage
        # While there is more for every worker than the longest chain, any order ends as soon.
        if self.chain[ready[0].key] * 2 < fair and any(node.stage == stage for node in ready):
            assert stage is not None
            chosen = stage
        alike = [node for node in ready if node.stage == chosen]
        return self._stack(alike, -(-len(alike) // idle), fair)

    def _is_ready(self, node: Node, away: Collection[NodeKey]) -> bool:
        return (
            (node.parent is None or node.parent in self._there)
            and node.key not in self._held
            and node.key not in away
        )

    def _stack(self, nodes: Sequence[Node], most: int, fair: float) -> list[NodeKey]:
        """The first nodes, as many as leave all others enough to do."""
        unit, total = [nodes[0].key], self.cost[nodes[0].key]
        for node in nodes[1 : min(self.most, most)]:
            total += self.cost[node.key]
            if total > fair:
                break
            unit.append(node.key)
        return unit

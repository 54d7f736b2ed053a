"""The forest of nodes: one trie of prefixes for each shard. Only this module uses networkx.

    shard 0, sequences (0,1,2) and (0,2,1)

        (0) ──► (0,1) ──► (0,1,2)
         └────► (0,2) ──► (0,2,1)         a prefix that is shared is one node, trained once

Invariant: a Forest is complete and immutable. Each parent is in it, in the same shard, with the
prefix that is one slice shorter; no key and no (shard, prefix) occurs twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from s3t.errors import IntegrityError
from s3t.types import Digest, NodeKey, Slot

__all__ = ["Forest", "Node", "prefixes"]


@dataclass(frozen=True, slots=True)
class Node:
    """One prefix of one shard: what its last stage trains, the block and the head.

    Attributes:
        key: digest of all that the node has seen (``lineage.node_key``).
        parent: key of the node whose prefix is one slice shorter; None at stage 1.
        shard: shard number, from 0.
        prefix: slice numbers, in the order in which they are learnt.
        samples: number of samples trained on at this stage.
        passes: samples × epochs.
        bytes: size of the node's weights in bytes.
        environment: digest of the environment that trains the node; empty if that is not decided.
    """

    key: NodeKey
    parent: NodeKey | None
    shard: int
    prefix: tuple[int, ...]
    samples: int
    passes: int
    bytes: int
    environment: Digest = Digest("")

    @property
    def stage(self) -> int:
        """Number of the stage that trains this node, from 1: the length of the prefix."""
        return len(self.prefix)

    @property
    def last(self) -> int:
        """The slice that this stage adds."""
        return self.prefix[-1]

    def is_hit(self, hits: Collection[Slot]) -> bool:
        """Whether one of these slots is a slice of the prefix."""
        return any((self.shard, part) in hits for part in self.prefix)


class Forest:
    """All nodes of all shards, in the order (shard, prefix): a parent before its children."""

    __slots__ = ("_by_key", "_by_shard", "_children", "_graph", "_nodes")

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Sort, check and link the nodes.

        Raises:
            IntegrityError: a key or prefix twice, an empty prefix, or a parent that does not fit.
        """
        self._nodes = tuple(sorted(nodes, key=lambda node: (node.shard, node.prefix)))
        self._by_key = {node.key: node for node in self._nodes}
        self._check()
        self._graph: nx.DiGraph[NodeKey] = nx.DiGraph()
        self._graph.add_nodes_from(self._by_key)
        self._graph.add_edges_from(
            (node.parent, node.key) for node in self._nodes if node.parent is not None
        )
        shards: dict[int, list[Node]] = {}
        for node in self._nodes:
            shards.setdefault(node.shard, []).append(node)
        self._by_shard = {shard: tuple(found) for shard, found in shards.items()}
        self._children = {
            key: tuple(self._by_key[child] for child in self._graph.successors(key))
            for key in self._by_key
        }

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, sorted by (shard, prefix)."""
        return self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __getitem__(self, key: NodeKey) -> Node:
        return self._by_key[key]

    def __eq__(self, other: object) -> bool:
        return self._nodes == other._nodes if isinstance(other, Forest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._nodes)

    def __repr__(self) -> str:
        return f"Forest({len(self._nodes)} nodes, {len(self._by_shard)} shards)"

    def of_shard(self, shard: int) -> tuple[Node, ...]:
        """Nodes of one shard, sorted by prefix; empty for a shard without nodes."""
        return self._by_shard.get(shard, ())

    def roots(self, shard: int) -> tuple[Node, ...]:
        """Nodes of stage 1 of one shard, sorted by prefix."""
        return tuple(node for node in self.of_shard(shard) if node.parent is None)

    def children(self, key: NodeKey) -> tuple[Node, ...]:
        """Nodes whose parent is ``key``, sorted by prefix."""
        return self._children[key]

    def lineage(self, key: NodeKey) -> tuple[Node, ...]:
        """The nodes from stage 1 to ``key``, itself included: their blocks serve together.

        Raises:
            KeyError: a key that is not in the forest.
        """
        path = [self._by_key[key]]
        while (parent := path[-1].parent) is not None:
            path.append(self._by_key[parent])
        return tuple(reversed(path))

    def subtree(self, key: NodeKey) -> tuple[Node, ...]:
        """``key`` and all its descendants, sorted by prefix."""
        keys = nx.descendants(self._graph, key) | {key}
        return tuple(node for node in self.of_shard(self._by_key[key].shard) if node.key in keys)

    def stages(self) -> list[tuple[Node, ...]]:
        """Nodes by stage, from stage 1, each sorted by (shard, prefix).

        Nodes of one stage do not depend on each other.
        """
        generations: list[tuple[Node, ...]] = []
        for keys in nx.topological_generations(self._graph):
            chosen = sorted(
                (self._by_key[key] for key in keys), key=lambda node: (node.shard, node.prefix)
            )
            generations.append(tuple(chosen))
        return generations

    def _check(self) -> None:
        if len(self._by_key) < len(self._nodes):
            raise IntegrityError("the plan holds the same node key twice")
        if len({(node.shard, node.prefix) for node in self._nodes}) < len(self._nodes):
            raise IntegrityError("the plan holds two nodes for the same shard and prefix")
        for node in self._nodes:
            name = f"node {node.key!r} (shard {node.shard}, prefix {list(node.prefix)})"
            if not node.prefix or len(set(node.prefix)) < len(node.prefix):
                raise IntegrityError(f"{name}: the prefix is empty or repeats a slice")
            if (node.parent is None) != (node.stage == 1):
                raise IntegrityError(f"{name}: exactly the nodes of stage 1 have no parent")
            if node.parent is None:
                continue
            parent = self._by_key.get(node.parent)
            if parent is None:
                raise IntegrityError(f"{name}: its parent {node.parent!r} is not in the plan")
            # Each parent is one shorter, so there can be no cycle.
            if (parent.shard, parent.prefix) != (node.shard, node.prefix[:-1]):
                raise IntegrityError(
                    f"{name}: its parent is shard {parent.shard}, prefix {list(parent.prefix)}"
                )


def prefixes(sequences: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """The distinct non-empty prefixes of all sequences, sorted, so parents come before children."""
    return sorted(
        {tuple(sequence[:stage]) for sequence in sequences for stage in range(1, len(sequence) + 1)}
    )

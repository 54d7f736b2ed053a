"""Which nodes are dead: all but those that live in the plan in force or in the newest one.

A node lives while no slice of its lineage is hit by a deletion.

Invariant: a node that a plan wants and no deletion has hit is never called dead.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from s3t.ledger import Ledger
from s3t.run import RunDir
from s3t.types import NodeKey

__all__ = ["RemovableNodes", "is_dead", "kept_nodes", "removable_nodes"]


@dataclass(frozen=True, slots=True)
class RemovableNodes:
    """Keys of dead nodes.

    Attributes:
        keys: of all that must not be readable any more.
        there: of those that lie in the store or beside it.
        kept: of the nodes that live.
    """

    keys: frozenset[NodeKey]
    there: frozenset[NodeKey]
    kept: frozenset[NodeKey]


def is_dead(nodes: Collection[NodeKey] | None, kept: Collection[NodeKey]) -> bool:
    """Whether a copy of nodes must go: one of them is not kept, or it is unknown which it holds.

    Args:
        nodes: all whose weights are in it; None or empty if that is unknown.
        kept: see ``kept_nodes``.
    """
    return not nodes or not all(node in kept for node in nodes)


def kept_nodes(run: RunDir, ledger: Ledger) -> frozenset[NodeKey]:
    """Nodes that live in the plan in force, or are wanted by the newest plan; all others must go.

    Raises:
        IntegrityError: a plan is damaged.
    """
    return _kept(run, ledger)[0]


def _kept(run: RunDir, ledger: Ledger) -> tuple[frozenset[NodeKey], frozenset[NodeKey]]:
    """Keys of the nodes that live, and of all in these plans."""
    kept: set[NodeKey] = set()
    known: set[NodeKey] = set()
    plan, state = run.plans.find(lambda: ledger.plans.in_force().plan), ledger.plans.in_force()
    found, newest = [(plan, state)], ledger.plans.newest()
    if (newest.plan, newest.hits) != (plan.digest, state.hits):  # a repair is under way
        newer = run.plans.find(lambda: ledger.plans.newest().plan)
        found.append((newer, ledger.plans.newest()))
    for plan, state in found:
        hits = set(state.hits)
        for node in plan.forest:
            known.add(node.key)
            if not node.is_hit(hits):
                kept.add(node.key)
    return frozenset(kept), frozenset(known)


def removable_nodes(run: RunDir, ledger: Ledger) -> RemovableNodes:
    """All nodes that the run knows, planned or stored, but those that are kept."""
    kept, planned = _kept(run, ledger)
    there = run.store.traces()
    known = planned | set(ledger.plans.nodes()) | there
    return RemovableNodes(frozenset(known - kept), frozenset(there - kept), kept)

"""Plans of a run, one generation after the other, and the nodes that were trained for them.

    generation 0 ─ deletions ─► repair: generation 1, of the samples left at view v ─► …

    slots hit for a generation = those hit after its view

Invariant: a plan is put in force, and nodes are announced, in one transaction with a new view. So
a process that looks at the view alone learns of all that changes what may be served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from s3t.ledger.database import schema
from s3t.ledger.database.schema import nodes
from s3t.ledger.log.state import Generation, LogState
from s3t.types import Digest, NodeKey, Slot, digest

__all__ = [
    "LedgerState",
    "Witnessed",
    "add_view",
    "forget_nodes",
    "newest",
    "nodes_digest",
    "rescore",
    "state",
    "witness",
    "witnessed",
]


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What decides what may be served, at one moment.

    Attributes:
        view: changes with each deletion that takes a sample, plan in force, and new nodes.
        generation: number of the plan in force; 0 as well where there is none yet.
        plan: its digest, None in that case.
        plan_view: the plan is of the samples left at this view.
        nodes_view: view at which nodes were last announced.
        hits: slots hit, for the plan, after the view from which on was asked; sorted.
    """

    view: int
    generation: int
    plan: Digest | None
    plan_view: int
    nodes_view: int
    hits: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What the ledger holds of a node.

    Attributes:
        weights: digest of its tensors, as its trainer saw them.
        score: on public rows, higher is better.
        rows: digest of those rows.
        evidence: digest of what it says of them; None if that was not there.
    """

    weights: Digest
    score: float
    rows: Digest
    evidence: Digest | None = None


def state(log: LogState, known: LedgerState | None = None) -> LedgerState:
    """What may be served, as the log says, with the hits that are new to who knows ``known``."""
    return _state(log, [one for one in log.generations if one.in_force is not None], known)


def newest(log: LogState) -> LedgerState:
    """The state as if the newest plan were in force."""
    return _state(log, log.generations)


def _state(
    log: LogState, made: Sequence[Generation], known: LedgerState | None = None
) -> LedgerState:
    last = made[-1] if made else Generation(0, None, 0, None)
    same = known is not None and (known.generation, known.plan) == (last.number, last.digest)
    after = max(last.view, known.view) if same and known else last.view
    return LedgerState(
        view=log.view,
        generation=last.number,
        plan=last.digest,
        plan_view=last.view,
        nodes_view=log.nodes_view,
        hits=tuple(sorted(slot for slot, view in log.hits.items() if view > after)),
    )


def add_view(connection: sa.Connection, log: LogState) -> int:
    """Count the view up; returns the new one. The caller's entry of the log has to tell it."""
    view = log.view + 1
    schema.set_value(connection, "view", str(view))
    return view


def witness(connection: sa.Connection, seen: Mapping[NodeKey, Witnessed]) -> int:
    """Write down nodes that are not yet; returns how many were new."""
    fresh = sorted(seen.keys() - witnessed(connection).keys())
    if fresh:
        values = [{"key": key, **asdict(seen[key])} for key in fresh]
        connection.execute(sa.insert(nodes), values)
    return len(fresh)


def rescore(connection: sa.Connection, seen: Mapping[NodeKey, Witnessed]) -> None:
    """Give nodes the scores and the evidence that they have of other public rows."""
    statement = sa.update(nodes).where(nodes.c.key == sa.bindparam("node"))
    values = [
        {"node": key, "score": one.score, "rows": one.rows, "evidence": one.evidence}
        for key, one in seen.items()
    ]
    if values:
        connection.execute(statement, values)


def witnessed(connection: sa.Connection) -> dict[NodeKey, Witnessed]:
    """What is known of every node, by key."""
    found = connection.execute(sa.select(nodes))
    return {row.key: Witnessed(row.weights, row.score, row.rows, row.evidence) for row in found}


def forget_nodes(connection: sa.Connection, keys: list[NodeKey]) -> None:
    """Strike nodes out that are no more."""
    if keys:
        statement = sa.delete(nodes).where(nodes.c.key == sa.bindparam("gone"))
        connection.execute(statement, [{"gone": key} for key in keys])


def nodes_digest(seen: Mapping[NodeKey, Witnessed]) -> Digest:
    """One digest over nodes, their weights, scores and evidence."""
    rows = sorted(seen.items())
    return digest([[key, one.weights, one.score, one.rows, one.evidence] for key, one in rows])

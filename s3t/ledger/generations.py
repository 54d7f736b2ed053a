"""Plans of a run, one generation after the other, and the nodes that were trained for them.

    generation 0 ─ deletions ─► repair: generation 1, of the samples left at view v ─► …

    slots hit for a generation = those hit after its view

Invariant: a plan is put in force, and nodes are announced, in one transaction with a new view. So
whoever looks at the view alone learns of everything that changes what may be served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from s3t.ledger.schema import nodes, plans, run
from s3t.types import Digest, NodeKey, Slot, digest

__all__ = [
    "Generation",
    "State",
    "Witnessed",
    "add_view",
    "forget_nodes",
    "generations",
    "newest",
    "nodes_digest",
    "propose",
    "put_in_force",
    "rescore",
    "state",
    "witness",
    "witnessed",
]

_NOW = sa.text(
    "SELECT view.value AS view, came.value AS nodes_view, p.generation, p.digest, "
    "p.view AS plan_view FROM run AS view "
    "LEFT JOIN run AS came ON came.key = 'nodes_view' "
    "LEFT JOIN plans AS p ON p.generation = "
    "(SELECT MAX(generation) FROM plans WHERE in_force IS NOT NULL) "
    "WHERE view.key = 'view'"
)
_HITS_AFTER = sa.text("SELECT shard, slice FROM hits WHERE view > :after")


@dataclass(frozen=True, slots=True)
class Generation:
    """A plan that was made.

    Attributes:
        number: from 0.
        digest: of the plan.
        view: it was made of the samples left at this view.
        in_force: view since which it is served; None while its nodes are trained first.
    """

    number: int
    digest: Digest
    view: int
    in_force: int | None


@dataclass(frozen=True, slots=True)
class State:
    """What decides what may be served, at one moment.

    Attributes:
        view: changes with each deletion that takes a sample, plan in force, and new nodes.
        generation: number of the plan in force; 0 as well where an older s3t wrote none down.
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
    """

    weights: Digest
    score: float
    rows: Digest


def state(connection: sa.Connection, known: State | None = None) -> State:
    """The state now, with the hits that are new to who knows ``known``."""
    row = connection.execute(_NOW).one()
    view, generation, plan_view = int(row.view), row.generation or 0, row.plan_view or 0
    same = known is not None and (known.generation, known.plan) == (generation, row.digest)
    after = max(plan_view, known.view) if same and known else plan_view
    found = connection.execute(_HITS_AFTER, {"after": after}) if view > after else ()
    return State(
        view=view,
        generation=generation,
        plan=row.digest,
        plan_view=plan_view,
        nodes_view=int(row.nodes_view or 0),
        hits=tuple(sorted((shard, part) for shard, part in found)),
    )


def newest(connection: sa.Connection) -> State:
    """The state as if the newest plan were in force."""
    now, made = state(connection), generations(connection)
    if not made or made[-1].number == now.generation:
        return now
    last = made[-1]
    found = connection.execute(_HITS_AFTER, {"after": last.view})
    hits = tuple(sorted((shard, part) for shard, part in found))
    return State(now.view, last.number, last.digest, last.view, now.nodes_view, hits)


def generations(connection: sa.Connection) -> list[Generation]:
    """All plans, the oldest first."""
    query = sa.select(plans).order_by(plans.c.generation)
    return [Generation(*row) for row in connection.execute(query)]


def propose(connection: sa.Connection, plan: Digest, view: int) -> int:
    """Write a plan down that is not yet served; returns its number.

    The newest one again if that is the same plan, of whatever view.
    """
    known = generations(connection)
    if known and known[-1].digest == plan:
        return known[-1].number
    number = known[-1].number + 1 if known else 0
    connection.execute(sa.insert(plans).values(generation=number, digest=plan, view=view))
    return number


def put_in_force(connection: sa.Connection, number: int, view: int) -> None:
    """Serve a plan from ``view`` on."""
    connection.execute(sa.update(plans).where(plans.c.generation == number).values(in_force=view))


def add_view(connection: sa.Connection, *, nodes_came: bool = False) -> int:
    """Count the view up; returns the new one."""
    row = connection.execute(
        sa.select(run.c.value).where(run.c.key == "view").with_for_update()
    ).scalar_one()
    view = int(row) + 1
    keys = ["view", "nodes_view"] if nodes_came else ["view"]
    connection.execute(sa.update(run).where(run.c.key.in_(keys)).values(value=str(view)))
    return view


def witness(connection: sa.Connection, seen: Mapping[NodeKey, Witnessed]) -> int:
    """Write down nodes that are not yet; returns how many were new."""
    fresh = sorted(seen.keys() - witnessed(connection).keys())
    if fresh:
        values = [{"key": key, **asdict(seen[key])} for key in fresh]
        connection.execute(sa.insert(nodes), values)
    return len(fresh)


def rescore(connection: sa.Connection, scores: Mapping[NodeKey, float], rows: Digest) -> None:
    """Give nodes the scores that they have on other public rows."""
    statement = sa.update(nodes).where(nodes.c.key == sa.bindparam("node"))
    values = [{"node": key, "score": score, "rows": rows} for key, score in scores.items()]
    if values:
        connection.execute(statement, values)


def witnessed(connection: sa.Connection) -> dict[NodeKey, Witnessed]:
    """What is known of every node, by key."""
    found = connection.execute(sa.select(nodes))
    return {row.key: Witnessed(row.weights, row.score, row.rows) for row in found}


def forget_nodes(connection: sa.Connection, keys: list[NodeKey]) -> None:
    """Strike nodes out that are no more."""
    if keys:
        statement = sa.delete(nodes).where(nodes.c.key == sa.bindparam("gone"))
        connection.execute(statement, [{"gone": key} for key in keys])


def nodes_digest(seen: Mapping[NodeKey, Witnessed]) -> Digest:
    """One digest over nodes, their weights and their scores."""
    return digest([[key, one.weights, one.score, one.rows] for key, one in sorted(seen.items())])

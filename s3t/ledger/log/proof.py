"""The ledger proves itself: what its tables say of who was deleted, held against its log.

    log, from its first entry ──► deletions by view: keyed hashes ─┐
    samples with a mark, all rows looked at ───────────────────────┼──► the same, or IntegrityError
    samples, every row ──► the digest that the log holds ──────────┤
    forgotten ──► rows by view, and the digest that the log holds ─┤
    nodes ──► the digest that the log holds ───────────────────────┘

Invariant: no index is asked who was deleted: an index may lack what its table has. A row that came
to another place, or to another person, is found before a deletion goes by it, and before a purge
has the log commit to what is left.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import sqlalchemy as sa

from s3t.errors import IntegrityError
from s3t.ledger import generations
from s3t.ledger.database.schema import forgotten, requests, samples
from s3t.ledger.log.chain import LogEntry
from s3t.ledger.log.state import LogState, Secrets, fold
from s3t.ledger.samples import counters, purging, registry

__all__ = ["prove"]

_MARKED = sa.select(samples.c.sample_id, samples.c.deleted_view).where(
    samples.c.deleted_view.is_not(None)
)
_PURGED = (
    sa.select(forgotten.c.view, sa.func.count())
    .where(forgotten.c.shard >= 0)  # others were never
    .group_by(forgotten.c.view)  # registered here
)
_REQUESTS = sa.select(
    requests.c.number,
    requests.c.request_id,
    requests.c.view,
    requests.c.created_at,
    requests.c.effective,
)
_RESTORE = "nothing is served or trained from it; restore the ledger from a copy"


def prove(connection: sa.Connection, secrets: Secrets, name: str) -> None:
    """Hold the tables against the log.

    Takes a look at every row of ``samples``, and time and memory that grow with the deletions made.

    Raises:
        IntegrityError: they contradict each other.
    """
    told: dict[str, int] = {}
    made: dict[int, tuple[Any, ...]] = {}
    planned = sealed = 0

    def each(entry: LogEntry) -> None:
        nonlocal planned, sealed
        if entry.kind in ("plan", "force"):
            planned = entry.number
        elif entry.kind == "nodes":
            sealed = entry.number
        if entry.kind == "deletion":
            body = entry.body
            made[entry.number] = body["request_id"], body["view"], entry.at, None
            told.update(dict.fromkeys(body["deleted"], body["view"]))
        elif entry.kind == "effective":
            number = entry.body["deletion"]
            made[number] = *made[number][:3], entry.number

    state = fold(connection, LogState(), name, each)
    try:
        problems = [
            *_deleted(connection, secrets, told),
            *_rows(connection, state),
            *_forgotten(connection, state),
            *_requests(connection, made),
            *_nodes(connection, state, trained=planned > sealed),
            *_counted(connection, len(told)),
        ]
    except (AttributeError, TypeError, ValueError) as error:  # a type in place of another
        problems = [f"rows of its tables cannot be understood ({error})"]
    if problems:
        raise IntegrityError(f"{name}: {problems[0]}: {_RESTORE}")


def _deleted(connection: sa.Connection, secrets: Secrets, told: dict[str, int]) -> list[str]:
    """Marks of deleted samples, and what stays of purged ones, against the deletions told."""
    left, wrong = Counter(told.values()), 0
    for sample_id, view in connection.execute(_MARKED):
        if told.get(purging.hashed(sample_id, secrets.receipts)) == view:
            left[view] -= 1
        else:
            wrong += 1
    for view, rows in connection.execute(_PURGED):
        left[view] -= rows
    problems = []
    if wrong:
        problems.append(f"{wrong} samples are marked as deleted, and no entry of the log says so")
    for view, count in sorted(left.items()):
        if count > 0:
            problems.append(f"{count} samples that view {view} deleted stand as not deleted")
        elif count < 0:
            problems.append(f"{-count} samples too many stand as deleted by view {view}")
    return problems


def _rows(connection: sa.Connection, state: LogState) -> list[str]:
    if state.samples in (None, registry.digest_of_all(connection)):
        return []
    return ["the samples are not those that the log commits to: rows were lost, added or changed"]


def _forgotten(connection: sa.Connection, state: LogState) -> list[str]:
    if state.forgotten in (None, purging.left_behind(connection)):
        return []
    return ["the hashes of purged samples are not those that the log commits to"]


def _requests(connection: sa.Connection, made: dict[int, tuple[Any, ...]]) -> list[str]:
    there = {row.number: tuple(row)[1:] for row in connection.execute(_REQUESTS)}
    other = {number for number, _ in there.items() ^ made.items()}
    if not other:
        return []
    return [f"{len(other)} requests are not those of which the log has receipts"]


def _nodes(connection: sa.Connection, state: LogState, trained: bool) -> list[str]:
    """Nodes against the digest over all of them that the log holds.

    They are not compared if nodes came since: a plan was made after the digest (``trained``), or
    there are more than it was computed over.
    """
    if state.sealed is None or trained:
        return []
    seen, sealed = generations.witnessed(connection), state.sealed
    if len(seen) > sealed["nodes"] or generations.nodes_digest(seen) == sealed["digest"]:
        return []
    return ["the table nodes is not what the log commits to: rows were lost or changed"]


def _counted(connection: sa.Connection, told: int) -> list[str]:
    counted = counters.totals(connection)[1]
    if counted == told:
        return []
    return [f"{counted} samples are counted as deleted, and the log deletes {told}"]

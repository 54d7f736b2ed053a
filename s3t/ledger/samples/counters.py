"""What is left in each slot and of each copied content, counted as deletions happen.

    registration, migration ──count──► slots, copies ◄──take── every deletion, in its transaction

Invariant: the counters are at every moment what a recount of all samples, purged ones included,
would give. So a deletion takes time that grows with the samples that it names, and the state of a
run time that grows with its slots, not with its samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from s3t.ledger.database.schema import copies, samples, slots
from s3t.types import Slot

__all__ = [
    "CHUNK",
    "SlotPersons",
    "chunks",
    "copies_left",
    "count",
    "persons",
    "purged",
    "recount",
    "select_in",
    "take",
    "totals",
]

Value = TypeVar("Value")

CHUNK = 500
"""Values per IN; far below SQLite's limit of variables, and one compiled statement."""


_COUNT = (
    "INSERT INTO slots (shard, slice, samples, samples_left, persons, persons_left) "
    "SELECT shard, slice, SUM(held), SUM(there), COUNT(*), "
    "SUM(CASE WHEN there > 0 THEN 1 ELSE 0 END) FROM ("
    "SELECT shard, slice, COUNT(*) AS held, "
    "SUM(CASE WHEN deleted_view IS NULL THEN 1 ELSE 0 END) AS there "
    "FROM samples WHERE subject IS NOT NULL GROUP BY subject, shard, slice "
    "UNION ALL SELECT shard, slice, 1, CASE WHEN deleted_view IS NULL THEN 1 ELSE 0 END "
    "FROM samples WHERE subject IS NULL) AS people GROUP BY shard, slice",
    "INSERT INTO copies (content, samples_left) "
    "SELECT content, SUM(CASE WHEN deleted_view IS NULL THEN 1 ELSE 0 END) "
    "FROM samples GROUP BY content HAVING COUNT(*) > 1",
)
"""Fills the counters from the samples."""

# Statements of a deletion are made once: making them takes longer than running them.
_COPIES = sa.select(copies).where(copies.c.content.in_(sa.bindparam("some", expanding=True)))
_TAKE_COPIES = (
    sa.update(copies)
    .where(copies.c.content == sa.bindparam("of"))
    .values(samples_left=copies.c.samples_left - sa.bindparam("gone"))
)
_TAKE = (
    sa.update(slots)
    .where(slots.c.shard == sa.bindparam("at"), slots.c.slice == sa.bindparam("part"))
    .values(
        samples_left=slots.c.samples_left - sa.bindparam("gone"),
        persons_left=slots.c.persons_left - sa.bindparam("lost"),
    )
)
_HELD = sa.select(
    samples.c.shard,
    samples.c.slice,
    sa.func.count().label("held"),
    (
        sa.func.count(samples.c.subject.distinct())
        + sa.func.sum(sa.case((samples.c.subject.is_(None), 1), else_=0))
    ).label("people"),
).group_by(samples.c.shard, samples.c.slice)
_other = samples.alias()
_LOST = sa.select(samples.c.shard, samples.c.slice).where(
    samples.c.sample_id.in_(sa.bindparam("some", expanding=True)),
    ~sa.exists().where(
        _other.c.subject == samples.c.subject,
        _other.c.deleted_view.is_(None),
        _other.c.shard == samples.c.shard,
        _other.c.slice == samples.c.slice,
    ),
)
"""The slots of samples whose subject has no sample left there."""


@dataclass(frozen=True, slots=True)
class SlotPersons:
    """The persons of one slot. A sample of no subject counts as a person of its own.

    Attributes:
        registered: persons written down.
        left: those with a sample that is not deleted.
    """

    shard: int
    slice: int
    registered: int
    left: int


def count(connection: sa.Connection) -> None:
    """Count all samples, once, when they have been registered."""
    for statement in _COUNT:
        connection.exec_driver_sql(statement)


def purged(connection: sa.Connection) -> dict[Slot, tuple[int, int]]:
    """Per slot the samples and persons that were registered and are no longer in the ledger."""
    counted = {(row.shard, row.slice): row for row in connection.execute(_HELD)}
    found = {}
    for row in connection.execute(sa.select(slots)):
        held = counted.get((row.shard, row.slice))
        samples_, people = (held.held, held.people) if held is not None else (0, 0)
        found[row.shard, row.slice] = row.samples - samples_, row.persons - people
    return found


def recount(connection: sa.Connection, gone: Mapping[Slot, tuple[int, int]]) -> None:
    """Count all samples again, when new ones came; ``gone`` is what ``purged`` gave before."""
    connection.execute(sa.delete(slots))
    connection.execute(sa.delete(copies))
    count(connection)
    there = {(row.shard, row.slice) for row in connection.execute(sa.select(slots))}
    for (shard, part), (held, people) in sorted(gone.items()):
        if (shard, part) not in there:
            empty = {"samples": 0, "samples_left": 0, "persons": 0, "persons_left": 0}
            connection.execute(sa.insert(slots).values(shard=shard, slice=part, **empty))
        connection.execute(
            sa.update(slots)
            .where(slots.c.shard == shard, slots.c.slice == part)
            .values(samples=slots.c.samples + held, persons=slots.c.persons + people)
        )


def totals(connection: sa.Connection) -> tuple[int, int]:
    """Samples registered, and deleted."""
    held = sa.func.coalesce(sa.func.sum(slots.c.samples), 0)
    left = sa.func.coalesce(sa.func.sum(slots.c.samples_left), 0)
    row = connection.execute(sa.select(held, left)).one()
    return int(row[0]), int(row[0]) - int(row[1])


def persons(connection: sa.Connection) -> list[SlotPersons]:
    """The persons of every slot that holds samples, by slot."""
    columns = slots.c.shard, slots.c.slice, slots.c.persons, slots.c.persons_left
    query = sa.select(*columns).order_by(slots.c.shard, slots.c.slice)
    return [SlotPersons(*row) for row in connection.execute(query)]


def copies_left(connection: sa.Connection, contents: Iterable[str]) -> dict[str, int]:
    """Of those contents that several samples were registered with: samples left with them."""
    rows = select_in(connection, _COPIES, sorted(set(contents)))
    return {row.content: row.samples_left for row in rows}


def take(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> int:
    """Count ``rows``, which have just been marked deleted, as gone.

    Returns:
        The number of persons whose samples they are.
    """
    gone = Counter((row.shard, row.slice) for row in rows)
    lost = Counter((row.shard, row.slice) for row in rows if row.subject is None)
    alone = lost.total()
    one_of_each = {
        (row.subject, row.shard, row.slice): row.sample_id
        for row in rows
        if row.subject is not None
    }
    ends = select_in(connection, _LOST, sorted(one_of_each.values()))
    lost.update((row.shard, row.slice) for row in ends)
    connection.execute(
        _TAKE,
        [
            {"at": shard, "part": c, "gone": gone[shard, c], "lost": lost[shard, c]}
            for shard, c in sorted(gone)
        ],
    )
    contents = Counter(row.content for row in rows)  # most are of one sample alone: no row
    connection.execute(_TAKE_COPIES, [{"of": one, "gone": contents[one]} for one in contents])
    return alone + len({subject for subject, _, _ in one_of_each})


def select_in(
    connection: sa.Connection, query: sa.Select[Any], values: Sequence[Any]
) -> list[sa.Row[Any]]:
    """The rows of a query whose parameter ``some`` is each of ``values``."""
    return [row for chunk in chunks(values) for row in connection.execute(query, {"some": chunk})]


def chunks(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """``values`` in pieces that fit into one IN."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))

"""The samples of a run: written down once, proved the same ever after, listed in pages.

Invariant: a registered sample never changes and never leaves; a deletion only marks it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from s3t.errors import InputError, named
from s3t.ledger import schema
from s3t.ledger.schema import REGISTERED, incoming, run, samples
from s3t.types import Digest, Place, Sample, SampleId, Slot, Subject

__all__ = [
    "ROWS",
    "Entry",
    "SlotPersons",
    "chunks",
    "page_after",
    "persons",
    "register",
    "where_in",
]

CHUNK = 500
"""Values per IN; far below SQLite's limit of variables, and one compiled statement."""

ROWS = 10_000
"""Rows per insert and per page read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample as the ledger lists it."""

    sample_id: SampleId
    subject: Subject | None
    shard: int
    slice: int
    deleted: bool


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


def register(
    connection: sa.Connection, registered: Iterable[tuple[Sample, Place]], name: str
) -> None:
    """Write all samples down, or prove that they are those written down (``Ledger.register``)."""
    if schema.value(connection, "samples_digest") is not None:
        _compare(connection, registered, name)
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA cache_size = -65536")  # four indices grow at once
    _insert(connection, samples, registered)
    count, total = _summed(connection)
    for key, value in (("samples_count", str(count)), ("samples_digest", total)):
        connection.execute(sa.insert(run).values(key=key, value=value))


def page_after(
    connection: sa.Connection, last: str | None, slot: Slot | None, deleted: bool | None
) -> list[Entry]:
    """Up to ``ROWS`` samples by id, from the one after ``last``."""
    query = sa.select(samples).order_by(samples.c.sample_id).limit(ROWS)
    if last is not None:
        query = query.where(samples.c.sample_id > last)
    if slot is not None:
        query = query.where(samples.c.shard == slot[0], samples.c.slice == slot[1])
    if deleted is not None:
        mark = samples.c.deleted_view
        query = query.where(mark.is_not(None) if deleted else mark.is_(None))
    return [
        Entry(row.sample_id, row.subject, row.shard, row.slice, row.deleted_view is not None)
        for row in connection.execute(query)
    ]


def persons(connection: sa.Connection) -> list[SlotPersons]:
    """The persons of every slot that holds samples, by slot.

    One scan of all samples; a person has all theirs in one slot (``partition.py``).
    """
    there = sa.case((samples.c.deleted_view.is_(None), 1), else_=0)
    with_subject = (
        sa.select(
            sa.func.min(samples.c.shard).label("shard"),
            sa.func.min(samples.c.slice).label("slice"),
            sa.func.max(there).label("there"),
        )
        .where(samples.c.subject.is_not(None))
        .group_by(samples.c.subject)
    )
    without = sa.select(samples.c.shard, samples.c.slice, there).where(samples.c.subject.is_(None))
    each = sa.union_all(with_subject, without).subquery()
    slot = each.c.shard, each.c.slice
    query = sa.select(*slot, sa.func.count(), sa.func.sum(each.c.there))
    rows = connection.execute(query.group_by(*slot).order_by(*slot))
    return [SlotPersons(*row) for row in rows]


def where_in(
    connection: sa.Connection, column: sa.Column[Any], values: Sequence[str]
) -> list[sa.Row[Any]]:
    """The rows of the column's table where it is one of ``values``."""
    return [
        row
        for chunk in chunks(values)
        for row in connection.execute(sa.select(column.table).where(column.in_(chunk)))
    ]


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """``values`` in pieces that fit into one IN."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def _insert(
    connection: sa.Connection, table: sa.Table, registered: Iterable[tuple[Sample, Place]]
) -> None:
    rows = (
        {
            "sample_id": sample.id,
            "subject": sample.subject,
            "content": sample.content,
            "shard": place.shard,
            "slice": place.slice,
        }
        for sample, place in registered
    )
    statement = sa.insert(table)
    while chunk := list(islice(rows, ROWS)):
        try:
            with connection.begin_nested():
                connection.execute(statement, chunk)
        except sa.exc.IntegrityError:
            ids = [str(row["sample_id"]) for row in chunk]
            twice = {one for one, count in Counter(ids).items() if count > 1}
            twice.update(row.sample_id for row in where_in(connection, table.c.sample_id, ids))
            raise InputError(
                f"two private samples have the same id: {named(sorted(twice))}. "
                "Ids must be unique: correct the id column, or leave it out"
            ) from None


def _summed(connection: sa.Connection) -> tuple[int, Digest]:
    """Number of all samples, and SHA-256 over their rows by id, one JSON line each."""
    columns = [samples.c[name] for name in REGISTERED]
    query = sa.select(*columns).order_by(samples.c.sample_id)
    total, count = hashlib.sha256(), 0
    for page in connection.execute(query).partitions(ROWS):
        total.update("".join(json.dumps(list(row)) + "\n" for row in page).encode())
        count += len(page)
    return count, Digest(total.hexdigest())


def _compare(
    connection: sa.Connection, registered: Iterable[tuple[Sample, Place]], name: str
) -> None:
    """Prove that ``registered`` are those registered, up to deleted ones that are absent."""
    incoming.create(connection)
    _insert(connection, incoming, registered)
    same = sa.and_(*(samples.c[name].is_not_distinct_from(incoming.c[name]) for name in REGISTERED))
    other = (
        sa.select(incoming.c.sample_id).outerjoin(samples, same).where(samples.c.shard.is_(None))
    )
    absent = (
        sa.select(samples.c.sample_id)
        .outerjoin(incoming, samples.c.sample_id == incoming.c.sample_id)
        .where(incoming.c.shard.is_(None), samples.c.deleted_view.is_(None))
    )
    problems = []
    for query, problem in ((other, "new or changed"), (absent, "absent")):
        ids = connection.execute(query.order_by(sa.text("1")).limit(4)).scalars().all()
        if ids:
            problems.append(f"{problem}: {named(ids[:3])}{' and more' if len(ids) > 3 else ''}")
    if problems:
        raise InputError(
            f"the private data differs from what the run was planned on ({name}). "
            f"{'; '.join(problems)}. Restore the data, or start a new run with output=…"
        )
    incoming.drop(connection)

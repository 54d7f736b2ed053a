"""The samples of a run: written down once, proved the same ever after, listed in pages.

    samples, in any order ──► incoming ──by id──► samples ──► digest, counters
                                 └── a second time: compared, and dropped

Invariant: a registered sample never changes; a deletion only marks it, and once it is purged
nothing of that name is ever taken in again. Memory does not grow with the number of samples left:
what has to be sorted is sorted by the database, in temporary files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import sqlalchemy as sa

from s3t.errors import InputError, named
from s3t.ledger.database import schema
from s3t.ledger.database.schema import REGISTERED, incoming, run, samples
from s3t.ledger.samples import counters, look_alikes
from s3t.ledger.samples.purging import Gone
from s3t.types import Digest, Sample, SampleId, Slot, Subject

__all__ = [
    "ROWS",
    "Offered",
    "SampleEntry",
    "add",
    "compare",
    "digest_of_all",
    "page_after",
    "register",
    "registered",
]

Offered = Iterable[tuple[Sample, Slot]]

ROWS = 10_000
"""Rows per insert and per page read."""


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """One sample as the ledger lists it."""

    sample_id: SampleId
    subject: Subject | None
    shard: int
    slice: int
    deleted: bool


def registered(connection: sa.Connection) -> bool:
    """Whether the samples have been written down."""
    return schema.value(connection, "samples_digest") is not None


def register(connection: sa.Connection, offered: Offered, purged: Gone) -> tuple[int, Digest]:
    """Write all samples down (``Ledger.register``); returns how many, and their digest."""
    with _taken_in(connection, offered, purged, stays=True):
        columns = [incoming.c[name] for name in REGISTERED]
        ordered = sa.select(*columns).order_by(incoming.c.sample_id)  # each lands at the end
        schema.samples_subject.drop(connection)
        with _ids_once(connection):
            connection.execute(sa.insert(samples).from_select(REGISTERED, ordered))
    counters.count(connection)
    schema.samples_subject.create(connection)
    found = digest_of_all(connection)
    connection.execute(sa.insert(run).values(key="samples_digest", value=found))
    return counters.totals(connection)[0], found


def add(connection: sa.Connection, offered: Offered, purged: Gone, name: str) -> tuple[int, Digest]:
    """Write the samples down that are new (``Ledger.add``); returns how many, and their digest.

    The digest is over the samples added, by id, one JSON line each.
    """
    columns = [incoming.c[one] for one in REGISTERED]
    new = (
        sa.select(*columns)
        .where(~sa.exists().where(samples.c.sample_id == incoming.c.sample_id))
        .order_by(incoming.c.sample_id)
    )
    with _taken_in(connection, offered, purged, stays=True):
        with _ids_once(connection):
            connection.exec_driver_sql("CREATE UNIQUE INDEX incoming_id ON incoming (sample_id)")
        problems = _differences(connection, new_too=False)
        if problems:
            raise InputError(_differs(name, problems))
        gone, total, count = counters.purged(connection), hashlib.sha256(), 0
        for row in connection.execute(new):
            total.update((json.dumps(list(row)) + "\n").encode())
            count += 1
        connection.execute(sa.insert(samples).from_select(REGISTERED, new))
    if count:
        counters.recount(connection, gone)
    return count, Digest(total.hexdigest())


def compare(connection: sa.Connection, offered: Offered, purged: Gone, name: str) -> None:
    """Prove that the samples offered are the run's, up to deleted ones that are absent.

    Writes to a temporary table alone, so it needs no write lock.
    """
    with _taken_in(connection, offered, purged):
        with _ids_once(connection):
            connection.exec_driver_sql("CREATE UNIQUE INDEX incoming_id ON incoming (sample_id)")
        problems = _differences(connection)
    if problems:
        raise InputError(_differs(name, problems))


def page_after(
    connection: sa.Connection, last: str | None, slot: Slot | None, deleted: bool | None
) -> list[SampleEntry]:
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
        SampleEntry(row.sample_id, row.subject, row.shard, row.slice, row.deleted_view is not None)
        for row in connection.execute(query)
    ]


def _differs(name: str, problems: list[str]) -> str:
    return (
        f"the private data differs from what the run was planned on ({name}). "
        f"{'; '.join(problems)}. Restore the data, take new samples in with s3t add, or start a "
        "new run with output=…"
    )


@contextmanager
def _taken_in(
    connection: sa.Connection, offered: Offered, purged: Gone, stays: bool = False
) -> Iterator[None]:
    """The samples offered in the table ``incoming``; on an error the transaction drops it.

    Those that are to stay have their names noted, too.
    """
    rows = (
        {
            "sample_id": sample.id,
            "subject": sample.subject,
            "content": sample.content,
            "shard": shard,
            "slice": slice_,
        }
        for sample, (shard, slice_) in offered
        if sample.id not in purged
    )
    incoming.create(connection)
    statement = sa.insert(incoming)
    while chunk := list(islice(rows, ROWS)):
        connection.execute(statement, chunk)
        if stays:
            look_alikes.note(connection, chunk)
    yield
    incoming.drop(connection)


@contextmanager
def _ids_once(connection: sa.Connection) -> Iterator[None]:
    """Name the ids that stand in the way of a unique index."""
    try:
        with connection.begin_nested():
            yield
    except sa.exc.IntegrityError:
        ids = sa.select(incoming.c.sample_id).group_by(incoming.c.sample_id)
        twice = connection.execute(ids.having(sa.func.count() > 1).order_by(sa.text("1")))
        raise InputError(
            f"two private samples have the same id: {named(twice.scalars().all())}. "
            "Ids must be unique: correct the id column, or leave it out"
        ) from None


def digest_of_all(connection: sa.Connection) -> Digest:
    """SHA-256 over the rows of all samples that are there, by id: JSON, a comma after each.

    Marks of deletion are not in it: a row stays the same until it is purged.
    """
    columns = [samples.c[name] for name in REGISTERED]
    query = sa.select(*columns).order_by(samples.c.sample_id)
    total = hashlib.sha256()
    for page in connection.execute(query).partitions(ROWS):
        total.update(f"{json.dumps(list(map(tuple, page)))[1:-1]}, ".encode())  # a page is quick
    return Digest(total.hexdigest())


def _differences(connection: sa.Connection, new_too: bool = True) -> list[str]:
    """What is new, changed or absent among the incoming samples, one sentence each."""
    same = sa.and_(*(samples.c[name].is_not_distinct_from(incoming.c[name]) for name in REGISTERED))
    other = (
        sa.select(incoming.c.sample_id).outerjoin(samples, same).where(samples.c.shard.is_(None))
    )
    if not new_too:
        held = samples.alias()
        other = other.where(sa.exists().where(held.c.sample_id == incoming.c.sample_id))
    absent = (
        sa.select(samples.c.sample_id)
        .outerjoin(incoming, samples.c.sample_id == incoming.c.sample_id)
        .where(incoming.c.sample_id.is_(None), samples.c.deleted_view.is_(None))
    )
    problems = []
    changed = "new or changed" if new_too else "changed"
    for query, problem in ((other, changed), (absent, "absent")):
        ids = connection.execute(query.order_by(sa.text("1")).limit(4)).scalars().all()
        if ids:
            problems.append(f"{problem}: {named(ids[:3])}{' and more' if len(ids) > 3 else ''}")
    return problems

"""One deletion, step by step inside its transaction, and the values it is told in.

    find ──► judge ──► (the schedule decides) ──► receipt ──► write

Invariant: only ``write`` writes, and no step looks at more than what the deletion names. A receipt
names samples by keyed hashes alone, so that a log of receipts does not keep what was to be
forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from s3t.errors import RequestConflictError, UnknownSampleError
from s3t.ledger import counters, likeness, purging
from s3t.ledger.counters import chunks, select_in
from s3t.ledger.database.schema import TOOK, requests, run, samples
from s3t.ledger.generations import State
from s3t.ledger.log.chain import now as moment
from s3t.ledger.purging import hashed
from s3t.types import SampleId, Slot

__all__ = [
    "Decide",
    "Deleted",
    "Deletion",
    "Named",
    "find",
    "history",
    "judge",
    "receipt_of",
    "replay",
    "told",
    "write",
]


_some: sa.BindParameter[Any] = sa.bindparam("some", expanding=True)
# Made once: making a statement takes longer than running it.
_BY_ID = sa.select(samples).where(samples.c.sample_id.in_(_some))
_BY_SUBJECT = sa.select(samples).where(samples.c.subject.in_(_some))
_MARK = (
    sa.update(samples)
    .where(samples.c.sample_id.in_(_some))
    .values(deleted_view=sa.bindparam("deletion"))
)
_ADD_REQUEST = sa.insert(requests)
_SET_VIEW = sa.update(run).where(run.c.key == "view").values(value=sa.bindparam("deletion"))


@dataclass(frozen=True, slots=True)
class Named:
    """The samples that a request names.

    Attributes:
        rows: those that are in the ledger, each once, by id.
        purged: ids that were deleted, and purged since.
        alike: ids of samples left that look like what is named, and are not.
    """

    rows: list[sa.Row[Any]]
    purged: tuple[SampleId, ...]
    alike: frozenset[str]


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion is about to do, for ``decide`` to judge before it is committed.

    Attributes:
        request_id: the request.
        view: the view once this is committed.
        deleted: ids that this request deletes, sorted.
        already_deleted: ids asked for that were deleted before, sorted.
        copies_elsewhere: samples left whose content equals that of one deleted now.
        look_alikes: samples left whose id, or person, looks like one that is named.
        slots: (shard, slice) that it deletes a sample of, sorted.
        state: the ledger's before this deletion, with what is new to who asked.
        dry_run: nothing will be committed.
    """

    request_id: str
    view: int
    deleted: tuple[SampleId, ...]
    already_deleted: tuple[SampleId, ...]
    copies_elsewhere: int
    look_alikes: int
    slots: tuple[Slot, ...]
    state: State
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deletion that is durable, unless ``dry_run``.

    Attributes:
        receipt: what is stored: ids as keyed hashes, and under ``schedule`` what decide gave.
        replayed: the request id was known, with the same samples; nothing was done again.
        (the others: as in ``Deletion``)
    """

    request_id: str
    view: int
    deleted: tuple[SampleId, ...]
    already_deleted: tuple[SampleId, ...]
    copies_elsewhere: int
    look_alikes: int
    slots: tuple[Slot, ...]
    receipt: dict[str, Any]
    replayed: bool
    dry_run: bool


Decide = Callable[[Deletion], Mapping[str, Any]]
"""Judges a deletion before it is committed, and gives the schedule's part of its receipt."""


def find(
    connection: sa.Connection,
    ids: Sequence[str],
    subjects: Sequence[str],
    key: bytes,
    run_name: str,
) -> Named:
    """The samples of all ids and subjects, each once, by id.

    Raises:
        UnknownSampleError: with every id and subject that is not held, and never was.
    """
    found = {row.sample_id: row for row in select_in(connection, _BY_ID, ids)}
    theirs = select_in(connection, _BY_SUBJECT, subjects)
    known = {row.subject for row in theirs}
    absent_ids = [one for one in ids if one not in found]
    absent_subjects = [one for one in subjects if one not in known]
    purged: set[str] = set()
    alike = likeness.living(connection, ids, subjects)
    if absent_ids or absent_subjects:
        purged, gone = purging.known(connection, key, absent_ids, absent_subjects)
        unknown_ids = [one for one in absent_ids if one not in purged]
        unknown_subjects = [one for one in absent_subjects if one not in gone]
        if unknown_ids or unknown_subjects:
            raise UnknownSampleError(unknown_ids, unknown_subjects, run_name, len(alike))
    found.update((row.sample_id, row) for row in theirs)
    rows = [found[one] for one in sorted(found)]
    return Named(rows, tuple(map(SampleId, sorted(purged))), frozenset(alike))


def judge(
    connection: sa.Connection, named: Named, request: str, state: State, dry_run: bool
) -> Deletion:
    """What the deletion of the samples named would do, without doing it."""
    fresh = [row for row in named.rows if row.deleted_view is None]
    before = [row.sample_id for row in named.rows if row.deleted_view is not None]
    return Deletion(
        request_id=request,
        view=state.view + bool(fresh),
        deleted=tuple(row.sample_id for row in fresh),
        already_deleted=tuple(sorted([*before, *named.purged])),
        copies_elsewhere=_copies_elsewhere(connection, fresh),
        look_alikes=len(named.alike - {row.sample_id for row in fresh}),
        slots=tuple(sorted({(row.shard, row.slice) for row in fresh})),
        state=state,
        dry_run=dry_run,
    )


def receipt_of(deletion: Deletion, schedule: Mapping[str, Any], secret: bytes) -> dict[str, Any]:
    """The receipt of a deletion; ``schedule`` is what decide gave."""
    return {
        "request_id": deletion.request_id,
        "view": deletion.view,
        "generation": deletion.state.generation,
        "created_at": moment(),
        "deleted": sorted(hashed(one, secret) for one in deletion.deleted),
        "already_deleted": sorted(hashed(one, secret) for one in deletion.already_deleted),
        "copies_elsewhere": deletion.copies_elsewhere,
        "look_alikes": deletion.look_alikes,
        "slots": [list(slot) for slot in deletion.slots],
        "schedule": dict(schedule),
    }


def write(
    connection: sa.Connection,
    deletion: Deletion,
    rows: Sequence[sa.Row[Any]],
    fingerprint: str,
    number: int,
    now: str,
) -> None:
    """Make a deletion of ``rows`` true: marks, counters, request, view."""
    persons = 0
    if deletion.deleted:
        for chunk in chunks(deletion.deleted):
            connection.execute(_MARK, {"deletion": deletion.view, "some": chunk})
        fresh = [row for row in rows if row.deleted_view is None]
        persons = counters.take(connection, fresh)
        connection.execute(_SET_VIEW, {"deletion": str(deletion.view)})
    connection.execute(
        _ADD_REQUEST,
        {
            "request_id": deletion.request_id,
            "view": deletion.view,
            "fingerprint": fingerprint,
            "created_at": now,
            "persons": persons,
            "number": number,
        },
    )


def told(deletion: Deletion, receipt: dict[str, Any]) -> Deleted:
    """A deletion just done, with its receipt as it is stored."""
    return Deleted(
        request_id=deletion.request_id,
        view=deletion.view,
        deleted=deletion.deleted,
        already_deleted=deletion.already_deleted,
        copies_elsewhere=deletion.copies_elsewhere,
        look_alikes=deletion.look_alikes,
        slots=deletion.slots,
        receipt=receipt,
        replayed=False,
        dry_run=deletion.dry_run,
    )


def replay(named: Named, receipt: dict[str, Any], secret: bytes, dry_run: bool) -> Deleted:
    """A deletion told again, from its receipt and the samples that its arguments name.

    Samples of a subject that were purged since cannot be named any more.

    Raises:
        RequestConflictError: samples that it names were taken in since, and live.
    """
    living = sum(row.deleted_view is None for row in named.rows)
    if living:
        raise RequestConflictError(
            f"request id {receipt['request_id']!r} stands for the deletion at view "
            f"{receipt['view']}, and {living} samples that it names were taken in since: nothing "
            "was deleted now. Use a new request id for them"
        )
    then = set(receipt["deleted"])
    ids = sorted([*(row.sample_id for row in named.rows), *named.purged])
    return Deleted(
        request_id=receipt["request_id"],
        view=receipt["view"],
        deleted=tuple(one for one in ids if hashed(one, secret) in then),
        already_deleted=tuple(one for one in ids if hashed(one, secret) not in then),
        copies_elsewhere=receipt["copies_elsewhere"],
        look_alikes=receipt["look_alikes"],
        slots=tuple((shard, c) for shard, c in receipt["slots"]),
        receipt=receipt,
        replayed=True,
        dry_run=dry_run,
    )


def history(connection: sa.Connection) -> list[tuple[str, int]]:
    """When each deletion was made (ISO 8601), and how many persons it took a sample of, by view.

    A sample of no subject counts as a person.
    """
    columns = requests.c.view, requests.c.created_at, requests.c.persons
    query = sa.select(*columns).where(TOOK).order_by(requests.c.view)
    return [(row.created_at, row.persons) for row in connection.execute(query)]


def _copies_elsewhere(connection: sa.Connection, fresh: Sequence[sa.Row[Any]]) -> int:
    """Samples left when ``fresh`` are gone, with the content of one of them."""
    gone = Counter(row.content for row in fresh)
    left = counters.copies_left(connection, gone)
    return sum(count - gone[content] for content, count in left.items())

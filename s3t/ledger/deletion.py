"""One deletion, step by step inside its transaction, and the values it is told in.

    find ──► judge ──► (the schedule decides) ──► receipt ──► write

Invariant: only ``write`` writes. A receipt names samples by keyed hashes alone, so that a log of
receipts does not keep what was to be forgotten.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from s3t.errors import UnknownSampleError
from s3t.ledger.registry import chunks, where_in
from s3t.ledger.schema import hits, requests, run, samples
from s3t.types import SampleId, Slot

__all__ = [
    "Decide",
    "Deleted",
    "Deletion",
    "find",
    "history",
    "hits_after",
    "judge",
    "keyed",
    "receipt_of",
    "replay",
    "told",
    "write",
]


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion is about to do, for ``decide`` to judge before it is committed.

    Attributes:
        request_id: the request.
        view: the view once this is committed.
        deleted: ids that this request deletes, sorted.
        already_deleted: ids asked for that were deleted before, sorted.
        copies_elsewhere: samples left whose content equals that of one deleted now.
        slots: (shard, slice) that this request is the first to hit, sorted.
        catch_up: slots committed so far and after ``known_view``, perhaps by another process.
        dry_run: nothing will be committed.
    """

    request_id: str
    view: int
    deleted: tuple[SampleId, ...]
    already_deleted: tuple[SampleId, ...]
    copies_elsewhere: int
    slots: tuple[Slot, ...]
    catch_up: tuple[Slot, ...]
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
    slots: tuple[Slot, ...]
    receipt: dict[str, Any]
    replayed: bool
    dry_run: bool


Decide = Callable[[Deletion], Mapping[str, Any]]
"""Judges a deletion before it is committed, and gives the schedule's part of its receipt."""


def find(
    connection: sa.Connection, ids: Sequence[str], subjects: Sequence[str], run_name: str
) -> list[sa.Row[Any]]:
    """The samples of all ids and subjects, each once, by id.

    Raises:
        UnknownSampleError: with every id and subject that is not held.
    """
    found = {row.sample_id: row for row in where_in(connection, samples.c.sample_id, ids)}
    unknown_ids = [one for one in ids if one not in found]
    theirs = where_in(connection, samples.c.subject, subjects)
    known = {row.subject for row in theirs}
    unknown_subjects = [one for one in subjects if one not in known]
    if unknown_ids or unknown_subjects:
        raise UnknownSampleError(unknown_ids, unknown_subjects, run_name)
    found.update((row.sample_id, row) for row in theirs)
    return [found[key] for key in sorted(found)]


def judge(
    connection: sa.Connection,
    rows: list[sa.Row[Any]],
    request: str,
    view: int,
    known_view: int,
    dry_run: bool,
) -> Deletion:
    """What the deletion of ``rows`` would do, without doing it."""
    fresh = [row for row in rows if row.deleted_view is None]
    places = sorted({(row.shard, row.slice) for row in fresh})
    return Deletion(
        request_id=request,
        view=view + bool(fresh),
        deleted=tuple(row.sample_id for row in fresh),
        already_deleted=tuple(row.sample_id for row in rows if row.deleted_view is not None),
        copies_elsewhere=_copies(connection, {row.content for row in fresh}) - len(fresh),
        slots=tuple(slot for slot in places if not _is_hit(connection, slot)),
        catch_up=tuple((shard, c) for shard, c, _ in hits_after(connection, known_view)),
        dry_run=dry_run,
    )


def receipt_of(deletion: Deletion, schedule: Mapping[str, Any], secret: bytes) -> dict[str, Any]:
    """The receipt of a deletion; ``schedule`` is what decide gave."""
    return {
        "request_id": deletion.request_id,
        "view": deletion.view,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "deleted": sorted(keyed(one, secret) for one in deletion.deleted),
        "already_deleted": sorted(keyed(one, secret) for one in deletion.already_deleted),
        "copies_elsewhere": deletion.copies_elsewhere,
        "slots": [list(slot) for slot in deletion.slots],
        "schedule": dict(schedule),
    }


def write(
    connection: sa.Connection, deletion: Deletion, fingerprint: str, text: str, now: str
) -> None:
    """Make a deletion true: the samples' marks, the hits, the receipt, the view."""
    for chunk in chunks(deletion.deleted):
        connection.execute(
            sa.update(samples)
            .where(samples.c.sample_id.in_(chunk))
            .values(deleted_view=deletion.view)
        )
    if deletion.slots:
        connection.execute(
            sa.insert(hits),
            [{"shard": shard, "slice": c, "view": deletion.view} for shard, c in deletion.slots],
        )
    connection.execute(
        sa.insert(requests).values(
            request_id=deletion.request_id,
            view=deletion.view,
            fingerprint=fingerprint,
            receipt=text,
            created_at=now,
        )
    )
    if deletion.deleted:
        connection.execute(
            sa.update(run).where(run.c.key == "view").values(value=str(deletion.view))
        )


def told(deletion: Deletion, receipt: dict[str, Any]) -> Deleted:
    """A deletion just done, with its receipt as it is stored."""
    return Deleted(
        request_id=deletion.request_id,
        view=deletion.view,
        deleted=deletion.deleted,
        already_deleted=deletion.already_deleted,
        copies_elsewhere=deletion.copies_elsewhere,
        slots=deletion.slots,
        receipt=receipt,
        replayed=False,
        dry_run=deletion.dry_run,
    )


def replay(
    rows: Sequence[sa.Row[Any]], receipt: dict[str, Any], secret: bytes, dry_run: bool
) -> Deleted:
    """A deletion told again, from its receipt and the samples that its arguments name."""
    then = set(receipt["deleted"])
    ids = [row.sample_id for row in rows]
    return Deleted(
        request_id=receipt["request_id"],
        view=receipt["view"],
        deleted=tuple(one for one in ids if keyed(one, secret) in then),
        already_deleted=tuple(one for one in ids if keyed(one, secret) not in then),
        copies_elsewhere=receipt["copies_elsewhere"],
        slots=tuple((shard, c) for shard, c in receipt["slots"]),
        receipt=receipt,
        replayed=True,
        dry_run=dry_run,
    )


def keyed(text: str, secret: bytes) -> str:
    """HMAC-SHA256, 64 hex digits: proves an id to whoever has it, and tells nobody else."""
    return hmac.digest(secret, text.encode(), hashlib.sha256).hex()


def hits_after(connection: sa.Connection, view: int) -> list[tuple[int, int, int]]:
    """(shard, slice, view) of the slots first hit after ``view``, sorted."""
    query = sa.select(hits).where(hits.c.view > view).order_by(hits.c.shard, hits.c.slice)
    return [(row.shard, row.slice, row.view) for row in connection.execute(query)]


def history(connection: sa.Connection) -> list[tuple[str, int]]:
    """When each deletion was made (ISO 8601), and how many persons it took a sample of, by view.

    A sample of no subject counts as a person.
    """
    # A request that found everything deleted has the view of the deletion before it.
    made = sa.select(requests.c.view, sa.func.min(requests.c.created_at).label("at"))
    when = made.group_by(requests.c.view).subquery()
    alone = sa.case((samples.c.subject.is_(None), 1), else_=0)
    people = sa.func.count(samples.c.subject.distinct()) + sa.func.sum(alone)
    query = (
        sa.select(when.c.at, people)
        .join(samples, samples.c.deleted_view == when.c.view)
        .group_by(when.c.view, when.c.at)
        .order_by(when.c.view)
    )
    return [(at, int(count)) for at, count in connection.execute(query)]


def _copies(connection: sa.Connection, contents: set[str]) -> int:
    """Samples not deleted so far with one of these contents."""
    return sum(
        connection.execute(
            sa.select(sa.func.count())
            .select_from(samples)
            .where(samples.c.content.in_(chunk), samples.c.deleted_view.is_(None))
        ).scalar_one()
        for chunk in chunks(sorted(contents))
    )


def _is_hit(connection: sa.Connection, slot: Slot) -> bool:
    query = sa.select(hits.c.view).where(hits.c.shard == slot[0], hits.c.slice == slot[1])
    return connection.execute(query).first() is not None

"""The steps of one deletion, inside the ledger's transaction.

    find ──► judge ──► (the schedule decides) ──► write
      └── the request id is known ──► replay

Invariant: only ``write`` writes, and no step looks at more rows than the deletion names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, RequestConflictError, UnknownSampleError
from s3t.ledger.database.schema import requests, run, samples
from s3t.ledger.generations import LedgerState
from s3t.ledger.log import chain
from s3t.ledger.log.signing import Signer
from s3t.ledger.receipt import Deletion, Receipt
from s3t.ledger.samples import counters, look_alikes, purging
from s3t.ledger.samples.counters import chunks, select_in
from s3t.ledger.samples.purging import hashed
from s3t.ledger.served import forget_records
from s3t.types import SampleId

__all__ = ["Decide", "Named", "find", "judge", "read", "replay", "stored", "write"]

Decide = Callable[[Receipt, LedgerState], Receipt]
"""Fills in the schedule's part of a receipt before the deletion is committed: what dies and what
serves instead, given the ledger's state before it. An exception from it undoes the deletion."""

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
_STORED = sa.select(requests).where(requests.c.request_id == sa.bindparam("request"))
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


def stored(connection: sa.Connection, request_id: str) -> sa.Row[Any] | None:
    """The row of a request, None if there is none."""
    return connection.execute(_STORED, {"request": request_id}).first()


def find(connection: sa.Connection, deletion: Deletion, key: bytes, run_name: str) -> Named:
    """The samples that a deletion names.

    Args:
        connection: in the transaction.
        deletion: what is asked for.
        key: of the hashes of purged samples.
        run_name: for messages.

    Raises:
        InputError: it names nothing.
        UnknownSampleError: with every id and subject that is not held, and never was.
    """
    ids, subjects = deletion.sample_ids, deletion.subjects
    if not ids and not subjects:
        raise InputError("nothing to delete: give at least one sample id or subject")
    found = {row.sample_id: row for row in select_in(connection, _BY_ID, ids)}
    theirs = select_in(connection, _BY_SUBJECT, subjects)
    known = {row.subject for row in theirs}
    absent_ids = [one for one in ids if one not in found]
    absent_subjects = [one for one in subjects if one not in known]
    purged: set[str] = set()
    alike = look_alikes.living(connection, ids, subjects)
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
    connection: sa.Connection, named: Named, deletion: Deletion, state: LedgerState, secret: bytes
) -> Receipt:
    """The receipt that deleting the samples named would have, but for the schedule's part."""
    fresh = [row for row in named.rows if row.deleted_view is None]
    before = [row.sample_id for row in named.rows if row.deleted_view is not None]
    deleted = tuple(row.sample_id for row in fresh)
    already = tuple(sorted([*before, *named.purged]))
    return Receipt(
        **deletion.told(),
        view=state.view + bool(fresh),
        generation=state.generation,
        hashes=tuple(sorted(hashed(one, secret) for one in deleted)),
        hashes_before=tuple(sorted(hashed(one, secret) for one in already)),
        copies_elsewhere=_copies_elsewhere(connection, fresh),
        look_alikes=len(named.alike - {row.sample_id for row in fresh}),
        slots=tuple(sorted({(row.shard, row.slice) for row in fresh})),
        deleted=deleted,
        already_deleted=already,
    )


def write(
    connection: sa.Connection,
    receipt: Receipt,
    named: Named,
    fingerprint: str,
    signer: Signer | None,
) -> Receipt:
    """Make a deletion true: its entry in the log, marks, counters, view, request. What was
    recorded of what served goes.

    Args:
        connection: in the transaction.
        receipt: with the schedule's part.
        named: what ``find`` gave.
        fingerprint: of the names; the same request id with another one is refused later.
        signer: signs the entry.

    Returns:
        the receipt with the moment at which it is durable, once this is committed.
    """
    at, persons = chain.now(), 0
    number = chain.append(connection, "deletion", at, receipt.to_log(at), signer)
    if receipt.deleted:
        for chunk in chunks(receipt.deleted):
            connection.execute(_MARK, {"deletion": receipt.view, "some": chunk})
        fresh = [row for row in named.rows if row.deleted_view is None]
        persons = counters.take(connection, fresh)
        connection.execute(_SET_VIEW, {"deletion": str(receipt.view)})
        forget_records(connection)
    connection.execute(
        _ADD_REQUEST,
        {
            **receipt.to_row(),
            "fingerprint": fingerprint,
            "created_at": at,
            "persons": persons,
            "number": number,
        },
    )
    return replace(receipt, accepted_at=at)


def replay(named: Named, receipt: Receipt, secret: bytes, dry_run: bool) -> Receipt:
    """The receipt of a deletion that was made before, with the ids that its names stand for now.

    Args:
        named: what ``find`` gave; samples of a subject that were purged since are not among them.
        receipt: as the log has it.
        secret: of the hashes in receipts.
        dry_run: whether the repeated request is one.

    Raises:
        RequestConflictError: samples that it names were taken in since, and live.
    """
    living = sum(row.deleted_view is None for row in named.rows)
    if living:
        raise RequestConflictError(
            f"request id {receipt.request_id!r} stands for the deletion at view "
            f"{receipt.view}, and {living} samples that it names were taken in since: nothing "
            "was deleted now. Use a new request id for them"
        )
    then = set(receipt.hashes)
    ids = sorted([*(row.sample_id for row in named.rows), *named.purged])
    return replace(
        receipt,
        deleted=tuple(one for one in ids if hashed(one, secret) in then),
        already_deleted=tuple(one for one in ids if hashed(one, secret) not in then),
        dry_run=dry_run,
        replayed=True,
        accepted_at=None if dry_run else receipt.accepted_at,
        entry=None,
    )


def read(
    connection: sa.Connection, row: sa.Row[Any], purges: Iterable[tuple[int, str, int]]
) -> Receipt:
    """The receipt of a request as the log holds it, with what came of the deletion later.

    Args:
        connection: in a transaction.
        row: of the request: ``number`` and ``effective`` of its entries in the log.
        purges: number, moment and view of each purge.

    Raises:
        IntegrityError: an entry is missing, or is of something else.
    """
    entry = chain.read(connection, row.number)
    came = None if row.effective is None else chain.read(connection, row.effective)
    told = None if came is None else (came.kind, came.body.get("deletion"))
    if entry.kind != "deletion" or told not in (None, ("effective", row.number)):
        raise IntegrityError(
            f"the table requests names entries {row.number} and {row.effective} of the log, which "
            "are not a deletion and the moment at which it was effective: restore the ledger from "
            "a copy"
        )
    try:
        receipt = Receipt.of_entry(entry, None if came is None else came.at)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"entry {row.number} of the log is no receipt ({error!r}): restore the ledger from a "
            "copy"
        ) from None
    after = (at for later, at, of in purges if later > row.number and of >= receipt.view)
    return replace(receipt, purged_at=next(after, None))


def _copies_elsewhere(connection: sa.Connection, fresh: Sequence[sa.Row[Any]]) -> int:
    """Samples left when ``fresh`` are gone, with the content of one of them."""
    gone = Counter(row.content for row in fresh)
    left = counters.copies_left(connection, gone)
    return sum(count - gone[content] for content, count in left.items())

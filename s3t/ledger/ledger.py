"""The ledger of one run: what a caller sees of it.

Invariant: a deletion is durable before it is acknowledged; when anything fails, nothing has
changed. The view grows by one with each deletion that takes a sample, and with nothing else: an
unchanged view means unchanged hits. No cost of a deletion grows with the number of samples held.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, RequestConflictError
from s3t.ledger import counters, registry, schema
from s3t.ledger import deletion as steps
from s3t.ledger.counters import SlotPersons
from s3t.ledger.database import Database
from s3t.ledger.deletion import Decide, Deleted
from s3t.ledger.registry import Entry
from s3t.types import Digest, Place, Sample, Slot

__all__ = ["Ledger"]

_VIEW = "SELECT value FROM run WHERE key = 'view'"
_LOCKED_VIEW = sa.select(schema.run.c.value).where(schema.run.c.key == "view").with_for_update()
"""SQLite has the write lock already and leaves out FOR UPDATE."""
_STORED = sa.select(schema.requests.c.fingerprint, schema.requests.c.receipt).where(
    schema.requests.c.request_id == sa.bindparam("request")
)


class Ledger:
    """Open it with ``Ledger.open``; close it, or use it in ``with``.

    Threads may share a Ledger, processes the file. A forked process opens its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.transaction() as connection:
            secret = schema.value(connection, "secret")
            view = schema.value(connection, "view")
        if secret is None or view is None:
            raise IntegrityError(
                f"{database.name} has lost its secret or its view: restore it from a copy"
            )
        self._secret = bytes.fromhex(secret)

    @classmethod
    def open(cls, where: str | Path, *, create: bool = False, read_only: bool = False) -> Ledger:
        """Open a ledger, and bring an older one up to date in one transaction.

        Args:
            where: path of the file, or a database URL.
            create: make it if it is not there; an existing one is opened.
            read_only: never write, not even a migration.

        Raises:
            InputError: not there, or older and ``read_only``.
            IntegrityError: not a ledger, damaged, or written by a newer s3t.
        """
        database = Database(str(where), create=create, read_only=read_only)
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close every connection of every thread. The ledger cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def register(self, samples: Iterable[tuple[Sample, Place]]) -> None:
        """Write down all private samples of the run, once.

        A second time it proves that they are the same; those deleted since may be absent. Nobody
        has to wait for that, and a deletion in between is not yet seen by it.

        Takes memory that does not grow with the samples, and temporary disk of about twice what
        the ledger takes.

        Raises:
            InputError: a sample id twice, or other samples than those the run was planned on.
        """
        name = self._database.name
        with self._database.transaction() as connection:
            if registry.registered(connection):
                registry.compare(connection, samples, name)
                return
        with self._database.transaction(writes=True) as connection:
            if registry.registered(connection):  # by another process, since
                registry.compare(connection, samples, name)
            else:
                registry.register(connection, samples)

    def view(self) -> int:
        """Number of deletions so far: one indexed read on a connection that the thread keeps."""
        return int(self._database.read(_VIEW))

    def samples_digest(self) -> Digest | None:
        """Digest over all samples registered, None before ``register``."""
        with self._database.transaction() as connection:
            value = schema.value(connection, "samples_digest")
        return None if value is None else Digest(value)

    def hits(self, since_view: int = 0) -> list[tuple[int, int, int]]:
        """(shard, slice, view) of every slot hit after ``since_view``, sorted."""
        with self._database.transaction() as connection:
            return steps.hits_after(connection, since_view)

    def persons(self) -> list[SlotPersons]:
        """The persons of every slot that holds samples, by slot."""
        with self._database.transaction() as connection:
            return counters.persons(connection)

    def history(self) -> list[tuple[datetime, int]]:
        """When each deletion was made and of how many persons, by view; dry runs leave no trace.

        Raises:
            IntegrityError: a moment that is none.
        """
        with self._database.transaction() as connection:
            made = steps.history(connection)
        try:
            return [(datetime.fromisoformat(at).astimezone(UTC), count) for at, count in made]
        except ValueError as error:
            raise IntegrityError(
                f"{self._database.name} has a receipt of no known moment ({error}): "
                "restore it from a copy"
            ) from None

    def samples(self, slot: Slot | None = None, deleted: bool | None = None) -> Iterator[Entry]:
        """Samples by id, read in pages, so each page sees the deletions of its moment.

        Args:
            slot: only those of this (shard, slice); all are read for it.
            deleted: only those deleted, or only those not.
        """
        last: str | None = None
        while True:
            with self._database.transaction() as connection:
                page = registry.page_after(connection, last, slot, deleted)
            yield from page
            if len(page) < registry.ROWS:
                return
            last = page[-1].sample_id

    def counts(self) -> dict[str, int]:
        """``samples`` registered and ``deleted`` among them."""
        with self._database.transaction() as connection:
            held, deleted = counters.totals(connection)
        return {"samples": held, "deleted": deleted}

    def delete(
        self,
        sample_ids: Iterable[str],
        subjects: Iterable[str],
        *,
        decide: Decide,
        request_id: str | None = None,
        dry_run: bool = False,
        known_view: int = 0,
    ) -> Deleted:
        """Delete samples, and all samples of subjects, in one durable transaction.

        ``decide`` runs inside it, with what is about to happen; what it returns goes into the
        receipt, and an exception from it undoes everything. It must not delete in its turn. The
        same request id with the same arguments gives the stored receipt again.

        Args:
            sample_ids: ids; repeats count once.
            subjects: persons, each standing for all their samples.
            decide: the schedule's part, as JSON values.
            request_id: makes the call idempotent; by default a new one.
            dry_run: do everything but commit.
            known_view: ``catch_up`` holds only the hits after it.

        Raises:
            InputError: neither an id nor a subject, or something else than strings.
            UnknownSampleError: an id or subject that the ledger does not hold.
            RequestConflictError: the request id stands for other samples.
            S3TError: another writer did not finish in 30 s.
        """
        ids, people = _distinct(sample_ids, "sample_ids"), _distinct(subjects, "subjects")
        if not ids and not people:
            raise InputError("nothing to delete: give at least one sample id or subject")
        request = uuid.uuid4().hex
        if request_id is not None:
            (request,) = _distinct([request_id], "request_id")
        fingerprint = steps.keyed(json.dumps([ids, people]), self._secret)
        with self._database.transaction(writes=not dry_run) as connection:
            view = int(connection.execute(_LOCKED_VIEW).scalar_one())
            stored = _stored(connection, request, fingerprint)
            rows = steps.find(connection, ids, people, self._database.run)
            if stored is not None:
                return steps.replay(rows, stored, self._secret, dry_run)
            deletion = steps.judge(connection, rows, request, view, known_view, dry_run)
            receipt = steps.receipt_of(deletion, decide(deletion), self._secret)
            text = json.dumps(receipt, sort_keys=True, allow_nan=False)
            if not dry_run:
                now = receipt["created_at"]
                steps.write(connection, deletion, rows, fingerprint, text, now)
        return steps.told(deletion, json.loads(text))


def _distinct(values: Iterable[str], name: str) -> list[str]:
    # A lone string is iterable too: its letters must not be taken for ids.
    listed = None if isinstance(values, str | bytes) else list(values)
    if listed is None or not all(isinstance(value, str) for value in listed):
        raise InputError(f"{name} {values!r:.80}: expected a list of strings")
    for value in listed:
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{name}: {value!r} is not valid Unicode, so no run holds it")
    return sorted(set(listed))


def _stored(connection: sa.Connection, request: str, fingerprint: str) -> dict[str, Any] | None:
    """The receipt that the request id stands for, if any."""
    stored = connection.execute(_STORED, {"request": request}).first()
    if stored is None:
        return None
    if stored.fingerprint != fingerprint:
        raise RequestConflictError(
            f"request id {request!r} stands for another deletion: nothing was deleted. "
            "Use a new request id, or repeat the same samples and subjects"
        )
    receipt: dict[str, Any] = json.loads(stored.receipt)
    return receipt

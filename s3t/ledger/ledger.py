"""The ledger of one run: what a caller sees of it.

Invariant: a deletion is durable before it is acknowledged; when anything fails, nothing has
changed. The view grows by one with each deletion that takes a sample, each plan put in force and
each announcement of nodes: an unchanged view means that what may be served is unchanged. All of it
is told in the log. No cost of a deletion grows with the number of samples held.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, RequestConflictError
from s3t.ledger import counters, generations, purging, registry
from s3t.ledger import deletion as steps
from s3t.ledger.counters import SlotPersons
from s3t.ledger.database import schema
from s3t.ledger.database.database import Database, Watch
from s3t.ledger.deletion import Decide, Deleted
from s3t.ledger.evidence import Evidence
from s3t.ledger.generations import State
from s3t.ledger.log import chain, proof
from s3t.ledger.log.signing import Signer
from s3t.ledger.log.state import LogReader, Secrets
from s3t.ledger.outbox import Outbox, refuse_other
from s3t.ledger.planning import Planning, seal
from s3t.ledger.purging import Forgotten, Gone
from s3t.ledger.registry import Entry, Offered
from s3t.ledger.replicas import Replicas
from s3t.types import Digest, NodeKey, Slot, digest

__all__ = ["Ledger"]

_UNSIGNED: Callable[[], Signer | None] = lambda: None  # noqa: E731

_STORED = sa.select(
    schema.requests.c.fingerprint, schema.requests.c.number, schema.requests.c.effective
).where(schema.requests.c.request_id == sa.bindparam("request"))


class Ledger:
    """Open it with ``Ledger.open``; close it, or use it in ``with``.

    Threads may share a Ledger, processes the file. A forked process opens its own.

    Attributes:
        plans: the plans that were made, and the nodes that were trained for them.
        replicas: who answers, and which deletions are effective on all of them.
        outbox: large deletions that were accepted and are not done, and callbacks.
    """

    def __init__(self, database: Database, signer: Callable[[], Signer | None] = _UNSIGNED) -> None:
        self._database, self._signer = database, cache(signer)  # the key is read once
        with database.transaction() as connection:
            secrets, view = _secrets(connection, database.name), schema.value(connection, "view")
        if secrets is None or view is None:
            raise IntegrityError(
                f"{database.name} has lost its secret or its view: restore it from a copy"
            )
        self._reader = LogReader(database, secrets)
        self.plans = Planning(self._reader, self._signer)
        self.replicas = Replicas(database, self._signer)
        self.outbox = Outbox(database)

    @classmethod
    def open(
        cls,
        where: str | Path,
        *,
        create: bool = False,
        read_only: bool = False,
        signer: Callable[[], Signer | None] = _UNSIGNED,
        run: Path | None = None,
    ) -> Ledger:
        """Open a ledger.

        Args:
            where: path of the file, or a database URL.
            create: make it if it is not there; an existing one is opened.
            read_only: never write.
            signer: gives what signs the entries of the log, when the first is written.
            run: the run directory, for messages; default: where the ledger is.

        Raises:
            InputError: not there.
            IntegrityError: not a ledger, damaged, or of another s3t.
            UnavailableError: the database cannot be reached.
        """
        database = Database(str(where), create=create, read_only=read_only)
        database.run = database.run if run is None else str(run)
        try:
            return cls(database, signer)
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

    def register(self, samples: Offered, *, without: Gone | None = None) -> None:
        """Write down all private samples of the run, once.

        A second time it proves itself (``prove``), and that they are the same; those deleted since
        may be absent. Nothing has to wait for that, and a deletion in between is not yet seen.

        Takes memory that does not grow with the samples, and temporary disk of about twice what
        the ledger takes.

        Args:
            samples: all of them, in any order, with their places.
            without: what another ledger has forgotten: never taken in here either.

        Raises:
            InputError: a sample id twice, or other samples than those the run was planned on.
            IntegrityError: see ``prove``.
        """
        name = self._database.name
        self._refuse_faults()
        with self._reader.transaction(scratch=True) as (connection, _):
            if registry.registered(connection):
                proof.prove(connection, self._reader.secrets, name)
                registry.compare(connection, samples, self._purged(connection), name)
                return
        if without is not None:
            self._reader.secrets = replace(self._reader.secrets, forgotten=without.secret)
        with self._reader.transaction(writes=True, scratch=True) as (connection, _):
            if registry.registered(connection):  # by another process, since
                registry.compare(connection, samples, self._purged(connection), name)
                return
            if without is not None:
                purging.keep_out(connection, without)
                schema.set_value(connection, "filter_secret", without.secret.hex())
            count, found = registry.register(connection, samples, self._purged(connection))
            body = {
                "registered": count,
                "digest": found,
                "all": found,
                "secrets": self._reader.secrets.commitments(),
                "forgotten": purging.left_behind(connection),
            }
            chain.append(connection, "samples", chain.now(), body, self._signer())

    def add(self, samples: Offered) -> int:
        """Write down the samples that are new; returns how many.

        Args:
            samples: all that the data hold now, in any order, with their places. Deleted ones may
                be absent, and are never taken in again.

        Raises:
            InputError: a sample that was registered has changed or is absent.
            IntegrityError: see ``prove``.
        """
        self._refuse_faults()
        with self._reader.transaction(writes=True, scratch=True) as (connection, _):
            proof.prove(connection, self._reader.secrets, self._database.name)
            purged = self._purged(connection)
            count, found = registry.add(connection, samples, purged, self._database.name)
            if count:
                every = registry.digest_of_all(connection)
                body = {"registered": count, "digest": found, "all": every}
                chain.append(connection, "samples", chain.now(), body, self._signer())
        return count

    def view(self) -> int:
        """Number of the present view: one look at the end of the log, if nothing is new there."""
        known = self._reader.known
        if not self._reader.is_new(known):
            return known.view
        with self._reader.transaction() as (_, log):
            return log.view

    def state(self, known: State | None = None) -> State:
        """What decides what may be served, with the hits that are new to who knows ``known``."""
        with self._reader.transaction() as (_, log):
            return generations.state(log, known)

    @property
    def name(self) -> str:
        """Path, or URL without a password, for messages."""
        return self._database.name

    @property
    def shared(self) -> bool:
        """Whether processes on several machines can have it open: then answers go by leases."""
        return self._database.dialect != "sqlite"

    def training(self) -> AbstractContextManager[bool]:
        """Keeps other machines from training the run meanwhile; see ``Database.training``."""
        return self._database.training()

    def watch(self) -> AbstractContextManager[Watch]:
        """Waits for changes of the ledger; see ``Database.watch``."""
        return self._database.watch()

    def samples_digest(self) -> Digest | None:
        """Digest over all samples registered, None before ``register``."""
        with self._database.transaction() as connection:
            value = schema.value(connection, "samples_digest")
        return None if value is None else Digest(value)

    def hits(self, since_view: int = 0) -> list[tuple[int, int, int]]:
        """(shard, slice, view) of every slot hit after ``since_view``, and by which view last."""
        with self._reader.transaction() as (_, log):
            return sorted((*slot, view) for slot, view in log.hits.items() if view > since_view)

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
        known: State | None = None,
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
            known: ``Deletion.state`` holds only the hits that are new to who knows this.

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
        secret, place = self._reader.secrets.receipts, self._database.run
        fingerprint = purging.hashed(json.dumps([ids, people]), secret)
        with self._reader.transaction(writes=not dry_run) as (connection, log):
            stored = _stored(connection, request, fingerprint)
            refuse_other(connection, request, ids, people)
            named = steps.find(connection, ids, people, self._reader.secrets.forgotten, place)
            if stored is not None:
                return steps.replay(named, stored, secret, dry_run)
            now = generations.state(log, known)
            deletion = steps.judge(connection, named, request, now, dry_run)
            receipt = steps.receipt_of(deletion, decide(deletion), secret)
            text = chain.canonical(receipt)
            if not dry_run:
                at = receipt["created_at"]
                number = chain.append(connection, "deletion", at, receipt, self._signer())
                steps.write(connection, deletion, named.rows, fingerprint, number, at)
                self._database.tell(connection)
        return steps.told(deletion, json.loads(text))

    # ── forgetting for good ──────────────────────────────────────────────────────────────────

    def gone(self) -> Gone:
        """All samples deleted until now, by keyed hashes of their ids."""
        with self._reader.transaction() as (connection, log):
            return purging.gone(connection, self._reader.secrets.forgotten, log.view)

    def forgotten(self, after: int) -> list[Forgotten]:
        """What was deleted after a view, by view: the same for every reader and at any time."""
        with self._reader.transaction() as (connection, _):
            return purging.since(connection, self._reader.secrets.forgotten, after)

    @property
    def filter_secret(self) -> bytes:
        """Key of the hashes that ``gone`` and ``forgotten`` give."""
        return self._reader.secrets.forgotten

    @property
    def identity(self) -> Digest:
        """What tells this ledger, and copies of it, from all others: commits to its secret."""
        return digest(["s3t ledger", self._reader.secrets.receipts.hex()])

    def unpurged(self, view: int) -> int:
        """Samples deleted until ``view`` whose ids are still here."""
        with self._database.transaction() as connection:
            return purging.unmoved(connection, view)

    def purge(self, view: int, nodes: Iterable[NodeKey], told: Mapping[str, Any]) -> bool:
        """Replace rows of samples deleted until ``view`` by keyed hashes, and write the purge down.

        Args:
            view: all that had died by then is gone from the store.
            nodes: keys that are gone from the store.
            told: what else was purged, as JSON values without any id.

        Returns:
            False if somebody reads the older state for so long that its bytes are still there.

        Raises:
            IntegrityError: see ``prove``. What the log is about to commit to is proved before.
        """
        keys = sorted(nodes)
        with self._reader.transaction(writes=True, scratch=True) as (connection, log):
            proof.prove(connection, self._reader.secrets, self._database.name)
            rows = purging.move(connection, self._reader.secrets.forgotten, view)
            generations.forget_nodes(connection, keys)
            left = purging.left_behind(connection)
            every = registry.digest_of_all(connection)
            body = {
                "view": view,
                "nodes": keys,
                "rows": rows,
                "forgotten": left,
                "all": every,
                **told,
            }
            chain.append(connection, "purge", chain.now(), body, self._signer())
            seal(connection, log, self._signer())
        return self.compact()

    def compact(self) -> bool:
        """Leave no bytes of purged rows in the files, if a purge could not (see ``purge``)."""
        return self._database.compact()

    def check(self) -> None:
        """See that the ledger is the one that was opened; takes microseconds.

        Raises:
            UnavailableError: its file was replaced or removed under this process.
        """
        self._database.check()

    def prove(self) -> None:
        """Have the database look through its pages, and hold the tables against the log.

        Takes time that grows with samples and deletions.

        Raises:
            IntegrityError: damage, or a contradiction about who was deleted.
        """
        self._refuse_faults()
        with self._reader.transaction(scratch=True) as (connection, _):
            proof.prove(connection, self._reader.secrets, self._database.name)

    def faults(self) -> list[str]:
        """What the database finds wrong with its own pages and indexes, a few of it."""
        return self._database.faults()

    @property
    def acknowledged(self) -> tuple[int, str] | None:
        """Number and digest of the last entry of the log, as told beside the database, if it is."""
        return self._database.acknowledged()

    @property
    def database(self) -> str:
        """What database it is in, and of which version."""
        return self._database.engine_name

    @contextmanager
    def evidence(self) -> Iterator[Evidence]:
        """All tables as they are at one moment, for whoever believes nothing that stands above."""
        with self._database.transaction() as connection:
            yield Evidence(connection, self._reader.secrets)

    # ── the log ──────────────────────────────────────────────────────────────────────────────

    def log(self, after: int = 0) -> Iterator[chain.Entry]:
        """Entries of the log by number, read in pages."""
        while True:
            with self._database.transaction() as connection:
                page = chain.entries(connection, after, registry.ROWS)
            yield from page
            if len(page) < registry.ROWS:
                return
            after = page[-1].number

    def recent(self, limit: int) -> list[chain.Entry]:
        """The latest entries of the log, the newest first."""
        with self._database.transaction() as connection:
            return chain.latest(connection, limit)

    def receipts(self, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """Receipts as ``receipt`` gives them, the latest first.

        Args:
            limit: at most so many.
            before: only those whose entry of the log has a smaller number.
        """
        made = schema.requests.c
        query = sa.select(made.number, made.effective).order_by(made.number.desc()).limit(limit)
        if before is not None:
            query = query.where(made.number < before)
        with self._reader.transaction() as (connection, log):
            rows = connection.execute(query).all()
            return [
                chain.receipt(connection, row.number, row.effective, log.purges) for row in rows
            ]

    def receipt(self, request_id: str) -> dict[str, Any]:
        """The receipt of a request as JSON values: what it did, and when it took effect.

        Raises:
            InputError: no such request.
        """
        with self._reader.transaction() as (connection, log):
            stored = connection.execute(_STORED, {"request": request_id}).first()
            if stored is None:
                raise InputError(
                    f"there is no request {request_id!r} in {self._database.name}: s3t log lists "
                    "what was done"
                )
            return chain.receipt(connection, stored.number, stored.effective, log.purges)

    def keyed(self, sample_id: str) -> str:
        """How receipts name a sample id or subject."""
        return purging.hashed(sample_id, self._reader.secrets.receipts)

    def _refuse_faults(self) -> None:
        if faults := self.faults():
            raise IntegrityError(
                f"{self.name} is damaged, its database finds: {'; '.join(faults)}: restore it from "
                "a copy"
            )

    def _purged(self, connection: sa.Connection) -> Gone:
        return purging.purged(connection, self._reader.secrets.forgotten)


def _secrets(connection: sa.Connection, name: str) -> Secrets | None:
    """The secrets as they lie in the table; the log commits to them.

    Raises:
        IntegrityError: one is no number in hexadecimal digits.
    """
    own, given = schema.value(connection, "secret"), schema.value(connection, "filter_secret")
    if own is None:
        return None
    try:
        secret = bytes.fromhex(own)
        other = purging.filter_secret(secret) if given is None else bytes.fromhex(given)
    except (TypeError, ValueError):
        raise IntegrityError(f"{name}: a secret of it is damaged: restore it from a copy") from None
    return Secrets(secret, other)


def _distinct(values: Iterable[str], name: str) -> list[str]:
    # A lone string is iterable too: its letters must not be taken for ids.
    listed = None if isinstance(values, str | bytes) else list(values)
    if listed is None or not all(isinstance(value, str) for value in listed):
        raise InputError(f"{name} {values!r:.80}: expected a list of strings")
    for value in listed:
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{name}: {value!r} is not text in UTF-8 without NUL: no run holds it")
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
    return dict(chain.read(connection, stored.number).body)

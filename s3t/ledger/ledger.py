"""The ledger of one run: what a caller sees of it.

Invariant: a deletion is durable before it is acknowledged; when anything fails, nothing has
changed. The view grows by one with each deletion that takes a sample, each plan put in force and
each announcement of nodes: an unchanged view means that what may be served is unchanged. All of it
is told in the log. No cost of a deletion grows with the number of samples held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, RequestConflictError
from s3t.ledger import deletion as steps
from s3t.ledger import generations
from s3t.ledger.database import schema
from s3t.ledger.database.database import Database, Watch
from s3t.ledger.deletion import Decide
from s3t.ledger.generations import LedgerState
from s3t.ledger.jobs import refuse_other
from s3t.ledger.log import chain, proof
from s3t.ledger.log.signing import Signer
from s3t.ledger.log.state import LogReader, LogState, Secrets
from s3t.ledger.outbox import Outbox
from s3t.ledger.planning import Planning
from s3t.ledger.receipt import Deletion, Receipt
from s3t.ledger.replicas import ReplicaTable
from s3t.ledger.samples import purging, registry
from s3t.ledger.samples.counts import Counts
from s3t.ledger.samples.deleted import DeletedSamples
from s3t.ledger.samples.purging import Gone
from s3t.ledger.samples.registry import Offered, SampleEntry
from s3t.ledger.served import ServedRecords
from s3t.ledger.tables import LedgerTables
from s3t.types import Digest, Slot, digest

__all__ = ["Ledger"]

_UNSIGNED: Callable[[], Signer | None] = lambda: None  # noqa: E731


class Ledger:
    """Open it with ``Ledger.open``; close it, or use it in ``with``.

    Threads may share a Ledger, processes the file. A forked process opens its own.

    Attributes:
        plans: the plans that were made, and the nodes that were trained for them.
        replicas: who answers, and which deletions are effective on all of them.
        counts: what is left, and when deletions were made.
        deleted: the deleted samples, as keyed hashes; a purge of their rows.
        outbox: large deletions that were accepted and are not done, and callbacks.
        served: fitted weights and the last evaluation of what serves.
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
        self.plans = Planning(self._reader, database, self._signer)
        self.replicas = ReplicaTable(database, self._signer)
        self.outbox = Outbox(database)
        self.served = ServedRecords(self._reader, database)
        self.counts = Counts(self._reader, database.name)
        self.deleted = DeletedSamples(self._reader, database, self._signer)

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

    @property
    def name(self) -> str:
        """Path, or URL without a password, for messages."""
        return self._database.name

    @property
    def identity(self) -> Digest:
        """What tells this ledger, and copies of it, from all others: commits to its secret."""
        return digest(["s3t ledger", self._reader.secrets.receipts.hex()])

    @property
    def shared(self) -> bool:
        """Whether processes on several machines can have it open: then answers go by leases."""
        return self._database.dialect != "sqlite"

    def watch(self) -> AbstractContextManager[Watch]:
        """Waits for changes of the ledger; see ``Database.watch``."""
        return self._database.watch()

    def samples(
        self, slot: Slot | None = None, deleted: bool | None = None
    ) -> Iterator[SampleEntry]:
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

    def delete(
        self, deletion: Deletion, decide: Decide, known: LedgerState | None = None
    ) -> Receipt:
        """Delete what is asked for, in one durable transaction: all of it or, on an error, nothing.

        The same request id with the same names gives the stored receipt again.

        Args:
            deletion: what is asked for.
            decide: the schedule's part; it runs inside the transaction and must not delete.
            known: the state that decide gets holds only the hits that are new since this one.

        Raises:
            InputError: it names nothing.
            UnknownSampleError: an id or subject that the ledger does not hold.
            RequestConflictError: the request id stands for other samples.
            S3TError: another writer did not finish in 30 s.
        """
        secrets = self._reader.secrets
        fingerprint = purging.hashed(deletion.text, secrets.receipts)
        with self._reader.transaction(writes=not deletion.dry_run) as (connection, log):
            before = self._made_before(connection, log, deletion, fingerprint)
            named = steps.find(connection, deletion, secrets.forgotten, self._database.run)
            if before is not None:
                return steps.replay(named, before, secrets.receipts, deletion.dry_run)
            state = generations.state(log, known)
            receipt = steps.judge(connection, named, deletion, state, secrets.receipts)
            receipt = decide(receipt, state)
            if not deletion.dry_run:
                receipt = steps.write(connection, receipt, named, fingerprint, self._signer())
                self._database.tell(connection)
        return receipt

    def _made_before(
        self, connection: sa.Connection, log: LogState, deletion: Deletion, fingerprint: str
    ) -> Receipt | None:
        """The receipt that the request id stands for already, if there is one.

        Raises:
            RequestConflictError: it stands for another deletion, made or waiting.
        """
        if deletion.request_id is None:
            return None
        row = steps.stored(connection, deletion.request_id)
        if row is not None and row.fingerprint != fingerprint:
            raise RequestConflictError(
                f"request id {deletion.request_id!r} stands for another deletion: nothing was "
                "deleted. Use a new request id, or repeat the same samples and subjects"
            )
        refuse_other(connection, deletion)
        return None if row is None else steps.read(connection, row, log.purges)

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
    def database(self) -> str:
        """What database it is in, and of which version."""
        return self._database.engine_name

    @contextmanager
    def tables(self) -> Iterator[LedgerTables]:
        """All tables as they are at one moment, for audits, which believe nothing else."""
        with self._database.transaction() as connection:
            yield LedgerTables(connection, self._reader.secrets, self._database)

    # ── the log ──────────────────────────────────────────────────────────────────────────────

    def log(self, after: int = 0) -> Iterator[chain.LogEntry]:
        """Entries of the log by number, read in pages."""
        while True:
            with self._database.transaction() as connection:
                page = chain.entries(connection, after, registry.ROWS)
            yield from page
            if len(page) < registry.ROWS:
                return
            after = page[-1].number

    def recent(self, limit: int) -> list[chain.LogEntry]:
        """The latest entries of the log, the newest first."""
        with self._database.transaction() as connection:
            return chain.latest(connection, limit)

    def receipts(self, limit: int = 100, before: int | None = None) -> list[Receipt]:
        """Receipts of the deletions that were made, the latest first.

        Args:
            limit: at most so many.
            before: only those whose entry of the log has a smaller number.
        """
        number = schema.requests.c.number
        query = sa.select(schema.requests).order_by(number.desc()).limit(limit)
        if before is not None:
            query = query.where(number < before)
        with self._reader.transaction() as (connection, log):
            rows = connection.execute(query).all()
            return [steps.read(connection, row, log.purges) for row in rows]

    def receipt(self, request_id: str) -> Receipt:
        """The receipt of a request: what it did, when it took effect, when it was purged.

        Raises:
            InputError: no such request.
        """
        with self._reader.transaction() as (connection, log):
            row = steps.stored(connection, request_id)
            if row is None:
                raise InputError(
                    f"there is no request {request_id!r} in {self._database.name}: s3t log lists "
                    "what was done"
                )
            return steps.read(connection, row, log.purges)

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

"""The database under a ledger: connections, transactions, and errors in our own words.

    Ledger ──► Database ──► Backend: SQLite, a file of one machine │ PostgreSQL, for several

Invariant: everything runs in a transaction that is committed whole or not at all, durable once
committed. A writer takes the lock at its start, so it never works on what another one is changing.
A file that was replaced under this process is neither read nor written.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import PoolProxiedConnection

from s3t.errors import InputError, IntegrityError, S3TError
from s3t.ledger.database import schema
from s3t.ledger.database.backend import ACCESS, Backend, TransactionMode, Watch, shown
from s3t.ledger.database.sqlite import SQLite

__all__ = ["Database", "Watch", "without_password"]


class Database:
    """One database, shared by threads; a forked process opens its own.

    Attributes:
        dialect: ``sqlite`` or ``postgresql``.
        name: the path or URL, for messages; no password is in it.
        run: the run directory, for messages.
    """

    def __init__(self, where: str, *, create: bool, read_only: bool) -> None:
        """Connect, and make the tables of one that is to be made.

        Raises:
            InputError: not there.
            IntegrityError: not a ledger, damaged, or of another s3t.
            UnavailableError: it cannot be reached.
        """
        self._backend = _backend(where, create, read_only)
        self._engine = self._backend.engine
        self.dialect, self.name = self._backend.dialect, self._backend.name
        self.run = self._backend.run
        self._process = os.getpid()
        self._local = threading.local()
        try:
            self._start(create, read_only)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection of every thread."""
        self._local = threading.local()  # its readers go back to the pool, of every thread
        self._engine.dispose()
        self._backend.close()

    @contextmanager
    def transaction(
        self,
        writes: bool = False,
        synced: bool = True,
        *,
        alone: bool = True,
        scratch: bool = False,
    ) -> Iterator[sa.Connection]:
        """One transaction on a pooled connection; commit at the end, roll back on any error.

        One that only reads sees the ledger as it was at one moment.

        Args:
            writes: take the write lock at the start.
            synced: wait until it is on the disk. If not, it outlives a kill of the process and
                perhaps not a power cut before the next one that is synced.
            alone: where it writes, keep out others that write; only what touches nothing but a
                row of its own may do without.
            scratch: make temporary tables, and look at all samples.
        """
        self._check_process()
        access = TransactionMode(writes, alone, synced, scratch)
        turn = self._backend.turn(synced) if writes else nullcontext()
        with self._explained(), turn, self._begun(access) as (connection, begun):
            self._backend.check()
            try:
                yield connection
                self._backend.check()
            except BaseException:
                begun.rollback()
                raise
            with self._explained(committing=writes):
                begun.commit()
            if writes:
                self._backend.check()  # else what was committed is in a file that no process reads

    def read(self, query: str) -> str:
        """The one value that a query gives, on a connection that the thread keeps.

        For reads as often as predictions: it passes by the pool and the compiler of statements.
        """
        self._check_process()
        with self._explained():
            self._backend.check()
            try:
                return self._read(query)
            except Exception as error:
                if not self._backend.lost(error):
                    raise
                self._engine.dispose()  # what else it holds is as old
            return self._read(query)

    def compact(self) -> bool:
        """Leave nothing of deleted rows in the files: not in free pages, not in the log of writes.

        SQLite overwrites what it frees (``secure_delete``), so that only the write-ahead log is
        left, which is emptied; PostgreSQL rewrites the table. Its own log of writes is beyond
        reach (see ``s3t.run.purge``).

        Returns:
            False if somebody went on reading the older state for too long.
        """
        self._check_process()
        with self._explained():
            return self._backend.compact()

    def acknowledged(self) -> tuple[int, str] | None:
        """Number and digest of the last entry of the log that a writer was through with, as it is
        told beside the database; None where that is not.

        Raises:
            IntegrityError: what is told cannot be understood.
        """
        with self._explained():
            return self._backend.acknowledged()

    def check(self) -> None:
        """See that the database is the one that was opened; of a file, by device and inode.

        Raises:
            UnavailableError: it was replaced or removed.
        """
        self._backend.check()

    def faults(self) -> list[str]:
        """What the database finds wrong with its own pages and indexes, a few of it."""
        self._check_process()
        with self._explained():
            return self._backend.faults()

    @property
    def engine_name(self) -> str:
        """What database it is, and of which version."""
        return self._backend.version

    def watch(self) -> AbstractContextManager[Watch]:
        """Waits for what others commit: for what is told, or for anything at all.

        What is committed after this was entered makes the next ``wait`` return True.
        """
        self._check_process()
        return self._watching()

    @contextmanager
    def training(self) -> Iterator[bool]:
        """Keep other machines from training for this ledger; False if one of them does.

        The server lets go when it loses this process, so a lost connection lets others in.
        """
        self._check_process()
        with self._explained(), self._backend.training() as held:
            yield held

    def tell(self, connection: sa.Connection) -> None:
        """Wake up all who watch, once this transaction is committed."""
        self._backend.tell(connection)

    @contextmanager
    def _watching(self) -> Iterator[Watch]:
        with self._explained(), self._backend.watch() as watch:
            yield watch

    @contextmanager
    def _begun(self, access: TransactionMode) -> Iterator[tuple[sa.Connection, sa.RootTransaction]]:
        """A transaction that has begun, on a connection that is alive."""
        connection, begun = self._begin(access)
        with connection:
            yield connection, begun

    def _begin(self, access: TransactionMode) -> tuple[sa.Connection, sa.RootTransaction]:
        again = True
        while True:
            connection = self._engine.connect().execution_options(**{ACCESS: access})
            try:
                return connection, connection.begin()
            except BaseException as error:
                stale = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
                connection.close()
                if not (stale and again):
                    raise
                again = False  # its server was restarted, and all others of the pool are dropped

    def _read(self, query: str) -> str:
        reader: PoolProxiedConnection | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = self._engine.raw_connection()
        try:
            with closing(reader.cursor()) as cursor:
                cursor.execute(query)
                return str(cursor.fetchall()[0][0])
        except BaseException:
            self._local.reader = None
            reader.invalidate()
            raise

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise S3TError(
                f"{self.name} was opened before this process was forked: open it again here"
            )

    def _start(self, create: bool, read_only: bool) -> None:
        with self.transaction() as connection:
            made = schema.is_made(connection, self.name, create)
        if not read_only:
            with self._explained():
                self._backend.settle()
        if not made:
            with self.transaction(writes=True) as connection:
                # again, since another process may have been faster
                if not schema.is_made(connection, self.name, create):
                    schema.make(connection)
                    self._backend.made(connection)

    @contextmanager
    def _explained(self, committing: bool = False) -> Iterator[None]:
        """Turn the database's errors into ours; whatever else is raised inside passes."""
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, self._driver_error) as error:
            raise self._backend.explain(error, committing) from error
        except UnicodeDecodeError as error:  # of a text, or of a message that names a damaged one
            raise IntegrityError(
                f"{self.name} is damaged, a text of it is not UTF-8 ({error}): restore it from a "
                "copy"
            ) from error

    @property
    def _driver_error(self) -> Any:
        """Root of the errors of the driver, as raised past SQLAlchemy."""
        return self._engine.dialect.loaded_dbapi.Error


def without_password(where: str) -> str:
    """A path or URL as others may read it."""
    return shown(sa.make_url(where)).render_as_string() if "://" in where else where


def _backend(where: str, create: bool, read_only: bool) -> Backend:
    """What opens a path or a URL.

    Raises:
        InputError: no kind of database that can be a ledger.
    """
    if "://" not in where:
        return SQLite(Path(where), create=create, read_only=read_only)
    try:
        url = sa.make_url(where)
    except (sa.exc.ArgumentError, ValueError):  # it may hold a password, so it is not repeated
        raise InputError(
            "the ledger's URL cannot be read: expected postgresql+psycopg://USER@HOST/DATABASE"
        ) from None
    if url.get_backend_name() == "sqlite":
        return SQLite(Path(url.database or ""), create=create, read_only=read_only)
    if url.get_backend_name() == "postgresql":
        from s3t.ledger.database.postgres import Postgres  # psycopg is an extra

        return Postgres(url, read_only=read_only)
    raise InputError(
        f"a ledger cannot be kept in {url.get_backend_name()!r}: expected a path, or "
        "postgresql+psycopg://USER@HOST/DATABASE"
    )

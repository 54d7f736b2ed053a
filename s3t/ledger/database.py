"""The database under a ledger: connections, transactions, and errors in our own words.

Invariant: everything runs in a transaction that is committed whole or not at all, durable once
committed (SQLite: write-ahead log, synchronous FULL). A writer takes the lock at its start, so it
never works on what another one is changing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from s3t.errors import InputError, IntegrityError, S3TError
from s3t.ledger import migrations

__all__ = ["Database"]

BUSY_SECONDS = 30
"""How long a writer waits for another one."""


class Database:
    """One database, shared by threads; a forked process opens its own.

    Attributes:
        name: the path or URL, for messages.
        run: the run directory, for messages.
    """

    def __init__(self, where: str, *, create: bool, read_only: bool) -> None:
        """Connect, and bring an older ledger up to date in one transaction.

        Raises:
            InputError: not there, or older and ``read_only``.
            IntegrityError: not a ledger, damaged, or written by a newer s3t.
        """
        self._engine, self.name, self.run = _engine(where, create, read_only)
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

    @contextmanager
    def transaction(self, writes: bool = False, synced: bool = True) -> Iterator[sa.Connection]:
        """One transaction on a pooled connection; commit at the end, roll back on any error.

        Args:
            writes: take the write lock at the start.
            synced: wait until it is on the disk. If not, it outlives a kill of the process and, on
                SQLite, perhaps not a power cut before the next one that is synced.
        """
        self._check_process()
        with _translated(self.name), self._engine.connect() as pooled:
            connection = pooled.execution_options(s3t_writes=writes, s3t_synced=synced)
            with connection.begin():
                yield connection

    def read(self, query: str) -> str:
        """The one value that a query gives, on a connection that the thread keeps.

        For reads as often as predictions: it passes by the pool and the compiler of statements.
        """
        self._check_process()
        with _translated(self.name):
            reader: PoolProxiedConnection | None = getattr(self._local, "reader", None)
            if reader is None:
                reader = self._local.reader = self._engine.raw_connection()
            cursor = reader.cursor()
            try:
                cursor.execute(query)
                return str(cursor.fetchall()[0][0])
            finally:
                cursor.close()
                if self._engine.dialect.name != "sqlite":
                    reader.rollback()  # SQLite reads outside a transaction, others open one

    def compact(self) -> bool:
        """Leave nothing of deleted rows in the files: not in free pages, not in the log of writes.

        SQLite overwrites what it frees (``secure_delete``), so that only the write-ahead log is
        left, which is emptied; PostgreSQL frees the rows (VACUUM).

        Returns:
            False if somebody went on reading the older state for too long.
        """
        self._check_process()
        with _translated(self.name):
            connection = self._engine.raw_connection()
            try:
                cursor = connection.cursor()
                if self._engine.dialect.name == "sqlite":
                    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    return not cursor.fetchall()[0][0]
                connection.rollback()
                connection.driver_connection.autocommit = True  # type: ignore[union-attr]
                cursor.execute("VACUUM samples")
                return True
            finally:
                connection.invalidate()
                connection.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise S3TError(
                f"{self.name} was opened before this process was forked: open it again here"
            )

    def _start(self, create: bool, read_only: bool) -> None:
        newest = len(migrations.MIGRATIONS)
        with self.transaction() as connection:
            version = migrations.stored_version(connection, self.name, create)
        if version < newest:
            if read_only:
                raise InputError(
                    f"{self.name} has schema {version}, this s3t needs {newest}: "
                    "open it once for writing, which migrates it"
                )
            self._wal()
            with self.transaction(writes=True) as connection:
                # Again, since another process may have been faster.
                version = migrations.stored_version(connection, self.name, create)
                migrations.migrate(connection, version)
        elif not read_only:
            self._wal()

    def _wal(self) -> None:
        """Write-ahead log: readers never wait for a writer. It stays with the file."""
        if self._engine.dialect.name == "sqlite":
            with _translated(self.name):
                connection = self._engine.raw_connection()
                try:
                    connection.cursor().execute("PRAGMA journal_mode = WAL")
                finally:
                    connection.close()


def _engine(where: str, create: bool, read_only: bool) -> tuple[sa.Engine, str, str]:
    """An engine, the ledger's name for messages, and the run's."""
    url = sa.make_url(where) if "://" in where else None
    if url is not None and url.get_backend_name() != "sqlite":
        name = url.render_as_string(hide_password=True)
        engine = sa.create_engine(url, isolation_level="SERIALIZABLE")
        return engine, name, name
    path = Path(where if url is None else url.database or "")
    if not path.is_file():
        if path.exists() or read_only or not create:
            raise InputError(f"there is no ledger at {path}: make one with s3t train CONFIG")
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} for the ledger: make it first")
    mode = "ro" if read_only else "rwc" if create else "rw"
    if read_only and not path.with_name(f"{path.name}-wal").exists():
        mode += "&immutable=1"  # nobody has it open, and even a reader would leave files beside it
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: _connect(uri),
        poolclass=QueuePool,
        pool_size=8,
        max_overflow=-1,
    )
    sa.event.listen(engine, "begin", _begin)
    return engine, str(path), str(path.parent)


def _connect(uri: str) -> sqlite3.Connection:
    # isolation_level=None: the driver leaves BEGIN to us. Its own comes too late for reads and
    # not at all before DDL, and cannot take the write lock at the start.
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # a purged row is gone from the file too
    except BaseException:
        connection.close()
        raise
    return connection


def _begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    writes, synced = options.get("s3t_writes", False), options.get("s3t_synced", True)
    driver: sqlite3.Connection | None = connection.connection.driver_connection
    assert driver is not None
    if writes:  # past SQLAlchemy, which has begun a transaction, for SQLite has not
        driver.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn the database's errors into ours; whatever else is raised inside passes."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise S3TError(
                f"{name} was locked for {BUSY_SECONDS} s, nothing was changed: wait for the other "
                "s3t process, or end it if it hangs, and repeat"
            ) from error
        if code == sqlite3.SQLITE_READONLY:
            raise S3TError(f"{name} was opened or lies read-only: nothing was changed") from error
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if damaged or "no such table" in str(cause) or "no such column" in str(cause):
            raise IntegrityError(
                f"{name} is damaged or no ledger ({cause}): restore it from a copy"
            ) from error
        raise S3TError(f"{name}: {cause}; nothing was changed") from error

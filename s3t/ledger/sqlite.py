"""SQLite as a ledger: one file, for processes of one machine.

Invariant: a writer takes the lock at its start; write-ahead log, synchronous FULL.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from s3t.errors import InputError, IntegrityError, S3TError, UnavailableError
from s3t.ledger import backend
from s3t.ledger.backend import ACCESS, Access, Watch

__all__ = ["SQLite"]

_LOOK_SECONDS = 0.01
"""How often a watch looks whether anybody has written."""
_UNWRITTEN = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)
"""What a quota or a limit of file sizes gives, where a full disk gives ``SQLITE_FULL``."""


class SQLite:
    """A file as a ledger's database (``Backend``).

    Raises:
        InputError: not there, and not to be made; or no folder for it.
    """

    dialect = "sqlite"

    def __init__(self, path: Path, *, create: bool, read_only: bool) -> None:
        if not path.is_file():
            if path.exists() or read_only or not create:
                raise InputError(f"there is no ledger at {path}: make one with s3t train CONFIG")
            if not path.parent.is_dir():
                raise InputError(f"there is no folder {path.parent} for the ledger: make it first")
        mode = "ro" if read_only else "rwc" if create else "rw"
        if read_only and not path.with_name(f"{path.name}-wal").exists():
            mode += "&immutable=1"  # nobody has it open, and even a reader would leave files
        self._uri = f"{path.absolute().as_uri()}?mode={mode}"
        self.name, self.run = str(path), str(path.parent)
        self.engine = sa.create_engine(
            "sqlite://",
            creator=self._connect,
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=-1,
        )
        sa.event.listen(self.engine, "begin", _begin)

    def settle(self) -> None:
        """Write-ahead log: readers never wait for a writer. It stays with the file."""
        connection = self.engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()

    def migrated(self, connection: sa.Connection) -> None:
        """Nothing."""

    def lost(self, error: Exception) -> bool:
        """Never: a file is not gone for a while."""
        return False

    def explain(self, error: Exception, committing: bool) -> S3TError:
        """The error in our own words. A commit that fails has changed nothing."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        extended = getattr(cause, "sqlite_errorcode", 0)
        code = extended & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return UnavailableError(
                f"{self.name} was locked for {backend.BUSY_SECONDS:g} s, nothing was changed: wait "
                "for the other s3t process, or end it if it hangs, and repeat",
                "ledger_locked",
            )
        if code == sqlite3.SQLITE_FULL or extended in _UNWRITTEN:
            return UnavailableError(
                f"{self.name}: there is no space left on its disk, or a quota or limit of file "
                f"sizes keeps it from growing ({cause}), nothing was changed: make some, and "
                "repeat",
                "disk_full",
            )
        if extended == sqlite3.SQLITE_READONLY_DBMOVED or (
            code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and not Path(self.name).exists()
        ):
            return UnavailableError(
                f"{self.name} was moved or removed while it was open, nothing was changed: put "
                "the run back, and repeat",
                "run_gone",
            )
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return UnavailableError(
                f"{self.name} was opened or lies read-only, or may not be opened ({cause}), "
                "nothing was changed: let this process write there, and repeat",
                "storage_denied",
            )
        if code == sqlite3.SQLITE_IOERR:
            return UnavailableError(
                f"{self.name}: {cause}, nothing was changed: look at its disk, and repeat"
            )
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if damaged or "no such table" in str(cause) or "no such column" in str(cause):
            return IntegrityError(
                f"{self.name} is damaged or no ledger ({cause}): restore it from a copy"
            )
        return S3TError(f"{self.name}: {cause}; nothing was changed")

    def compact(self) -> bool:
        """Empty the write-ahead log; what is freed in the file is overwritten anyhow."""
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return not cursor.fetchall()[0][0]
        finally:
            connection.invalidate()
            connection.close()

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Looks at the file's counter of changes, on a connection that never writes."""
        connection = self._connect()
        try:
            yield _FileWatch(self, connection)
        finally:
            connection.close()

    @contextmanager
    def training(self) -> Iterator[bool]:
        """One machine has the file, and the lock of its run directory is enough."""
        yield True

    def tell(self, connection: sa.Connection) -> None:
        """Nothing: who watches sees that somebody has written."""

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: the driver leaves BEGIN to us. Its own comes too late for reads and
        # not at all before DDL, and cannot take the write lock at the start.
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            timeout=backend.BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # a purged row leaves the file too
        except BaseException:
            connection.close()
            raise
        return connection


class _FileWatch:
    """``Watch`` of a file."""

    def __init__(self, database: SQLite, connection: sqlite3.Connection) -> None:
        self._database, self._connection = database, connection
        self._stopped = threading.Event()
        self._seen = self._look()

    def wait(self, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        while not self._stopped.is_set():
            now = self._look()
            if now != self._seen:
                self._seen = now
                return True
            left = limit - time.monotonic()
            if left <= 0:
                return False
            self._stopped.wait(min(left, _LOOK_SECONDS))
        return False

    def stop(self) -> None:
        self._stopped.set()

    def _look(self) -> Any:
        try:
            return self._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise self._database.explain(error, committing=False) from error


def _begin(connection: sa.Connection) -> None:
    access: Access = connection.get_execution_options().get(ACCESS, Access())
    driver: sqlite3.Connection | None = connection.connection.driver_connection
    assert driver is not None
    if access.writes:  # past SQLAlchemy, which has begun a transaction, for SQLite has not
        driver.execute(f"PRAGMA synchronous = {'FULL' if access.synced else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if access.writes else "BEGIN")

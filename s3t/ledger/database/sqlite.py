"""SQLite as a ledger: one file, for processes of one machine.

    write    our lock file ─► BEGIN IMMEDIATE … COMMIT ─► the lock file holds the last entry of our
             log ─► checkpoint, if the log of writes has grown ─► free
    compact  our lock file ─► checkpoint ─► free
    read     a snapshot; waits for no writer

Before 3.51.3 (3.50.7, 3.44.6) a checkpoint that runs while another connection commits can lose
committed pages (https://www.sqlite.org/wal.html#walresetbug). Here that never happens, on any
version: SQLite starts no checkpoint by itself (``wal_autocheckpoint = 0``), and ours hold the lock
file that every writer holds. The last connection that closes makes one too, when no other is there.

A log that lacks the entry which the lock file tells is refused (see ``lock_file``).

Invariant: a writer takes the lock at its start; write-ahead log, synchronous FULL. The file that
was opened is the file at its path, looked at before and after everything that is done.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from s3t.errors import InputError, IntegrityError, S3TError, UnavailableError
from s3t.ledger.database import backend
from s3t.ledger.database.backend import ACCESS, TransactionMode, Watch
from s3t.ledger.database.lock_file import FileIdentity, LockFile, identity
from s3t.system.replaced import replaced

__all__ = ["SQLite"]

_LOOK_SECONDS = 0.01
"""How often a watch looks whether another process has written."""

_LOG_BYTES = 4 * 2**20
"""Of the write-ahead log, from which on its pages are moved into the file."""

_DAMAGED = ("no such table", "no such column", "Could not decode to UTF-8")
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
            mode += "&immutable=1"  # no process has it open, and even a reader would leave files
        self._path = path.absolute()
        self._lock_file = LockFile(self._path.with_name(f"{self._path.name}-lock"), str(path))
        self._uri = f"{self._path.as_uri()}?mode={mode}"
        self._opened: FileIdentity | None = None
        self._log: FileIdentity | None = None
        self._anchor: sqlite3.Connection | None = None  # while it is open, the log stays
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
        with self._lock_file.alone():
            connection = self.engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
        self._anchor = self._connect()
        self._anchor.execute("SELECT COUNT(*) FROM sqlite_schema").fetchall()  # opens the log
        self._log = identity(self._log_path)

    def close(self) -> None:
        """Let go of the write-ahead log."""
        if self._anchor is not None:
            self._anchor.close()
        self._anchor = self._log = None

    def made(self, connection: sa.Connection) -> None:
        """Forget the last entry of another ledger that was here."""
        self._lock_file.clear()

    @property
    def version(self) -> str:
        """The library's."""
        return f"SQLite {sqlite3.sqlite_version}"

    @contextmanager
    def turn(self, synced: bool) -> Iterator[None]:
        """Keep out all other writers and checkpoints, of all processes; then acknowledge what was
        written, and make a checkpoint.

        What a power cut may take is not acknowledged, or it would be missed afterwards.
        """
        with self._lock_file.alone() as file:
            yield
            if synced:
                self._lock_file.acknowledge(file, self._last_entry())
            self._checkpoint_if_long()

    def acknowledged(self) -> tuple[int, str] | None:
        """Number and digest of the last entry of our log that a writer was through with."""
        return self._lock_file.acknowledged()

    def check(self) -> None:
        """See that file and write-ahead log are those that were opened."""
        found = identity(self._path)
        if found != self._opened is not None:
            raise self._replaced(self._path, found)
        if self._log is not None and (beside := identity(self._log_path)) != self._log:
            raise self._replaced(self._log_path, beside)

    def faults(self) -> list[str]:
        """``PRAGMA integrity_check``: every page, and every row against every index."""
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA integrity_check(3)")
            found = [str(row[0]) for row in cursor.fetchall()]
        finally:
            connection.close()
        return [] if found == ["ok"] else found

    def lost(self, error: Exception) -> bool:
        """Never: a file is not gone for a while."""
        return False

    def explain(self, error: Exception, committing: bool) -> S3TError:
        """The error in our own words. A commit that fails has changed nothing."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        extended = getattr(cause, "sqlite_errorcode", 0)
        code = extended & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return self._lock_file.locked()
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
        if damaged or any(words in str(cause) for words in _DAMAGED):
            return IntegrityError(
                f"{self.name} is damaged or no ledger ({cause}): restore it from a copy"
            )
        return S3TError(f"{self.name}: {cause}; nothing was changed")

    def compact(self) -> bool:
        """Empty the write-ahead log; what is freed in the file is overwritten anyhow."""
        with self._lock_file.alone():
            return self._checkpoint(backend.BUSY_SECONDS)

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

    @property
    def _log_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}-wal")

    def _last_entry(self) -> tuple[int, str] | None:
        """Number and digest of the last entry of our log."""
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT number, digest FROM log ORDER BY number DESC LIMIT 1")
            last: tuple[int, str] | None = cursor.fetchone()
            return last
        finally:
            connection.close()

    def _checkpoint_if_long(self) -> None:
        with suppress(OSError):
            if self._log_path.stat().st_size > _LOG_BYTES:
                self._checkpoint(0.0)  # who reads an older state keeps it; the next one tries again

    def _checkpoint(self, wait: float) -> bool:
        """Move the log's pages into the file, and empty it unless a reader needs it."""
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {round(wait * 1000)}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return not cursor.fetchall()[0][0]
        finally:
            connection.invalidate()
            connection.close()

    def _replaced(self, path: Path, found: FileIdentity | None) -> UnavailableError:
        so = (
            "so what is deleted since cannot be known, and what this process would write no other "
            "would read"
        )
        return replaced(path, found is None, "another file", so)

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: the driver leaves BEGIN to us. Its own comes too late for reads and
        # not at all before DDL, and cannot take the write lock at the start.
        before = identity(self._path)
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            timeout=backend.BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            found = identity(self._path)
            if self._opened is None:
                self._opened = found
            if found != self._opened or before not in (None, found):
                raise self._replaced(self._path, found)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
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
    access: TransactionMode = connection.get_execution_options().get(ACCESS, TransactionMode())
    driver: sqlite3.Connection | None = connection.connection.driver_connection
    assert driver is not None
    if access.writes:  # past SQLAlchemy, which has begun a transaction, for SQLite has not
        driver.execute(f"PRAGMA synchronous = {'FULL' if access.synced else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if access.writes else "BEGIN")

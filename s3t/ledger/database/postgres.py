"""PostgreSQL as a ledger: for replicas of one run, on as many machines as there are.

    writes   BEGIN READ COMMITTED, then one lock of the whole ledger   one after the other
    reads    BEGIN REPEATABLE READ READ ONLY                           one moment, waits for no one

Invariant: a writer has the lock before its first look, so it sees all that was committed and
never meets a serialization failure; a commit returns when it is on the server's disk. A ledger is
one schema of one database: the one that comes first in the connection's search path.
"""

from __future__ import annotations

import hashlib
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, S3TError, UnavailableError
from s3t.ledger.database import backend
from s3t.ledger.database.backend import ACCESS, TransactionMode, Watch, shown

try:
    import psycopg

    from s3t.ledger.database.postgres_compact import compacted
except ImportError:
    raise InputError(
        "a ledger on PostgreSQL needs psycopg: install it with pip install 's3t[postgres]'"
    ) from None

__all__ = ["Postgres"]

_CLIENT = {
    "application_name": "s3t",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
"""How soon we notice that the server is out of reach: about 5 s."""

_SERVER = (
    "SET tcp_keepalives_idle = 2; SET tcp_keepalives_interval = 1; "
    "SET tcp_keepalives_count = 3; SET tcp_user_timeout = 5000"
)
"""How soon the server notices that we are, and frees the lock; its own default is hours."""

_PLANNER = "SET enable_seqscan = off; SET jit = off; SET max_parallel_workers_per_gather = 0"
"""No statistics of ids are gathered (see ``made``), so the planner takes 500 ids for a good
part of all samples. Every statement of a deletion has its index; what reads all says so."""

_SCANS = "; SET LOCAL enable_seqscan = on"

_SETTINGS = (
    "SELECT current_setting('fsync'), current_setting('server_encoding'), current_schema(), "
    "pg_backend_pid()"
)
_TRIES = 5
_IDLE_SECONDS = 60
"""After which the server ends a writing transaction of a process that does nothing."""

_GONE = ("57P01", "57P02", "57P03", "57P05", "25P03", "53300", "53400")
"""Shut down, crashed, starting; sessions that were ended; too many connections."""


class Postgres:
    """A schema of a database as a ledger's (``Backend``).

    Passwords may be in the URL; libpq's own ways (``PGPASSWORD``, ``~/.pgpass``, a service) are
    better, since the run's config holds the URL as it was given.

    Raises:
        InputError: a URL that cannot be meant.
    """

    dialect = "postgresql"

    def __init__(self, url: sa.URL, *, read_only: bool) -> None:
        if "@" in (url.host or ""):  # then what comes before it is a part of the password
            raise InputError("the ledger's URL has several @: write one in a password as %40")
        url = url.set(drivername="postgresql+psycopg")
        self.name = self.run = shown(url).render_as_string()
        self._read_only = read_only
        given = {key: value for key, value in _CLIENT.items() if key not in url.query}
        self._settings: tuple[str, str, str | None] | None = None
        self._pooled = False
        self.engine = sa.create_engine(
            url,
            use_native_hstore=False,  # else each connection begins by asking for that type
            connect_args=given | {"autocommit": True},  # BEGIN is ours, see _begin
            pool_size=16,
            max_overflow=-1,
            pool_recycle=3600,
        )
        sa.event.listen(self.engine, "connect", self._connected)
        sa.event.listen(self.engine, "begin", self._begin)

    def settle(self) -> None:
        """Refuse a server that loses what it has committed, that mangles text, or that is behind
        a pooler which gives each transaction another session."""
        assert self._settings is not None
        fsync, encoding, _ = self._settings
        if (fsync, encoding) != ("on", "UTF8"):
            raise InputError(
                f"{self.name} cannot keep a ledger: it has fsync {fsync} and encoding {encoding}, "
                "expected on, so that no deletion is lost, and UTF8"
            )
        if self._pooled and not self._keeps_sessions():
            raise InputError(
                f"{self.name} is behind a pooler in transaction mode, where a lock, a setting and "
                "LISTEN hold for one transaction only, so two could train or purge at once: name "
                "the server itself with ledger=URL, or set pool_mode=session for this database"
            )

    def _keeps_sessions(self) -> bool:
        """Whether a pooler leaves a session to the connection that began it.

        While a second connection is in a transaction, the first must be where it was, and the
        second elsewhere. Other clients of the pooler may hide that, so it is tried several times.
        """
        pooled = [self.engine.raw_connection() for _ in range(2)]
        try:
            first, second = (one.driver_connection for one in pooled)
            assert isinstance(first, psycopg.Connection) and isinstance(second, psycopg.Connection)
            for _ in range(_TRIES):
                own = _session(first)
                second.execute("BEGIN")
                try:
                    if _session(second) == own or _session(first) != own:
                        return False
                finally:
                    second.execute("ROLLBACK")
            return True
        finally:
            for one in pooled:
                one.invalidate()
                one.close()

    def made(self, connection: sa.Connection) -> None:
        """Order texts by their bytes, as everything else does, and gather no statistics of ids.

        Statistics hold values of rows, and so would go on holding ids that were purged.
        """
        found = connection.exec_driver_sql(
            "SELECT table_name, column_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND data_type = 'text' "
            "ORDER BY table_name, column_name"
        ).all()
        for table, column, collation in found:
            alter = f'ALTER TABLE "{table}" ALTER COLUMN "{column}"'
            if collation != "C":
                connection.exec_driver_sql(f'{alter} TYPE TEXT COLLATE "C"')
            connection.exec_driver_sql(f"{alter} SET STATISTICS 0")

    def close(self) -> None:
        """Nothing."""

    def turn(self, synced: bool) -> AbstractContextManager[None]:
        """Nothing: a writer's transaction holds a lock of the server."""
        return nullcontext()

    def acknowledged(self) -> None:
        """Nothing is told elsewhere: what a server does not find again, it refuses itself."""

    def check(self) -> None:
        """Nothing: a server's database is reached by its connection, or not at all."""

    def faults(self) -> list[str]:
        """None: a server has tools for that (pg_amcheck), which need rights of their own."""
        return []

    @property
    def version(self) -> str:
        """The server's."""
        found = self.engine.dialect.server_version_info
        return f"PostgreSQL {'.'.join(map(str, found or ()))}"

    def lost(self, error: Exception) -> bool:
        """Whether the connection that an error is of has ended."""
        if isinstance(error, sa.exc.DBAPIError):
            return error.connection_invalidated
        if not isinstance(error, psycopg.OperationalError):
            return False
        state = error.sqlstate
        return state is None or state in _GONE or state.startswith("08")

    def explain(self, error: Exception, committing: bool) -> S3TError:
        """The error in our own words, without values of rows."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        assert isinstance(cause, psycopg.Error)
        said = (cause.diag.message_primary or str(cause).partition("\n")[0]).strip()
        lost = self.lost(error) or self.lost(cause)
        if lost and committing:
            return UnavailableError(
                f"the connection to {self.name} was lost while it committed ({said}), so it is not "
                "known whether that was done: repeat it, with the same request id if it was a "
                "deletion; what was done is not done twice"
            )
        if lost:
            return UnavailableError(
                f"{self.name} cannot be reached ({said}), nothing was changed: see that the server "
                "runs and lets this machine in, and repeat"
            )
        return self._explained(cause, said)

    def _explained(self, cause: psycopg.Error, said: str) -> S3TError:
        """An error of a server that is there."""
        errors = psycopg.errors
        if isinstance(cause, errors.LockNotAvailable):
            return UnavailableError(
                f"{self.name} was locked for {backend.BUSY_SECONDS:g} s, nothing was changed: wait "
                "for the other s3t process, or end it if it hangs, and repeat",
                "ledger_locked",
            )
        if isinstance(cause, errors.DiskFull):
            return UnavailableError(
                f"{self.name}: there is no space left on its disk, nothing was changed: make "
                "some, and repeat",
                "disk_full",
            )
        if isinstance(cause, (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege)):
            return UnavailableError(
                f"{self.name} was opened or is read-only, perhaps a standby, or lets this user do "
                f"less than it needs ({said}): nothing was changed",
                "storage_denied",
            )
        damaged = (errors.DataCorrupted, errors.IndexCorrupted)
        if isinstance(cause, (*damaged, errors.UndefinedTable, errors.UndefinedColumn)):
            return IntegrityError(
                f"{self.name} is damaged or no ledger ({said}): restore it from a copy"
            )
        if isinstance(cause, psycopg.DataError) and "NUL" in said:
            return InputError(
                "an id or text with a NUL character cannot be in a ledger on PostgreSQL: "
                "nothing was changed"
            )
        return S3TError(f"{self.name}: {said}; nothing was changed")

    def compact(self) -> bool:
        """See ``compacted``."""
        connection = self.engine.raw_connection()
        try:
            driver = connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            return compacted(driver)
        finally:
            connection.invalidate()  # its settings are not what others expect
            connection.close()

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Listens on a connection of its own."""
        pooled = self.engine.raw_connection()
        try:
            driver = pooled.driver_connection
            assert isinstance(driver, psycopg.Connection)
            driver.execute(f"LISTEN {self._channel}")
            with _ChannelWatch(self, driver) as watch:
                yield watch
        finally:
            pooled.invalidate()  # it listens, so no other user may have it
            pooled.close()

    @contextmanager
    def training(self) -> Iterator[bool]:
        """Holds a lock on a connection of its own, which the server ends with it."""
        pooled = self.engine.raw_connection()
        try:
            driver = pooled.driver_connection
            assert isinstance(driver, psycopg.Connection)
            took = f"SELECT pg_try_advisory_lock(hashtext('training'), hashtext('{self._channel}'))"
            yield bool(driver.execute(took.encode()).fetchall()[0][0])
        finally:
            pooled.invalidate()
            pooled.close()

    def tell(self, connection: sa.Connection) -> None:
        """Notify all who listen, at the commit."""
        connection.exec_driver_sql(f"NOTIFY {self._channel}")

    def _begin(self, connection: sa.Connection) -> None:
        access: TransactionMode = connection.get_execution_options().get(ACCESS, TransactionMode())
        if not access.writes:
            mode = _SCANS if access.scratch else " READ ONLY"
            connection.exec_driver_sql(f"BEGIN ISOLATION LEVEL REPEATABLE READ{mode}")
            return
        if self._read_only:
            raise S3TError(f"{self.name} was opened read-only: nothing was changed")
        wait = f"{round(backend.BUSY_SECONDS * 1000)}ms"
        steps = [
            "BEGIN ISOLATION LEVEL READ COMMITTED",
            f"SET LOCAL lock_timeout = '{wait}'",
            f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'",
            f"SET LOCAL synchronous_commit = {'on' if access.synced else 'off'}",
        ]
        if access.scratch:
            steps[0] += _SCANS
        if access.alone:
            steps.append(f"SELECT pg_advisory_xact_lock({self._lock})")
        connection.exec_driver_sql("; ".join(steps))

    def _connected(self, driver: psycopg.Connection[Any], record: object) -> None:
        """Set up a connection, and learn what kind of database this is; in one turn."""
        cursor = driver.execute(f"{_SERVER}; {_PLANNER}; {_SETTINGS}".encode())
        while cursor.nextset():
            pass
        *settings, process = cursor.fetchall()[0]
        self._settings = tuple(settings)
        # a pooler makes up the number that it tells at the start
        self._pooled = process != driver.info.backend_pid

    @property
    def _channel(self) -> str:
        """Name of the channel that changes of this ledger are told on: by its schema."""
        schema = None if self._settings is None else self._settings[2]
        if schema is None:
            raise InputError(f"{self.name}: no schema of its search path is there: make one")
        return f"s3t_{hashlib.sha256(schema.encode()).hexdigest()[:16]}"

    @property
    def _lock(self) -> int:
        """Number of the lock of this ledger; numbers are a database's own."""
        digest = hashlib.sha256(self._channel.encode()).digest()
        return int.from_bytes(digest[:8], signed=True)


class _ChannelWatch:
    """``Watch`` of a channel."""

    def __init__(self, database: Postgres, driver: psycopg.Connection[Any]) -> None:
        self._database, self._driver = database, driver
        self._lock = threading.Lock()
        self._stopped = False
        self._wakes, self._wake = os.pipe()

    def __enter__(self) -> _ChannelWatch:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._stopped = True
            os.close(self._wakes)
            os.close(self._wake)

    def wait(self, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        try:
            poll = select.poll()
            poll.register(self._driver.fileno(), select.POLLIN)
            poll.register(self._wakes, select.POLLIN)
            while not self._stopped:
                if list(self._driver.notifies(timeout=0)):
                    return True
                left = limit - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
        except psycopg.Error as error:
            raise self._database.explain(error, committing=False) from error
        return False

    def stop(self) -> None:
        with self._lock:
            if not self._stopped:
                self._stopped = True
                os.write(self._wake, b"!")


def _session(driver: psycopg.Connection[Any]) -> int:
    """Number of the server's process that serves a connection at this moment."""
    return int(driver.execute("SELECT pg_backend_pid()").fetchall()[0][0])

"""What a database has to offer to be a ledger; ``sqlite`` and ``postgres`` are the two that do.

Database ──► Backend: SQLite │ PostgreSQL
               begin, turn, check, explain, faults, compact, watch, tell
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

from s3t.errors import S3TError

__all__ = ["ACCESS", "BUSY_SECONDS", "Backend", "TransactionMode", "Watch", "shown"]

BUSY_SECONDS = 30.0
"""How long a writer waits for another one."""

ACCESS = "s3t_access"
"""Name of the execution option that tells a backend how a transaction is to begin."""

_SECRETS = ("password", "sslpassword")


@dataclass(frozen=True, slots=True)
class TransactionMode:
    """How a transaction is to begin.

    Attributes:
        writes: it changes the ledger.
        alone: of those that write, no other one may run meanwhile.
        synced: its commit waits for the disk.
        scratch: it makes temporary tables and looks at all samples, whether it writes or not.
    """

    writes: bool = False
    alone: bool = True
    synced: bool = True
    scratch: bool = False


class Watch(Protocol):
    """Waits until something in the ledger may have changed. Of one thread, but for ``stop``."""

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; True if anything may have changed since the last look.

        Raises:
            UnavailableError: the connection to the ledger is lost.
        """

    def stop(self) -> None:
        """Make ``wait`` give False at once, now and from now on; from any thread."""


class Backend(Protocol):
    """One database of one kind.

    Attributes:
        dialect: ``sqlite`` or ``postgresql``.
        name: path, or URL without any password, for messages.
        run: the run directory, or the same as ``name``, for messages.
        version: what database it is, for people.
        engine: its connections; ``begin`` is called for every transaction on them.
    """

    dialect: str
    name: str
    run: str
    engine: sa.Engine

    @property
    def version(self) -> str: ...

    def settle(self) -> None:
        """See once, when it is opened for writing, that the database is set as a ledger needs."""

    def close(self) -> None:
        """Close what is open besides the connections of the engine."""

    def made(self, connection: sa.Connection) -> None:
        """Give tables that have just been made what this kind of database needs."""

    def turn(self, synced: bool) -> AbstractContextManager[None]:
        """Hold what a writer needs besides the lock that its transaction takes.

        Args:
            synced: its commit waits for the disk.
        """

    def acknowledged(self) -> tuple[int, str] | None:
        """The last entry of our log as it is told beside the database; None where that is not."""

    def check(self) -> None:
        """See that the database is the one that was opened.

        Raises:
            UnavailableError: it was replaced or removed.
        """

    def faults(self) -> list[str]:
        """See ``Database.faults``."""

    def lost(self, error: Exception) -> bool:
        """Whether an error says that the connection is gone."""

    def explain(self, error: Exception, committing: bool) -> S3TError:
        """The error in our own words.

        Args:
            error: of the driver, or of SQLAlchemy.
            committing: it came of a commit.
        """

    def compact(self) -> bool:
        """See ``Database.compact``."""

    def watch(self) -> AbstractContextManager[Watch]:
        """See ``Database.watch``."""

    def tell(self, connection: sa.Connection) -> None:
        """See ``Database.tell``."""

    def training(self) -> AbstractContextManager[bool]:
        """See ``Database.training``."""


def shown(url: sa.URL) -> sa.URL:
    """A URL without the passwords that are in it."""
    query = {key: value for key, value in url.query.items() if key not in _SECRETS}
    return sa.URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, query
    )

"""A ledger as audits read it: its tables row by row, at one moment, nothing put together.

    samples, forgotten, log, requests, slots, copies, nodes, jobs, run ──► audits

Invariant: it reads and never writes, and all of it in one transaction, so rows of different tables
can be held against each other while others go on deleting. What is read is given as it lies there:
the text of a log entry, not what it parses to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.log.state import Secrets
from s3t.ledger.samples.purging import hashed
from s3t.ledger.samples.registry import ROWS

__all__ = ["LedgerTables"]

Row = sa.Row[Any]


class LedgerTables:
    """The tables of a ledger at one moment. Rows have the columns of ``schema`` by name.

    Args:
        connection: in a transaction that outlives this.
        secrets: keys of the hashes in receipts and of purged samples.
        database: that the connection is of.
    """

    def __init__(self, connection: sa.Connection, secrets: Secrets, database: Database) -> None:
        self._connection, self.secrets, self._database = connection, secrets, database

    def samples(self) -> Iterator[Row]:
        """All samples that have rows, by id; read a page at a time."""
        return self._paged(sa.select(schema.samples).order_by(schema.samples.c.sample_id))

    def forgotten(self) -> Iterator[Row]:
        """The keyed hashes that stay of purged samples; read a page at a time."""
        return self._paged(sa.select(schema.forgotten).order_by(schema.forgotten.c.sample))

    def log(self) -> Iterator[Row]:
        """All entries of the log, in order; read a page at a time."""
        return self._paged(sa.select(schema.log).order_by(schema.log.c.number))

    def requests(self) -> Iterator[Row]:
        """Request ids with the entry that each stands for, in pages."""
        return self._paged(sa.select(schema.requests).order_by(schema.requests.c.request_id))

    def copies(self) -> Iterator[Row]:
        """Contents that several samples were registered with, in pages."""
        return self._paged(sa.select(schema.copies).order_by(schema.copies.c.content))

    def repeated(self) -> list[tuple[str, int]]:
        """Contents that several of the samples left have, with how many."""
        content, left = schema.samples.c.content, schema.samples.c.deleted_view.is_(None)
        query = sa.select(content, sa.func.count()).where(left).group_by(content)
        found = self._connection.execute(query.having(sa.func.count() > 1).order_by(content))
        return [(row[0], int(row[1])) for row in found]

    def slots(self) -> list[Row]:
        """Counters of the slots, by slot."""
        return self._all(schema.slots)

    def nodes(self) -> list[Row]:
        """Nodes with the digest of their weights, by key."""
        return self._all(schema.nodes)

    def jobs(self) -> list[Row]:
        """Large deletions that were accepted and are not done, and cancelled ones."""
        return self._all(schema.jobs)

    def values(self) -> dict[str, str]:
        """The table ``run`` but for its secrets."""
        rows = self._all(schema.run)
        return {row.key: row.value for row in rows if "secret" not in row.key}

    @property
    def acknowledged(self) -> tuple[int, str] | None:
        """Number and digest of the last entry of the log, as told beside the database, if it is."""
        return self._database.acknowledged()

    def strange(self) -> list[str]:
        """What the database holds and is no part of a ledger: tables, columns, views, triggers."""
        return schema.strange(self._connection)

    def keyed(self, text: str) -> str:
        """How receipts name a sample id."""
        return hashed(text, self.secrets.receipts)

    def hashed(self, text: str) -> str:
        """How purged samples are named."""
        return hashed(text, self.secrets.forgotten)

    def _all(self, table: sa.Table) -> list[Row]:
        query = sa.select(table).order_by(*table.primary_key.columns)
        return list(self._connection.execute(query))

    def _paged(self, query: sa.Select[Any]) -> Iterator[Row]:
        for page in self._connection.execute(query).partitions(ROWS):
            yield from page

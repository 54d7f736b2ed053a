"""What is known of what serves: its fitted weights, and how it did on the public test rows.

    fitted by a process ─► one row, if it is still of the present view ─► taken up by the others
    a deletion of samples ─► no row

Invariant: what is recorded came of nodes that all live. A deletion takes the rows away in its own
transaction, and nothing of an older view is recorded after it. So the log, which keeps what it is
told for good, holds none of this.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.log.state import LogReader

__all__ = ["EVALUATION", "RECORDS", "WEIGHTS", "ServedRecords", "forget_records", "record_of"]

WEIGHTS, EVALUATION = "weights", "evaluation"
RECORDS = (WEIGHTS, EVALUATION)
"""Keys of the table ``run`` under which they lie."""

_FORGET = sa.delete(schema.run).where(schema.run.c.key.in_(RECORDS))


class ServedRecords:
    """The records of one ledger (``Ledger.served``).

    A record is ``of`` (JSON values that say what it came of: ``nodes`` by key, and the rest), the
    ``view`` at which it came, and its ``values``.
    """

    def __init__(self, reader: LogReader, database: Database) -> None:
        self._reader, self._database = reader, database

    def read(self, key: str = WEIGHTS) -> dict[str, Any] | None:
        """The record under a key; None if there is none, or it cannot be understood."""
        with self._database.transaction() as connection:
            return record_of(schema.value(connection, key))

    def record(
        self, view: int, of: dict[str, Any], values: dict[str, Any], key: str = WEIGHTS
    ) -> dict[str, Any] | None:
        """Record values; the first ones of what they came of win.

        Args:
            view: at which they came.
            of: what they came of, as JSON values.
            values: JSON values.
            key: one of ``RECORDS``.

        Returns:
            the record as it is now; None if the ledger has come to another view.
        """
        with self._reader.transaction(writes=True, synced=False) as (connection, log):
            if log.view != view:
                return None
            known = record_of(schema.value(connection, key))
            if known is not None and known["of"] == of:
                return known
            found = {"of": of, "view": view, "values": values}
            schema.set_value(connection, key, json.dumps(found))
            return found


def forget_records(connection: sa.Connection) -> None:
    """Take all records away, in the transaction of a deletion."""
    connection.execute(_FORGET)


def record_of(text: str | None) -> dict[str, Any] | None:
    """A record as it lies in the table; None if it cannot be understood."""
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("view"), int):
        return None
    parts = found.get("of"), found.get("values")
    return found if all(isinstance(part, dict) for part in parts) else None

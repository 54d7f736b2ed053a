"""The fitted weights of what serves, so that all processes of a run answer with the same numbers.

    fitted by a process ─► one row, if it is still of the present view ─► taken up by the others
    a deletion of samples ─► no row

Invariant: whatever is recorded was fitted on nodes that all live. A deletion takes the row away in
its own transaction, and nothing that was fitted at an older view is recorded after it. So the log,
which keeps what it is told for good, holds no weights.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.log.state import LogReader

__all__ = ["RecordedWeights", "forget_weights"]

_KEY = "weights"
_FORGET = sa.delete(schema.run).where(schema.run.c.key == _KEY)


class RecordedWeights:
    """The recorded weights of one ledger (``Ledger.weights``)."""

    def __init__(self, reader: LogReader, database: Database) -> None:
        self._reader, self._database = reader, database

    def read(self) -> dict[str, Any] | None:
        """What is recorded: ``of`` (what it was fitted on), ``view``, and the ``values`` that were
        given; None if nothing is, or it cannot be understood."""
        with self._database.transaction() as connection:
            return _read(connection)

    def record(
        self, view: int, of: dict[str, Any], values: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Record values; the first ones of what they were fitted on win.

        Args:
            view: at which they were fitted.
            of: what they were fitted on, as JSON values: ``nodes`` by key, and the rest.
            values: JSON values.

        Returns:
            what is recorded now, as ``read``; None if the ledger has come to another view.
        """
        with self._reader.transaction(writes=True, synced=False) as (connection, log):
            if log.view != view:
                return None
            known = _read(connection)
            if known is not None and known["of"] == of:
                return known
            found = {"of": of, "view": view, "values": values}
            schema.set_value(connection, _KEY, json.dumps(found))
            return found


def forget_weights(connection: sa.Connection) -> None:
    """Take the record away, in the transaction of a deletion."""
    connection.execute(_FORGET)


def _read(connection: sa.Connection) -> dict[str, Any] | None:
    try:
        found = json.loads(schema.value(connection, _KEY) or "null")
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("view"), int):
        return None
    parts = found.get("of"), found.get("values")
    return found if all(isinstance(part, dict) for part in parts) else None

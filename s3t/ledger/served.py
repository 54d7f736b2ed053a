"""What is known of what serves: its fitted weights, and how it did on the public test rows.

    fitted by a process ─► one row, if it is still of the present view ─► taken up by the others
    a deletion of samples ─► no row
    evaluated ─► one more figure of the history ─► a purge takes away those of older views

Invariants: what is recorded came of nodes that all live. A deletion takes the rows away in its own
transaction, and nothing of an older view is recorded after it. So the log, which keeps what it is
told for good, holds none of this. Figures of the history are shown and nothing else is done with
them; none outlives the weights that it is of.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.log import chain
from s3t.ledger.log.state import LogReader
from s3t.ledger.samples import counters

__all__ = [
    "EVALUATION",
    "HISTORY",
    "RECORDS",
    "WEIGHTS",
    "ServedRecords",
    "forget_history",
    "forget_records",
    "forget_records_of",
    "history_of",
    "record_of",
]

WEIGHTS, EVALUATION = "weights", "evaluation"
RECORDS = (WEIGHTS, EVALUATION)
"""Keys of the table ``run`` under which they lie."""
HISTORY = "evaluations"
"""Key of the table ``run`` with the figures of all views since the last purge."""
_KEPT = 500
"""Figures of the history, at most; the oldest go."""

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

    def record_evaluation(self, view: int, of: dict[str, Any], values: dict[str, Any]) -> None:
        """Record an evaluation of what serves, and remember its figures beside the earlier ones.

        Args:
            view, of, values: as ``record``.
        """
        if self.record(view, of, values, EVALUATION) is None:
            return
        with self._reader.transaction(writes=True, synced=False) as (connection, log):
            if log.view != view:
                return
            earlier = history_of(schema.value(connection, HISTORY))
            others = [one for one in earlier if one["view"] != view]
            _, deleted = counters.totals(connection)
            now = {"view": view, "at": chain.now(), "deleted": deleted, **values}
            schema.set_value(connection, HISTORY, json.dumps([*others, now][-_KEPT:]))

    def history(self) -> list[dict[str, Any]]:
        """Figures of evaluations since the last purge, by view: ``view``, ``at``, ``deleted``
        samples, and the values of the record."""
        with self._database.transaction() as connection:
            return history_of(schema.value(connection, HISTORY))


def forget_history(connection: sa.Connection, view: int) -> None:
    """Take the figures of views before this one away, in the transaction of a purge."""
    left = [one for one in history_of(schema.value(connection, HISTORY)) if one["view"] >= view]
    schema.set_value(connection, HISTORY, json.dumps(left))


def history_of(text: str | None) -> list[dict[str, Any]]:
    """The history as it lies in the table; what cannot be understood is left out."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    each = found if isinstance(found, list) else []
    return [one for one in each if isinstance(one, dict) and isinstance(one.get("view"), int)]


def forget_records(connection: sa.Connection) -> None:
    """Take all records away, in the transaction of a deletion."""
    connection.execute(_FORGET)


def forget_records_of(connection: sa.Connection, keys: Collection[str]) -> None:
    """Take records away that came of one of these nodes, in the transaction of a purge."""
    for record in RECORDS:
        found = record_of(schema.value(connection, record))
        nodes = None if found is None else found["of"].get("nodes")
        if isinstance(nodes, list) and not {*map(str, nodes)}.isdisjoint(keys):
            connection.execute(sa.delete(schema.run).where(schema.run.c.key == record))


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

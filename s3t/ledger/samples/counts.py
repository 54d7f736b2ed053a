"""What is left in a run, as the ledger counts it, and when deletions were made. Reads only."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from s3t.errors import IntegrityError
from s3t.ledger.database.schema import TOOK, requests
from s3t.ledger.log.state import LogReader
from s3t.ledger.samples import counters
from s3t.ledger.samples.counters import SlotPersons

__all__ = ["Counts"]

_HISTORY = (
    sa.select(requests.c.view, requests.c.created_at, requests.c.persons)
    .where(TOOK)
    .order_by(requests.c.view)
)


class Counts:
    """The counts of one ledger (``Ledger.counts``).

    Args:
        reader: of its log.
        name: of the ledger, for messages.
    """

    def __init__(self, reader: LogReader, name: str) -> None:
        self._reader, self._name = reader, name

    def totals(self) -> dict[str, int]:
        """``samples`` registered and ``deleted`` among them."""
        with self._reader.connection() as connection:
            held, deleted = counters.totals(connection)
        return {"samples": held, "deleted": deleted}

    def hits(self, since_view: int = 0) -> list[tuple[int, int, int]]:
        """(shard, slice, view) of every slot hit after ``since_view``, and by which view last."""
        with self._reader.transaction() as (_, log):
            return sorted((*slot, view) for slot, view in log.hits.items() if view > since_view)

    def persons(self) -> list[SlotPersons]:
        """The persons of every slot that holds samples, by slot."""
        with self._reader.connection() as connection:
            return counters.persons(connection)

    def history(self) -> list[tuple[datetime, int]]:
        """When each deletion was made and of how many persons, by view.

        A sample of no subject counts as a person. Dry runs leave no trace.

        Raises:
            IntegrityError: a moment that is none.
        """
        with self._reader.connection() as connection:
            made = [(row.created_at, row.persons) for row in connection.execute(_HISTORY)]
        try:
            return [(datetime.fromisoformat(at).astimezone(UTC), count) for at, count in made]
        except ValueError as error:
            raise IntegrityError(
                f"{self._name} has a receipt of no known moment ({error}): restore it from a copy"
            ) from None

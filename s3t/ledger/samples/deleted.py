"""The deleted samples of a ledger, by keyed hashes; and the purge that leaves nothing but those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from s3t.ledger import generations
from s3t.ledger.database.database import Database
from s3t.ledger.log import chain, proof
from s3t.ledger.log.signing import Signer
from s3t.ledger.log.state import LogReader
from s3t.ledger.planning import seal
from s3t.ledger.samples import purging, registry
from s3t.ledger.samples.purging import Forgotten, Gone
from s3t.ledger.served import forget_history, forget_records_of
from s3t.types import NodeKey

__all__ = ["DeletedSamples"]


class DeletedSamples:
    """The deleted samples of one ledger (``Ledger.deleted``)."""

    def __init__(
        self, reader: LogReader, database: Database, signer: Callable[[], Signer | None]
    ) -> None:
        self._reader, self._database, self._signer = reader, database, signer

    def all(self) -> Gone:
        """All samples deleted until now, by keyed hashes of their ids."""
        with self._reader.transaction() as (connection, log):
            return purging.gone(connection, self._reader.secrets.forgotten, log.view)

    def after(self, view: int) -> list[Forgotten]:
        """What was deleted after a view, by view: the same for every reader and at any time."""
        with self._reader.transaction() as (connection, _):
            return purging.since(connection, self._reader.secrets.forgotten, view)

    @property
    def secret(self) -> bytes:
        """Key of the hashes that ``all`` and ``after`` give."""
        return self._reader.secrets.forgotten

    def keyed(self, text: str) -> str:
        """How receipts name a sample id or subject."""
        return purging.hashed(text, self._reader.secrets.receipts)

    def unpurged(self, view: int) -> int:
        """Samples deleted until ``view`` whose ids are still here."""
        with self._database.transaction() as connection:
            return purging.unmoved(connection, view)

    def purge(self, view: int, nodes: Iterable[NodeKey], told: Mapping[str, Any]) -> bool:
        """Replace rows of samples deleted until ``view`` by keyed hashes, and write the purge down.

        Args:
            view: all that had died by then is gone from the store.
            nodes: keys that are gone from the store.
            told: what else was purged, as JSON values without any id.

        Returns:
            False if another process reads the older state for so long that its bytes stay.

        Raises:
            IntegrityError: see ``Ledger.prove``. What the log is about to commit to is proved
                before.
        """
        keys = sorted(nodes)
        with self._reader.transaction(writes=True, scratch=True) as (connection, log):
            proof.prove(connection, self._reader.secrets, self._database.name)
            rows = purging.move(connection, self._reader.secrets.forgotten, view)
            generations.forget_nodes(connection, keys)
            forget_history(connection, view)
            forget_records_of(connection, keys)
            left = purging.left_behind(connection)
            every = registry.digest_of_all(connection)
            body = {
                "view": view,
                "nodes": keys,
                "rows": rows,
                "forgotten": left,
                "all": every,
                **told,
            }
            chain.append(connection, "purge", chain.now(), body, self._signer())
            seal(connection, log, self._signer())
        return self.compact()

    def compact(self) -> bool:
        """Leave no bytes of purged rows in the files, if a purge could not (see ``purge``)."""
        return self._database.compact()

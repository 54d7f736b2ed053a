"""The ledger's side of planning and training: what was planned, put in force, and trained.

    propose ─► put_in_force ─► announce, announce, … ─► seal

Invariant: each step is one transaction with its entry in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import sqlalchemy as sa

from s3t.ledger import generations
from s3t.ledger.database.database import Database
from s3t.ledger.generations import LedgerState, Witnessed
from s3t.ledger.log import chain
from s3t.ledger.log.signing import Signer
from s3t.ledger.log.state import Generation, LogReader, LogState
from s3t.types import Digest, NodeKey

__all__ = ["Planning", "seal"]


class Planning:
    """Plans and nodes of one ledger (``Ledger.plans``)."""

    def __init__(
        self, reader: LogReader, database: Database, signer: Callable[[], Signer | None]
    ) -> None:
        self._reader, self._database, self._signer = reader, database, signer

    def training(self) -> AbstractContextManager[bool]:
        """Keeps other machines from training the run meanwhile; see ``Database.training``."""
        return self._database.training()

    def all(self) -> list[Generation]:
        """All plans that were made, the oldest first."""
        with self._reader.transaction() as (_, log):
            return list(log.generations)

    def in_force(self, known: LedgerState | None = None) -> LedgerState:
        """The state of the plan in force: what decides what may be served.

        Args:
            known: hold only the hits that are new since this state.
        """
        with self._reader.transaction() as (_, log):
            return generations.state(log, known)

    def newest(self) -> LedgerState:
        """The state as if the newest plan were in force already: what is to be trained."""
        with self._reader.transaction() as (_, log):
            return generations.newest(log)

    def propose(self, plan: Digest, view: int, head: Digest | None = None) -> int:
        """Write down a plan, of the samples left at ``view``, to be trained; returns its number.

        The plan that is the newest already stays as it is, of whatever view.

        Args:
            plan: its digest.
            view: the view.
            head: digest of the run's public head, if it has one.
        """
        with self._reader.transaction(writes=True) as (connection, log):
            last = log.generations[-1] if log.generations else None
            if last is not None and last.digest == plan:
                return last.number
            number = 0 if last is None else last.number + 1
            body = {"generation": number, "digest": plan, "view": view, "head": head}
            chain.append(connection, "plan", chain.now(), body, self._signer())
            return number

    def put_in_force(self, generation: int) -> None:
        """Serve a plan from now on: a new view. The one in force already stays so."""
        with self._reader.transaction(writes=True) as (connection, log):
            found = {one.number: one for one in log.generations}
            if found[generation].in_force is not None:
                return
            # the first one makes no view: there is nothing yet that it could replace
            view = generations.add_view(connection, log) if generation else log.view
            body = {"generation": generation, "digest": found[generation].digest, "view": view}
            chain.append(connection, "force", chain.now(), body, self._signer())
            self._reader.tell(connection)

    def announce(self, seen: Mapping[NodeKey, Witnessed]) -> None:
        """Write nodes down that are new in the store; a new view, if there are any.

        Until a first training is through (``seal``) the view stays: no process serves the run yet.

        Args:
            seen: nodes by key; those known are passed over.
        """
        with self._reader.transaction(writes=True) as (connection, log):
            came = generations.witness(connection, seen)
            if came and log.sealed is not None:
                self._announced(connection, log, came)

    def seal(self) -> None:
        """Put one digest over all nodes into the log, unless the last such entry holds it."""
        with self._reader.transaction(writes=True) as (connection, log):
            seal(connection, log, self._signer())

    def rescore(self, seen: Mapping[NodeKey, Witnessed]) -> None:
        """Give nodes their scores and evidence of other public rows: a new view, if there are any.

        Args:
            seen: by key, of nodes that were announced; their weights stay as they were told.
        """
        if not seen:
            return
        with self._reader.transaction(writes=True) as (connection, log):
            generations.rescore(connection, seen)
            seal(connection, log, self._signer())
            self._announced(connection, log, len(seen))

    def nodes(self) -> dict[NodeKey, Witnessed]:
        """Weights, score and evidence of every node, as its trainer saw it, by key."""
        with self._reader.transaction() as (connection, _):
            return generations.witnessed(connection)

    def _announced(self, connection: sa.Connection, log: LogState, nodes: int) -> None:
        """Make a view from which on nodes count that came, or came to another score."""
        body = {"view": generations.add_view(connection, log), "nodes": nodes}
        chain.append(connection, "announced", chain.now(), body, self._signer())
        self._reader.tell(connection)


def seal(connection: sa.Connection, log: LogState, signer: Signer | None) -> None:
    """Put one digest over all nodes into the log, unless the last such entry holds it."""
    seen = generations.witnessed(connection)
    body = {"nodes": len(seen), "digest": generations.nodes_digest(seen)}
    if log.sealed is None or dict(log.sealed) != body:
        chain.append(connection, "nodes", chain.now(), body, signer)

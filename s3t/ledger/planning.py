"""The ledger's side of planning and training: what was planned, put in force, and trained.

    propose ─► put_in_force ─► announce, announce, … ─► seal

Invariant: each step is one transaction with its entry in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy as sa

from s3t.ledger import chain, generations
from s3t.ledger.database import Database
from s3t.ledger.generations import Generation, State, Witnessed
from s3t.ledger.signing import Signer
from s3t.types import Digest, NodeKey

__all__ = ["Planning", "seal"]


class Planning:
    """Plans and nodes of one ledger (``Ledger.plans``)."""

    def __init__(self, database: Database, signer: Callable[[], Signer | None]) -> None:
        self._database, self._signer = database, signer

    def all(self) -> list[Generation]:
        """All plans that were made, the oldest first."""
        with self._database.transaction() as connection:
            return generations.generations(connection)

    def newest(self) -> State:
        """The state as if the newest plan were in force already: what is to be trained."""
        with self._database.transaction() as connection:
            return generations.newest(connection)

    def propose(self, plan: Digest, view: int, head: Digest | None = None) -> int:
        """Write down a plan, of the samples left at ``view``, to be trained; returns its number.

        The plan that is the newest already stays as it is.

        Args:
            plan: its digest.
            view: the view.
            head: digest of the run's public head, if it has one.
        """
        with self._database.transaction(writes=True) as connection:
            before = len(generations.generations(connection))
            number = generations.propose(connection, plan, view)
            if number >= before:
                body = {"generation": number, "digest": plan, "view": view, "head": head}
                chain.append(connection, "plan", chain.now(), body, self._signer())
        return number

    def put_in_force(self, generation: int) -> None:
        """Serve a plan from now on: a new view. The one in force already stays so."""
        with self._database.transaction(writes=True) as connection:
            found = {one.number: one for one in generations.generations(connection)}
            if found[generation].in_force is not None:
                return
            view = generations.add_view(connection) if generation else 0
            generations.put_in_force(connection, generation, view)
            body = {"generation": generation, "digest": found[generation].digest, "view": view}
            chain.append(connection, "force", chain.now(), body, self._signer())
            self._database.tell(connection)

    def announce(self, seen: Mapping[NodeKey, Witnessed]) -> None:
        """Write nodes down that are new in the store; a new view, if there are any.

        Until a first training is through (``seal``) the view stays: nobody serves it yet.

        Args:
            seen: nodes by key; those known are passed over.
        """
        with self._database.transaction(writes=True) as connection:
            came = generations.witness(connection, seen)
            if came and chain.last_of(connection, "nodes") is not None:
                generations.add_view(connection, nodes_came=True)
                self._database.tell(connection)

    def seal(self) -> None:
        """Put one digest over all nodes into the log, unless the last such entry holds it."""
        with self._database.transaction(writes=True) as connection:
            seal(connection, self._signer())

    def rescore(self, scores: Mapping[NodeKey, float], rows: Digest) -> None:
        """Give nodes their scores on other public rows: a new view, if there are any.

        Args:
            scores: by key, of nodes that were announced.
            rows: digest of the rows.
        """
        if not scores:
            return
        with self._database.transaction(writes=True) as connection:
            generations.rescore(connection, scores, rows)
            seal(connection, self._signer())
            generations.add_view(connection, nodes_came=True)
            self._database.tell(connection)

    def nodes(self) -> dict[NodeKey, Witnessed]:
        """Weights and scores of every node, as its trainer saw it, by key."""
        with self._database.transaction() as connection:
            return generations.witnessed(connection)


def seal(connection: sa.Connection, signer: Signer | None) -> None:
    """Put one digest over all nodes into the log, unless the last such entry holds it."""
    seen = generations.witnessed(connection)
    body = {"nodes": len(seen), "digest": generations.nodes_digest(seen)}
    last = chain.last_of(connection, "nodes")
    if last is None or dict(last.body) != body:
        chain.append(connection, "nodes", chain.now(), body, signer)

"""Tells the ledger of each node that comes into the store: by digests of weights and evidence.

    store: <key>.safetensors ──key, weights──► ledger: nodes ──at the end──► one digest in the log
           <key>.evidence ──digest──┘

Invariant: a key says what a node has seen, not which weights came of it. The ledger says that, from
the moment at which the node was first seen here. So weights that are replaced later are found out,
even if all digests within the file are made again.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from s3t.errors import DamagedNodeError
from s3t.ledger import Witnessed
from s3t.run import RunDir
from s3t.types import Digest, NodeKey

__all__ = ["NodeLog"]

_EVERY = 5.0
"""Seconds between two announcements: each is a transaction, and a new view to serve."""


class NodeLog:
    """The main process's memory of which nodes the ledger knows.

    Args:
        run: a prepared run with its ledger.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        with run.ledger() as ledger:
            self._known = set(ledger.plans.nodes())
        self._told = float("-inf")

    def see(self, there: Collection[NodeKey]) -> None:
        """Nodes are in the store; now and then the new ones are announced."""
        if time.monotonic() - self._told >= _EVERY and not self._known.issuperset(there):
            self._announce(there)

    def close(self, there: Collection[NodeKey]) -> None:
        """Announce what is left, and put one digest over all nodes into the log."""
        if not self._known.issuperset(there):
            self._announce(there)
        with self._run.ledger() as ledger:
            ledger.plans.seal()

    def _announce(self, there: Collection[NodeKey]) -> None:
        found: dict[NodeKey, Witnessed] = {}
        for key in sorted({*there} - self._known):
            try:
                meta = self._run.store.meta(key)
            except DamagedNodeError:
                continue  # where the node is needed, that is an error
            found[key] = Witnessed(meta.weights, meta.score, meta.rows, self._evidence(key))
        with self._run.ledger() as ledger:
            ledger.plans.announce(found)
        self._known.update(found)
        self._told = time.monotonic()

    def _evidence(self, key: NodeKey) -> Digest | None:
        """Digest of a node's evidence; None if that is missing or damaged."""
        try:
            return self._run.store.read_evidence(key).digest
        except DamagedNodeError:
            return None

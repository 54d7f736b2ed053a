"""What a run tells machines that cannot ask its ledger: who is hit, and who is gone.

    the machine with the ledger ─► URL/run/{hits,gone}.json ─► machines that only train

Invariant: what is read is what was told, proved by a digest of its own, and of the plan asked for.
"""

from __future__ import annotations

import json
from typing import Any

from s3t.errors import InputError, IntegrityError, S3TError
from s3t.ledger import Gone
from s3t.store import Depot
from s3t.types import Digest, Slot, digest

__all__ = ["Notices"]

_HITS, _GONE = "run/hits.json", "run/gone.json"


class Notices:
    """The notices of one run.

    Args:
        root: the run directory, for messages.
        depot: at ``store.url``; None if the config names none, over which nothing can be told.
    """

    def __init__(self, root: str, depot: Depot | None) -> None:
        self._root, self._where = root, depot

    def tell(self, plan: Digest, hits: set[Slot]) -> None:
        """Put the hits, of a plan, where machines without the ledger read them."""
        self._tell(_HITS, {"plan": plan, "hits": [list(slot) for slot in sorted(hits)]})

    def tell_gone(self, gone: Gone) -> None:
        """Put the keyed hashes of deleted samples there."""
        hashes = sorted(gone.hashes)
        self._tell(_GONE, {"secret": gone.secret.hex(), "hashes": hashes, "view": gone.view})

    def told(self) -> tuple[Digest, set[Slot]] | None:
        """The plan that was told last, and its hits; None before the first time.

        Raises:
            IntegrityError: what lies there is not what was told.
        """
        body = self._told(_HITS)
        if body is None:
            return None
        return body["plan"], {(shard, part) for shard, part in body["hits"]}

    def told_hits(self, plan: Digest) -> set[Slot] | None:
        """The hits that were told last for a plan; None before the first time.

        Raises:
            IntegrityError: what lies there is not what was told.
            S3TError: another plan is trained by now.
        """
        told = self.told()
        if told is None:
            return None
        if told[0] != plan:
            raise S3TError(
                f"{self._depot.where(_HITS)} is of another plan by now: run the same "
                "command again, which trains that one"
            )
        return told[1]

    def gone(self) -> Gone:
        """The deleted samples that were told last, as keyed hashes; none before the first time."""
        told = self._told(_GONE)
        if told is None:
            return Gone(b"", frozenset())
        return Gone(bytes.fromhex(told["secret"]), frozenset(told["hashes"]), told["view"])

    def hits_of(self, plan: Digest) -> set[Slot]:
        """The hits that were told last for a plan.

        Raises:
            IntegrityError: nothing was told, or what lies there is not what was told.
            S3TError: another plan is trained by now.
        """
        told = self.told_hits(plan)
        if told is None:
            raise IntegrityError(
                f"{self._depot.where(_HITS)} is missing, so nobody knows what was "
                "deleted: train on the machine that prepared the run, which tells it"
            )
        return told

    def _tell(self, name: str, body: dict[str, Any]) -> None:
        text = json.dumps(body | {"check": digest(body)})
        self._depot.put(name, text.encode())

    def _told(self, name: str) -> dict[str, Any] | None:
        """What was told under a name, proved; None before the first time."""
        try:
            body: dict[str, Any] = json.loads(self._depot.get(name))
            check = body.pop("check")
            if check == digest(body):
                return body
            reason = "its digest differs"
        except FileNotFoundError:
            return None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason = str(error)
        where = self._depot.where(name)
        raise IntegrityError(
            f"{where} cannot be used ({reason}): remove it, and train on the machine that "
            "prepared the run, which tells it anew"
        )

    @property
    def _depot(self) -> Depot:
        if self._where is None:
            raise InputError(f"{self._root} names no store.url, over which machines are told")
        return self._where

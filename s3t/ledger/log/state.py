"""What the log says: the view, the plans, the slots hit, folded from its entries.

    entry n known ──► n + 1 ──► n + 2 ──► head        each linked to the one before, none missing

What may be served follows from this alone. There is no table of hits beside it and no index on the
log, so a page that a database loses, or a row that someone edits, breaks the chain or contradicts
the view counter; it never changes in silence what is served.

Invariant: an entry that a process has read never changes for it. If the entry is missing or
differs, the ledger was replaced or is an older copy, and is refused.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import sqlalchemy as sa

from s3t.errors import IntegrityError
from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.database.schema import log
from s3t.ledger.log import chain
from s3t.ledger.log.chain import LogEntry
from s3t.types import Digest, Slot

__all__ = ["Generation", "LogReader", "LogState", "Secrets", "commitment", "fold"]

_HEAD = f"SELECT COALESCE((SELECT digest FROM log ORDER BY number DESC LIMIT 1), '{chain.GENESIS}')"
"""Digest of the last entry: one descent of the table. Its number would not do: a ledger that was
restored may have come to the same one with other deletions."""

_FROM = sa.select(log).where(log.c.number >= sa.bindparam("first")).order_by(log.c.number)
_RESTORE = "restore the ledger from a copy"


@dataclass(frozen=True, slots=True)
class Generation:
    """A plan that was made.

    Attributes:
        number: from 0.
        digest: of the plan.
        view: it was made of the samples left at this view.
        in_force: view since which it is served; None while its nodes are trained first.
    """

    number: int
    digest: Digest | None
    view: int
    in_force: int | None


@dataclass(frozen=True, slots=True)
class Secrets:
    """Keys of the hashes in receipts, and of those that stay of purged samples."""

    receipts: bytes
    forgotten: bytes

    def commitments(self) -> dict[str, str]:
        """What the first entry of the log holds of them: from it no key can be found."""
        return {name: commitment(getattr(self, name)) for name in ("receipts", "forgotten")}


@dataclass(frozen=True, slots=True)
class LogState:
    """What follows from the log up to an entry.

    Attributes:
        number, digest: of that entry.
        view: the last one made.
        nodes_view: view at which nodes were last announced.
        generations: plans that were made, the oldest first.
        hits: slots of deleted samples, and the view that deleted one there last.
        sealed: the last entry with a digest over all nodes.
        purges: number, moment, and view of each purge.
        forgotten: digest of what stays of purged samples, as of the last entry that tells it.
        samples: digest over the rows of all samples, as of the last entry that tells it.
        committed: of the secrets; empty until samples are registered.
    """

    number: int = 0
    digest: Digest = chain.GENESIS
    view: int = 0
    nodes_view: int = 0
    generations: tuple[Generation, ...] = ()
    hits: Mapping[Slot, int] = field(default_factory=dict)
    sealed: Mapping[str, Any] | None = None
    purges: tuple[tuple[int, str, int], ...] = ()
    forgotten: Digest | None = None
    samples: Digest | None = None
    committed: Mapping[str, str] = field(default_factory=dict)


def commitment(secret: bytes) -> str:
    """What may be told of a secret: its SHA-256."""
    return hashlib.sha256(secret).hexdigest()


def fold(
    connection: sa.Connection,
    known: LogState,
    name: str,
    each: Callable[[LogEntry], object] = lambda entry: None,
) -> LogState:
    """What the log says by now, from what is known of it.

    Args:
        connection: in a transaction that began after ``known`` was read.
        known: as of an earlier entry.
        name: of the ledger, for messages.
        each: told every entry that is new.

    Raises:
        IntegrityError: the log is not the one that was known, or is broken, or is contradicted by
            the view counter.
    """
    state, hits, seen = known, dict(known.hits), not known.number
    for row in connection.execute(_FROM, {"first": known.number}):
        if not seen:
            seen = (row.number, row.digest) == (known.number, known.digest)
            if not seen:
                break
            continue
        entry = _linked(row, state, name)
        each(entry)
        state = _next(state, entry, hits, name)
    if not seen:
        raise IntegrityError(
            f"the ledger {name} has gone back: its log no longer has entry {known.number} as this "
            "process read it. It was replaced by another, or by an older copy that knows nothing "
            "of later deletions: restore the newest one, or repeat the deletions since, then "
            "start again"
        )
    if state is not known or not known.number:
        state = replace(state, hits=hits)
        counted = schema.value(connection, "view")
        if counted != str(state.view):
            raise IntegrityError(
                f"{name}: the view counter says {counted}, and the log ends at view {state.view}: "
                f"one of the two was lost or changed; {_RESTORE}"
            )
    return state


class LogReader:
    """The log of one ledger, as far as this process has read it. Safe to share between threads."""

    def __init__(self, database: Database, secrets: Secrets) -> None:
        self._database, self.secrets = database, secrets
        database.acknowledged()  # refused at once, if it cannot be understood
        self._lock = threading.Lock()
        self._known = LogState()

    @property
    def known(self) -> LogState:
        """As it was last read."""
        return self._known

    @contextmanager
    def transaction(
        self, writes: bool = False, **how: bool
    ) -> Iterator[tuple[sa.Connection, LogState]]:
        """A transaction (``Database.transaction``), and what the log says in it.

        Raises:
            IntegrityError: see ``fold``; or the log has lost entries that were acknowledged, or the
                secrets are not those that it commits to.
        """
        # before the transaction begins, so that they cannot be ahead of it
        known, told = self._known, self._database.acknowledged()

        def meet(entry: LogEntry) -> None:
            if told is not None and entry.number == told[0] and entry.digest != told[1]:
                self._lost(entry.number)

        with self._database.transaction(writes, **how) as connection:
            state = fold(connection, known, self._database.name, meet)
            if told is not None and state.number < told[0]:
                self._lost(told[0])
            self._prove(state)
            with self._lock:
                if state.number > self._known.number:
                    self._known = state
            yield connection, state

    def is_new(self, known: LogState) -> bool:
        """Whether the log has, or should have, other entries than those that are known."""
        told = self._database.acknowledged()
        behind = told is not None and told[0] > known.number
        return behind or self._database.read(_HEAD) != known.digest

    def connection(self) -> AbstractContextManager[sa.Connection]:
        """A transaction for tables that need no look at the log."""
        return self._database.transaction()

    def tell(self, connection: sa.Connection) -> None:
        """Wake up all who watch the ledger, once this transaction is committed."""
        self._database.tell(connection)

    def _lost(self, number: int) -> NoReturn:
        raise IntegrityError(
            f"{self._database.name}: entry {number} of the log was acknowledged, and is not there: "
            "deletions were lost, by damage to its file or write-ahead log, or since an older copy "
            "was put back. Restore the newest copy; or, to go on from this one, remove "
            f"{self._database.name}-lock and repeat the deletions since"
        )

    def _prove(self, state: LogState) -> None:
        if state.committed and dict(state.committed) != self.secrets.commitments():
            raise IntegrityError(
                f"{self._database.name}: a secret of the ledger is not the one that the first "
                f"entry of its log commits to, so no deleted sample can be told: {_RESTORE}"
            )


def _linked(row: sa.Row[Any], before: LogState, name: str) -> LogEntry:
    """An entry that follows from the one before it."""
    if row.number != before.number + 1 or row.previous != before.digest:
        raise IntegrityError(
            f"{name}: entry {row.number} of the log does not follow entry {before.number}: "
            f"entries were lost or changed; {_RESTORE}"
        )
    try:
        if chain.link(row.number, row.kind, row.at, row.body, row.previous) == row.digest:
            return chain.entry(row)
    except (AttributeError, TypeError, ValueError):
        pass  # one of them is no text any more
    raise IntegrityError(
        f"{name}: entry {row.number} of the log was changed after it was written: {_RESTORE}"
    )


def _next(state: LogState, entry: LogEntry, hits: dict[Slot, int], name: str) -> LogState:
    """What follows from one more entry; ``hits`` are changed in place."""
    told: dict[str, Any] = {}
    body, kind = entry.body, entry.kind
    try:
        if kind == "samples":
            told["committed"] = body.get("secrets", state.committed)
            told["forgotten"] = body.get("forgotten", state.forgotten)
            told["samples"] = body["all"]
        elif kind == "plan":
            made = Generation(body["generation"], Digest(body["digest"]), body["view"], None)
            told["generations"] = (*state.generations, made)
        elif kind == "force":
            told["generations"] = tuple(
                replace(one, in_force=body["view"]) if one.number == body["generation"] else one
                for one in state.generations
            )
            told["view"] = body["view"]
        elif kind == "deletion":
            told["view"] = body["view"]
            hits.update({(int(shard), int(part)): body["view"] for shard, part in body["slots"]})
        elif kind == "announced":
            told["view"] = told["nodes_view"] = body["view"]
        elif kind == "nodes":
            told["sealed"] = body
        elif kind == "purge":
            told["purges"] = (*state.purges, (entry.number, entry.at, body["view"]))
            told["forgotten"], told["samples"] = body["forgotten"], body["all"]
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{name}: entry {entry.number} of the log ({kind}) cannot be understood ({error!r}): "
            f"{_RESTORE}, or train a new run if an older s3t wrote it"
        ) from None
    if told.get("view", state.view) < state.view:
        raise IntegrityError(
            f"{name}: entry {entry.number} of the log ({kind}) makes view {told['view']} after "
            f"view {state.view}: {_RESTORE}"
        )
    return replace(state, number=entry.number, digest=entry.digest, **told)

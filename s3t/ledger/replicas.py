"""Who answers: the replicas of a run, and the oldest view from which each still answers.

    replica   join ─► beat, beat, … ─► left(view) ─► … ─► leave
    deletion  commit (accepted) ─► no replica behind its view ─► effective

A replica answers for nine tenths of its lease, counted on its own clock from before it sent its
last beat. A process that waits for it counts a whole lease on a clock of its own, from when it
first saw that beat. Only then is the replica struck out, unless it has beaten since. So what a
clock shows does not matter, only that all clocks run at about the same speed.

Invariant: a replica that is not in the table answers nothing, since its next beat fails before what
it counts has run out. One that joins has the view of that moment, and holds no older one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.database.schema import replicas, requests
from s3t.ledger.log import chain
from s3t.ledger.log.signing import Signer

__all__ = ["Lease", "Observer", "ReplicaRow", "ReplicaTable", "clock"]

_SHARE = 0.9
"""Of its lease, which a replica uses; the rest is for clocks that run at other speeds."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_BEAT = (
    sa.update(replicas)
    .where(replicas.c.replica == sa.bindparam("one"))
    .values(beats=replicas.c.beats + 1)
)
_LEFT = (
    sa.update(replicas)
    .where(replicas.c.replica == sa.bindparam("one"), replicas.c.view < sa.bindparam("at"))
    .values(view=sa.bindparam("at"))
)
_STRIKE = sa.delete(replicas).where(
    replicas.c.replica == sa.bindparam("one"), replicas.c.beats == sa.bindparam("seen")
)
_LEAVE = sa.delete(replicas).where(replicas.c.replica == sa.bindparam("one"))
_ALL = sa.select(replicas).order_by(replicas.c.since, replicas.c.replica)
_BEHIND = sa.select(replicas).where(
    replicas.c.view < sa.bindparam("at"), replicas.c.replica != sa.bindparam("own")
)
_REQUEST = sa.select(requests).where(requests.c.request_id == sa.bindparam("request"))
_PENDING = (
    sa.select(requests.c.request_id)
    .where(requests.c.effective.is_(None))
    .order_by(requests.c.number)
)
_SET_EFFECTIVE = (
    sa.update(requests)
    .where(requests.c.request_id == sa.bindparam("request"))
    .values(effective=sa.bindparam("entry"))
)


def clock() -> float:
    """Seconds since the machine started, those that it slept included."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """A process that answers.

    Attributes:
        replica: its own name, a new one each time that it joins.
        name: what people call it.
        view: no answer of it comes from an older one.
        beats: counts its signs of life.
        lease: seconds without one after which it is gone.
        since: when it joined, ISO 8601.
    """

    replica: str
    name: str
    view: int
    beats: int
    lease: float
    since: str


class Lease:
    """How long a replica may answer without hearing of the ledger; at first not at all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = 0.0

    @property
    def left(self) -> float:
        """Seconds that are left; not over 0 if it has run out."""
        return self._until - clock()

    def renew(self, asked: float) -> None:
        """A beat reached the ledger that was sent at ``asked`` or later, by this clock."""
        self._until = asked + _SHARE * self.seconds

    def end(self) -> None:
        """It ends now."""
        self._until = 0.0


class ReplicaTable:
    """The replicas of one ledger (``Ledger.replicas``)."""

    def __init__(self, database: Database, signer: Callable[[], Signer | None]) -> None:
        self._database, self._signer = database, signer

    def join(self, name: str, lease: float) -> ReplicaRow:
        """Take a lease, with the view of this moment."""
        with self._database.transaction(writes=True) as connection:
            view = int(schema.value(connection, "view") or 0)
            joined = ReplicaRow(uuid.uuid4().hex, name, view, 0, lease, chain.now())
            values = {field: getattr(joined, field) for field in ReplicaRow.__slots__}
            connection.execute(sa.insert(replicas).values(values))
        return joined

    def beat(self, replica: str) -> bool:
        """Give a sign of life; False if the replica was struck out.

        Durable, since a beat that a crash undoes could be taken for silence.
        """
        with self._database.transaction(writes=True, alone=False) as connection:
            return connection.execute(_BEAT, {"one": replica}).rowcount == 1

    def left(self, replica: str, view: int) -> None:
        """Say that no answer of the replica comes from a view before this one any more."""
        with self._database.transaction(writes=True, alone=False) as connection:
            connection.execute(_LEFT, {"one": replica, "at": view})

    def leave(self, replica: str) -> None:
        """Give the lease back: the replica answers nothing any more."""
        with self._database.transaction(writes=True, alone=False) as connection:
            connection.execute(_LEAVE, {"one": replica})

    def strike(self, seen: ReplicaRow) -> bool:
        """Strike a replica out, unless it has beaten since it was seen so."""
        with self._database.transaction(writes=True, alone=False) as connection:
            given = {"one": seen.replica, "seen": seen.beats}
            return connection.execute(_STRIKE, given).rowcount == 1

    def all(self) -> list[ReplicaRow]:
        """Those that have a lease, the oldest first."""
        with self._database.transaction() as connection:
            return [ReplicaRow(*row) for row in connection.execute(_ALL)]

    def behind(self, view: int, own: str = "") -> list[ReplicaRow]:
        """Those that have not yet left every view before this one; ``own`` does not count."""
        with self._database.transaction() as connection:
            return _behind(connection, view, own)

    def settle(self, request_id: str, own: str = "") -> str | None:
        """Write down that a deletion is effective on all replicas, once.

        It waits for the disk: a receipt tells this moment, and an audit holds a kept receipt
        against this entry.

        Args:
            request_id: of the deletion.
            own: a replica that has left the older views, whatever the table says.

        Returns:
            the moment, ISO 8601; None while a replica is behind, or if there is no such request.
        """
        with self._database.transaction(writes=True) as connection:
            found = connection.execute(_REQUEST, {"request": request_id}).first()
            if found is None:
                return None
            if found.effective is not None:
                return chain.read(connection, found.effective).at
            if _behind(connection, found.view, own):
                return None
            at, body = chain.now(), {"request_id": request_id, "deletion": found.number}
            entry = chain.append(connection, "effective", at, body, self._signer())
            connection.execute(_SET_EFFECTIVE, {"request": request_id, "entry": entry})
            return at

    def pending(self) -> list[str]:
        """Requests that are not yet known to be effective, the oldest first."""
        with self._database.transaction() as connection:
            return list(connection.execute(_PENDING).scalars())


class Observer:
    """Finds replicas that are gone, by counting their leases on this machine's clock."""

    def __init__(self, table: ReplicaTable) -> None:
        self._table = table
        self._since: dict[str, tuple[int, float]] = {}

    def look(self, at: list[ReplicaRow]) -> list[ReplicaRow]:
        """Strike out those who gave no sign of life for a lease; returns the others.

        Args:
            at: replicas as they are in the table now.
        """
        now, left = clock(), []
        known, self._since = self._since, {}
        for one in at:
            beats, since = known.get(one.replica, (-1, now))
            if beats != one.beats:
                since = now
            if now - since < one.lease or not self._table.strike(one):
                self._since[one.replica] = one.beats, since
                left.append(one)
        return left


def _behind(connection: sa.Connection, view: int, own: str) -> list[ReplicaRow]:
    return [ReplicaRow(*row) for row in connection.execute(_BEHIND, {"at": view, "own": own})]

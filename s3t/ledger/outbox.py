"""What was accepted and is not done yet: large deletions, and callbacks. Any replica works it off.

    accept ─► jobs ─► take ─► (the deletion itself) ─► end ─► callbacks ─► take ─► told ─► gone
                       ▲ beat, beat, …                          ▲
                       └── silent for a lease? strike ──────────┘

A process claims a job, or a host to call, and beats while it works. As with replicas, no clock is
believed: who waits counts a whole lease on its own, from when it first saw a beat. Two may still
work at one job, since a process may sleep for longer than its lease. That is harmless: the request
id makes the deletion one, and only the first to end the job has its callbacks told.

Invariants: ids of a job leave the ledger in the transaction that ends it, the same one that puts
its callbacks down. Callbacks hold no id of a sample or subject. While a job waits its request id
stands for it: no other deletion takes that id.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa

from s3t.errors import InputError, RequestConflictError
from s3t.ledger.database import schema
from s3t.ledger.database.database import Database
from s3t.ledger.database.schema import callbacks, claims, jobs
from s3t.ledger.jobs import WAITS, Job, job_of, row_of
from s3t.ledger.log import chain
from s3t.ledger.receipt import Deletion

__all__ = ["Callback", "Holder", "Outbox", "host_claim", "job_claim"]

_COUNTER = "outbox"
"""Key in the table ``run`` of the last number given out: no number is ever given twice."""
_EACH = timedelta(minutes=1)
"""By when a job should be done: so much for it, and for each that waits before it."""

_DONE = sa.select(schema.requests.c.view).where(
    schema.requests.c.request_id == sa.bindparam("request")
)


def job_claim(request_id: str) -> str:
    """What a process claims to do a job."""
    return f"job {request_id}"


def host_claim(host: str) -> str:
    """What a process claims to call a host."""
    return f"host {host}"


class Callback(NamedTuple):
    """One URL that is to be told of one deletion.

    Attributes:
        number: those with smaller ones come first.
        request_id: of the deletion.
        url: as it was given.
        host: of the URL.
        since: when it was put down, ISO 8601 in UTC.
    """

    number: int
    request_id: str
    url: str
    host: str
    since: str


class Holder(NamedTuple):
    """Who works at something, and how often it has given a sign of life."""

    holder: str
    beats: int


class Outbox:
    """The outbox of one ledger (``Ledger.outbox``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counts(self) -> dict[str, int]:
        """``jobs`` that wait or are being done, and ``callbacks`` that are not delivered."""
        with self._database.transaction() as connection:
            return {"jobs": _waiting(connection), "callbacks": _count(connection, callbacks)}

    # ── large deletions ──────────────────────────────────────────────────────────────────────

    def accept(
        self,
        deletion: Deletion,
        urls: Sequence[str] = (),
        controller: str | None = None,
        *,
        limit: int,
    ) -> Job | None:
        """Write a deletion down, durably; the job that waits if its request id has one already.

        A cancelled job of the id makes room for it. URLs that were not yet told of that one are
        told of this one.

        Args:
            deletion: what to delete, with a request id.
            urls: to tell.
            controller: name of the token that asked.
            limit: how many may wait.

        Returns:
            None if so many wait already; nothing was written then.

        Raises:
            RequestConflictError: a deletion of this id was done.
        """
        request_id = deletion.request_id
        if request_id is None:
            raise InputError("a deletion that is to wait needs a request id")
        with self._database.transaction(writes=True) as connection:
            if connection.execute(_DONE, {"request": request_id}).first() is not None:
                raise RequestConflictError(
                    f"a deletion of request id {request_id!r} was done a moment ago: send the same "
                    "request again to be told of it"
                )
            held = self._job(connection, request_id)
            if held is not None and held.cancelled is None:
                return held
            before = _waiting(connection)
            if before >= limit:
                return None
            now = chain.now()
            untold = sa.select(callbacks.c.url).where(callbacks.c.request_id == request_id)
            known = connection.execute(untold.order_by(callbacks.c.number)).scalars().all()
            job = Job(
                request_id=request_id,
                deletion=deletion,
                number=_next(connection),
                received=now,
                expected=_later(now, (before + 1) * _EACH),
                callbacks=tuple(dict.fromkeys([*known, *urls])),
                controller=controller,
            )
            connection.execute(sa.delete(callbacks).where(callbacks.c.request_id == request_id))
            connection.execute(sa.delete(jobs).where(jobs.c.request_id == request_id))
            connection.execute(sa.insert(jobs).values(row_of(job)))
            return job

    def job(self, request_id: str) -> Job | None:
        """The job of a request that is not done; a cancelled one until it expires.

        Raises:
            IntegrityError: its row is damaged.
        """
        with self._database.transaction() as connection:
            return self._job(connection, request_id)

    def waiting(self) -> list[str]:
        """Request ids of the jobs that are to be done, those first that were accepted first."""
        query = sa.select(jobs.c.request_id).where(WAITS).order_by(jobs.c.number)
        with self._database.transaction() as connection:
            return list(connection.execute(query).scalars())

    def sweep(self) -> int:
        """End the jobs whose deletion is done, where a killed process could not; returns how many.

        Raises:
            IntegrityError: a row is damaged.
        """
        done = jobs.c.request_id.in_(sa.select(schema.requests.c.request_id))
        query = sa.select(jobs.c.request_id).where(WAITS, done)
        with self._database.transaction() as connection:
            found = [self._job(connection, one) for one in connection.execute(query).scalars()]
        return sum(self.end(job) for job in found if job is not None)

    def end(self, job: Job, problem: tuple[str, str] | None = None) -> bool:
        """A job is done, or cancelled for a problem: its ids go, and its callbacks wait.

        Args:
            job: as it was read.
            problem: code and sentence of why it can never be done; no ids.

        Returns:
            False if another process has ended it already; nothing was changed then.
        """
        this = sa.and_(jobs.c.request_id == job.request_id, jobs.c.number == job.number, WAITS)
        with self._database.transaction(writes=True) as connection:
            if problem is None:
                done = connection.execute(sa.delete(jobs).where(this))
            else:
                emptied = {"sample_ids": "[]", "subjects": "[]", "callbacks": "[]"}
                told = {"cancelled": chain.now(), "code": problem[0], "title": problem[1]}
                done = connection.execute(sa.update(jobs).where(this).values(emptied | told))
            if done.rowcount != 1:
                return False
            _tell(connection, job.request_id, job.callbacks)
            what = job_claim(job.request_id)
            connection.execute(sa.delete(claims).where(claims.c.what == what))
            return True

    def expire(self, before: str) -> None:
        """Forget jobs that were cancelled before a moment, ISO 8601 in UTC."""
        old = jobs.c.cancelled < before
        with self._database.transaction() as connection:
            if connection.execute(sa.select(jobs.c.number).where(old)).first() is None:
                return
        with self._database.transaction(writes=True) as connection:
            connection.execute(sa.delete(jobs).where(old))

    # ── callbacks ────────────────────────────────────────────────────────────────────────────

    def tell(self, request_id: str, urls: Sequence[str]) -> None:
        """Have URLs told of a deletion, each once, durably."""
        with self._database.transaction(writes=True) as connection:
            _tell(connection, request_id, urls)

    def hosts(self) -> list[str]:
        """Hosts that are to be told something."""
        query = sa.select(callbacks.c.host).distinct().order_by(callbacks.c.host)
        with self._database.transaction() as connection:
            return list(connection.execute(query).scalars())

    def callback(self, host: str) -> Callback | None:
        """What a host is to be told next."""
        query = sa.select(callbacks).where(callbacks.c.host == host)
        with self._database.transaction() as connection:
            row = connection.execute(query.order_by(callbacks.c.number).limit(1)).first()
        return None if row is None else Callback(*row)

    def told(self, callback: Callback) -> None:
        """A callback was delivered."""
        with self._database.transaction(writes=True) as connection:
            this = callbacks.c.number == callback.number
            connection.execute(sa.delete(callbacks).where(this))

    def give_up(self, host: str, before: str) -> int:
        """Drop a host's callbacks that were put down before a moment; returns how many."""
        old = sa.and_(callbacks.c.host == host, callbacks.c.since < before)
        with self._database.transaction(writes=True) as connection:
            return connection.execute(sa.delete(callbacks).where(old)).rowcount

    # ── who works at what ────────────────────────────────────────────────────────────────────

    def claim(self, what: str) -> Holder | None:
        """Who works at something."""
        query = sa.select(claims.c.holder, claims.c.beats).where(claims.c.what == what)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else Holder(*row)

    def take(self, what: str, holder: str) -> bool:
        """Begin to work at something; False if another one does."""
        taken = sa.text(
            "INSERT INTO claims (what, holder, beats) VALUES (:what, :holder, 0) "
            "ON CONFLICT (what) DO UPDATE SET beats = claims.beats + 1 "
            "WHERE claims.holder = excluded.holder"
        )
        with self._claiming() as connection:
            return connection.execute(taken, {"what": what, "holder": holder}).rowcount == 1

    def beat(self, what: str, holder: str) -> bool:
        """Give a sign of life; False if the claim was struck out."""
        mine = sa.and_(claims.c.what == what, claims.c.holder == holder)
        with self._claiming() as connection:
            beaten = sa.update(claims).where(mine).values(beats=claims.c.beats + 1)
            return connection.execute(beaten).rowcount == 1

    def release(self, what: str, holder: str) -> None:
        """Leave it to others."""
        mine = sa.and_(claims.c.what == what, claims.c.holder == holder)
        with self._claiming() as connection:
            connection.execute(sa.delete(claims).where(mine))

    def strike(self, what: str, seen: Holder) -> None:
        """Strike a claim out, unless its holder has beaten since it was seen so."""
        same = sa.and_(
            claims.c.what == what, claims.c.holder == seen.holder, claims.c.beats == seen.beats
        )
        with self._claiming() as connection:
            connection.execute(sa.delete(claims).where(same))

    def _claiming(self) -> AbstractContextManager[sa.Connection]:
        """A transaction of one claim. If a power cut takes it, others wait for less or longer."""
        return self._database.transaction(writes=True, alone=False, synced=False)

    def _job(self, connection: sa.Connection, request_id: str) -> Job | None:
        row = connection.execute(sa.select(jobs).where(jobs.c.request_id == request_id)).first()
        if row is None:
            return None
        claimed = sa.select(claims.c.beats).where(claims.c.what == job_claim(request_id))
        return job_of(row, connection.execute(claimed).first() is not None)


def _tell(connection: sa.Connection, request_id: str, urls: Sequence[str]) -> None:
    """Put callbacks down, each once."""
    held = sa.select(callbacks.c.url).where(callbacks.c.request_id == request_id)
    known = set(connection.execute(held).scalars())
    for url in dict.fromkeys(urls):
        if url not in known:
            callback = Callback(
                _next(connection), request_id, url, urlsplit(url).netloc.lower(), chain.now()
            )
            connection.execute(sa.insert(callbacks).values(callback._asdict()))


def _next(connection: sa.Connection) -> int:
    number = int(schema.value(connection, _COUNTER) or 0) + 1
    schema.set_value(connection, _COUNTER, str(number))
    return number


def _waiting(connection: sa.Connection) -> int:
    query = sa.select(sa.func.count()).select_from(jobs).where(WAITS)
    return int(connection.execute(query).scalar_one())


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _later(moment: str, by: timedelta) -> str:
    return (datetime.fromisoformat(moment) + by).isoformat(timespec="milliseconds")

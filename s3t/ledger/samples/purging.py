"""Rows of deleted samples leave the ledger: what stays is a keyed hash and the place.

    samples (deleted)  ──purge──►  forgotten: HMAC(id), HMAC(subject), shard, slice, view

Invariant: counters, hits and log do not change. A purged id is still known as deleted when it is
named, and a row of it in the data is never taken in again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from s3t.ledger.database.schema import forgotten, log, requests, samples
from s3t.ledger.samples import look_alikes
from s3t.ledger.samples.counters import CHUNK, chunks
from s3t.types import Digest, Slot, Subject

__all__ = [
    "Forgotten",
    "Gone",
    "filter_secret",
    "gone",
    "hashed",
    "keep_out",
    "known",
    "left_behind",
    "move",
    "purged",
    "since",
    "unmoved",
]

_PAGE = 20 * CHUNK


@dataclass(frozen=True)
class Gone:
    """The deleted samples, as keyed hashes of their ids.

    Attributes:
        secret: key of the hashes.
        hashes: one per sample.
        view: as of which view.
    """

    secret: bytes
    hashes: frozenset[str]
    view: int = 0

    def __contains__(self, sample_id: object) -> bool:
        return bool(self.hashes) and hashed(str(sample_id), self.secret) in self.hashes

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The samples that were deleted at one view.

    Attributes:
        view: at which.
        slots: (shard, slice) that held one of them, sorted.
        hashes: keyed hashes of their ids, sorted.
        entry: digest of the entry of the log that tells of it, which commits to all before; None of
            what was kept out from the start.
    """

    view: int
    slots: tuple[Slot, ...]
    hashes: tuple[str, ...]
    entry: Digest | None


def filter_secret(secret: bytes) -> bytes:
    """Key of the hashes here: another than that of the receipts, since machines that train
    without the ledger are told this one. No id can hash to it: no text holds the byte 255."""
    return hmac.digest(secret, b"\xffforgotten", "sha256")


def hashed(text: str, key: bytes) -> str:
    """HMAC-SHA256, 64 hex digits: proves an id to those who have it, and tells others nothing."""
    return hmac.digest(key, text.encode(), "sha256").hex()


def gone(connection: sa.Connection, key: bytes, view: int) -> Gone:
    """Every deleted sample, purged or not."""
    purged = connection.execute(sa.select(forgotten.c.sample)).scalars()
    there = sa.select(samples.c.sample_id).where(samples.c.deleted_view.is_not(None))
    marked = (hashed(one, key) for one in connection.execute(there).scalars())
    return Gone(key, frozenset([*purged, *marked]), view)


def since(connection: sa.Connection, key: bytes, after: int) -> list[Forgotten]:
    """What was deleted after a view, purged or not, by view."""
    slots: defaultdict[int, set[Slot]] = defaultdict(set)
    hashes: defaultdict[int, list[str]] = defaultdict(list)

    def note(view: int, slot: Slot, sample: str) -> None:
        hashes[view].append(sample)
        if slot[0] >= 0:  # what was kept out from the start has no place
            slots[view].add(slot)

    for row in connection.execute(sa.select(samples).where(samples.c.deleted_view > after)):
        note(row.deleted_view, (row.shard, row.slice), hashed(row.sample_id, key))
    for row in connection.execute(sa.select(forgotten).where(forgotten.c.view > after)):
        note(row.view, (row.shard, row.slice), row.sample)
    # the first request of a view made it; others that deleted nothing came at it
    first = sa.select(requests.c.view, sa.func.min(requests.c.number).label("number"))
    made = first.where(requests.c.view > after).group_by(requests.c.view).subquery()
    told = sa.select(made.c.view, log.c.digest).join(log, log.c.number == made.c.number)
    entries = {row.view: Digest(row.digest) for row in connection.execute(told)}
    return [
        Forgotten(view, tuple(sorted(slots[view])), tuple(sorted(hashes[view])), entries.get(view))
        for view in sorted(hashes)
    ]


def purged(connection: sa.Connection, key: bytes) -> Gone:
    """The samples of which nothing but hashes is left."""
    return Gone(key, frozenset(connection.execute(sa.select(forgotten.c.sample)).scalars()))


def unmoved(connection: sa.Connection, view: int) -> int:
    """Rows of samples deleted until ``view`` that are still there in full."""
    query = sa.select(sa.func.count()).where(samples.c.deleted_view <= view)
    return int(connection.execute(query).scalar_one())


def move(connection: sa.Connection, key: bytes, view: int) -> int:
    """Put hashes in the place of rows of samples deleted until ``view``; returns how many."""
    moved = 0
    query = sa.select(samples).where(samples.c.deleted_view <= view).limit(_PAGE)
    while rows := connection.execute(query).all():
        connection.execute(
            sa.insert(forgotten),
            [
                {
                    "sample": hashed(row.sample_id, key),
                    "subject": None if row.subject is None else hashed(row.subject, key),
                    "shard": row.shard,
                    "slice": row.slice,
                    "view": row.deleted_view,
                }
                for row in rows
            ],
        )
        for chunk in chunks([row.sample_id for row in rows]):
            connection.execute(sa.delete(samples).where(samples.c.sample_id.in_(chunk)))
        look_alikes.forget(connection, rows)
        moved += len(rows)
    return moved


def left_behind(connection: sa.Connection) -> Digest:
    """Digest of all that stays of purged samples, which the log commits to."""
    total = hashlib.sha256()
    query = sa.select(forgotten).order_by(forgotten.c.sample)
    for row in connection.execute(query.execution_options(yield_per=CHUNK)):
        total.update((json.dumps(list(row)) + "\n").encode())
    return Digest(total.hexdigest())


def keep_out(connection: sa.Connection, theirs: Gone) -> None:
    """Begin a ledger as one that has forgotten samples already: none of them is ever taken in."""
    values = [
        {"sample": one, "subject": None, "shard": -1, "slice": -1, "view": 0}
        for one in sorted(theirs.hashes)
    ]
    for chunk in chunks(values):
        connection.execute(sa.insert(forgotten), list(chunk))


def known(
    connection: sa.Connection, key: bytes, ids: Iterable[str], subjects: Iterable[Subject | str]
) -> tuple[set[str], set[str]]:
    """Those of some ids and subjects that were purged."""
    return (
        _of(connection, ids, forgotten.c.sample, lambda one: hashed(one, key)),
        _of(connection, subjects, forgotten.c.subject, lambda one: hashed(one, key)),
    )


def _of(
    connection: sa.Connection,
    names: Iterable[str],
    column: sa.Column[str],
    hash_of: Callable[[str], str],
) -> set[str]:
    by_hash = {hash_of(name): name for name in names}
    found: set[str] = set()
    for chunk in chunks(sorted(by_hash)):
        query = sa.select(column).where(column.in_(chunk)).distinct()
        found.update(by_hash[one] for one in connection.execute(query).scalars())
    return found

"""The log of a run: each entry holds the digest of the one before it.

    genesis ◄── samples ◄── plan ◄── nodes ◄── deletion ◄── effective ◄── purge ◄── …

    digest(entry) = SHA-256 of {number, kind, at, body, previous}; signed, if there is a key

Invariant: entries are only ever added, each in the transaction of what it tells of. So the digest
of one entry shows whether anything up to it was changed, and a signature that the holder of the key
wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from s3t.errors import IntegrityError
from s3t.ledger.database.schema import log
from s3t.ledger.log.signing import Signer
from s3t.types import Digest, digest

__all__ = [
    "GENESIS",
    "LogEntry",
    "append",
    "canonical",
    "entries",
    "entry",
    "latest",
    "link",
    "now",
    "read",
]

GENESIS = Digest("0" * 64)
"""What stands before the first entry."""

_LAST = sa.select(log.c.number, log.c.digest).where(
    log.c.number == sa.select(sa.func.max(log.c.number)).scalar_subquery()
)
_ADD = sa.insert(log)
_ONE = sa.select(log).where(log.c.number == sa.bindparam("at_number"))


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the log.

    Attributes:
        number: from 1, without gaps.
        kind: ``samples``, ``plan``, ``force``, ``nodes``, ``announced``, ``deletion``,
            ``effective`` or ``purge``.
        at: when, ISO 8601 in UTC.
        body: what happened, as JSON values.
        previous: digest of the entry before, ``GENESIS`` for the first.
        digest: of this entry.
        signer: fingerprint of the public key, if it was signed.
        signature: of the digest, hex.
    """

    number: int
    kind: str
    at: str
    body: Mapping[str, Any]
    previous: Digest
    digest: Digest
    signer: str | None
    signature: str | None


def link(number: int, kind: str, at: str, body: str, previous: str) -> Digest:
    """Digest of an entry whose body is this text."""
    return digest({"number": number, "kind": kind, "at": at, "body": body, "previous": previous})


def append(
    connection: sa.Connection, kind: str, at: str, body: Mapping[str, Any], signer: Signer | None
) -> int:
    """Add an entry; returns its number. The transaction has to hold the write lock."""
    before = connection.execute(_LAST).first()
    number, previous = (1, GENESIS) if before is None else (before.number + 1, before.digest)
    text = canonical(body)
    own = link(number, kind, at, text, previous)
    connection.execute(
        _ADD,
        {
            "number": number,
            "kind": kind,
            "at": at,
            "body": text,
            "previous": previous,
            "digest": own,
            "signer": signer and signer.fingerprint,
            "signature": signer and signer.sign(own),
        },
    )
    return number


def entries(connection: sa.Connection, after: int = 0, limit: int | None = None) -> list[LogEntry]:
    """Entries by number, from the one after ``after``."""
    query = sa.select(log).where(log.c.number > after).order_by(log.c.number).limit(limit)
    return [entry(row) for row in connection.execute(query)]


def latest(connection: sa.Connection, limit: int) -> list[LogEntry]:
    """The last entries, the newest first."""
    query = sa.select(log).order_by(log.c.number.desc()).limit(limit)
    return [entry(row) for row in connection.execute(query)]


def read(connection: sa.Connection, number: int) -> LogEntry:
    """One entry.

    Raises:
        IntegrityError: it is missing.
    """
    row = connection.execute(_ONE, {"at_number": number}).first()
    if row is None:
        raise IntegrityError(
            f"entry {number} of the log is missing: restore the ledger from a copy"
        )
    return entry(row)


def now() -> str:
    """This moment as entries tell it, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def canonical(body: Mapping[str, Any]) -> str:
    """The one text of a body."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def entry(row: sa.Row[Any]) -> LogEntry:
    """An entry, from its row.

    Raises:
        IntegrityError: its body cannot be read.
    """
    try:
        body = json.loads(row.body)
    except ValueError as error:
        raise IntegrityError(
            f"entry {row.number} of the log is not readable ({error}): restore the ledger from a "
            "copy"
        ) from None
    return LogEntry(
        row.number,
        row.kind,
        row.at,
        body,
        Digest(row.previous),
        Digest(row.digest),
        row.signer,
        row.signature,
    )

"""Large deletions that were accepted and wait: what a row of the table ``jobs`` says.

Invariant: while a job waits its request id stands for it; no other deletion takes that id.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, RequestConflictError
from s3t.ledger.database.schema import jobs
from s3t.ledger.receipt import Deletion

__all__ = ["WAITS", "Job", "job_of", "refuse_other", "row_of"]

_DAMAGED = "an accepted deletion in the ledger is damaged: restore the ledger from a copy"

WAITS = jobs.c.cancelled.is_(None)
_NAMED = sa.select(jobs).where(jobs.c.request_id == sa.bindparam("request"), WAITS)


@dataclass(frozen=True, slots=True)
class Job:
    """One large deletion.

    Attributes:
        request_id: its name, here and later in the log.
        deletion: what to delete; it names nothing once it is cancelled.
        number: tells it from an earlier one of its name.
        received: ISO 8601 in UTC.
        expected: by when it should be done, ISO 8601 in UTC.
        callbacks: URLs to tell.
        controller: name of the token that asked.
        cancelled: when it was found that it can never be done, ISO 8601 in UTC.
        problem: code and sentence of why; no ids.
        running: a process has it in hand.
    """

    request_id: str
    deletion: Deletion
    number: int
    received: str
    expected: str
    callbacks: tuple[str, ...]
    controller: str | None
    cancelled: str | None = None
    problem: tuple[str, str] | None = None
    running: bool = False


def refuse_other(connection: sa.Connection, deletion: Deletion) -> None:
    """Refuse a deletion whose request id stands for a waiting job of other names.

    Raises:
        RequestConflictError: the id stands for another one.
        IntegrityError: the job's row is damaged.
    """
    held = connection.execute(_NAMED, {"request": deletion.request_id}).first()
    if held is not None and _deletion(held).text != deletion.text:
        raise RequestConflictError(
            f"request id {deletion.request_id!r} stands for another deletion, which was accepted "
            "and waits to be done: nothing was deleted. Use a new request id"
        )


def row_of(job: Job) -> dict[str, Any]:
    """The columns of a job that waits."""
    return {
        **job.deletion.to_row(),
        "number": job.number,
        "received": job.received,
        "expected": job.expected,
        "callbacks": json.dumps(job.callbacks),
        "controller": job.controller,
    }


def job_of(row: sa.Row[Any], running: bool) -> Job:
    """A job from its row.

    Raises:
        IntegrityError: the row is damaged.
    """
    return Job(
        request_id=row.request_id,
        deletion=_deletion(row),
        number=row.number,
        received=row.received,
        expected=row.expected,
        callbacks=_texts(row.callbacks),
        controller=row.controller,
        cancelled=row.cancelled,
        problem=None if row.code is None else (row.code, row.title),
        running=running,
    )


def _deletion(row: sa.Row[Any]) -> Deletion:
    """What a job's row asks for.

    Raises:
        IntegrityError: it is damaged.
    """
    with suppress(InputError, TypeError, ValueError):
        return Deletion.of_row(row)
    raise IntegrityError(_DAMAGED)


def _texts(column: str) -> tuple[str, ...]:
    with suppress(TypeError, ValueError):
        found = json.loads(column)
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return tuple(found)
    raise IntegrityError(_DAMAGED)

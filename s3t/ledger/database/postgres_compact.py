"""Takes the bytes of deleted rows out of PostgreSQL's tables.

A plain VACUUM gives the space of rows free, and leaves what is in it until it is used again. So the
tables that name samples or hold weights are written again, once no process can still look at the
deleted rows.
"""

from __future__ import annotations

import re
import time
from typing import Any

import psycopg

from s3t.ledger.database import backend

__all__ = ["compacted"]

_TAKE_SECONDS = 2
"""How long to wait for the table when it is to be rewritten; deletions wait as long."""

_GONE_ROWS = (
    "SELECT (SELECT COUNT(*) FROM forgotten), (SELECT value FROM run WHERE key = 'compacted')"
)
_SET_COMPACTED = (
    "INSERT INTO run (key, value) VALUES ('compacted', %s) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_JOBS_SIZE = (
    "SELECT pg_relation_size(oid) + pg_relation_size(reltoastrelid) FROM pg_class "
    "WHERE oid = 'jobs'::regclass"
)
"""Bytes of the table of jobs, which is empty but for a moment: more than none may be dead rows."""
_NOW = "SELECT xid(pg_snapshot_xmax(pg_current_snapshot()))::text"
_OLDER = (
    "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() "
    "AND greatest(age(backend_xmin), age(backend_xid)) > age(%s::xid)"
)


def compacted(driver: psycopg.Connection[Any]) -> bool:
    """Write the tables that name samples or hold weights again, unless no row has left them since.

    Deletions wait meanwhile.

    Args:
        driver: a connection in autocommit, not to be used again: its settings change.

    Returns:
        False if another process went on reading or holding a table for too long.
    """
    gone, known = driver.execute(_GONE_ROWS).fetchall()[0]
    stale = [] if known == str(gone) else ["samples", "run"]
    stale += ["jobs"] if driver.execute(_JOBS_SIZE).fetchall()[0][0] else []
    if stale:
        _wait_for_older(driver)
    if not all(_rewritten(driver, table) for table in stale):
        return False
    driver.execute(_SET_COMPACTED, [str(gone)])
    return True


def _wait_for_older(driver: psycopg.Connection[Any]) -> None:
    """Wait, not for ever, until no process can still look at rows that are deleted by now."""
    now = driver.execute(_NOW).fetchall()[0]
    limit = time.monotonic() + backend.BUSY_SECONDS
    while driver.execute(_OLDER, now).fetchall()[0][0] and time.monotonic() < limit:
        time.sleep(0.05)


def _rewritten(driver: psycopg.Connection[Any], table: str) -> bool:
    """Write a table again; whether no deleted row was taken along."""
    said: list[str] = []
    driver.add_notice_handler(lambda notice: said.append(notice.message_detail or ""))
    driver.execute(f"SET lock_timeout = '{_TAKE_SECONDS}s'".encode())
    try:
        driver.execute(f"VACUUM (FULL, VERBOSE) {table}".encode())
    except psycopg.errors.LockNotAvailable:
        return False
    kept = [int(found[0]) for found in map(re.compile(r"\d+").findall, said) if found]
    return kept[:1] == [0]  # "0 dead row versions cannot be removed yet", in whatever language

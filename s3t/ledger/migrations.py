"""How a ledger comes to be, and how an older one becomes a newer one.

    nothing ─0→1─► samples, hits, requests, run ─1→2─► ids stored once, counters kept
                     ─2→3─► receipts chained in a log; plans, nodes; what is purged leaves hashes
                     ─3→4─► replicas, and since when a deletion is effective on all of them
                     ─4→5─► nodes with their scores, and the public rows that these are of

Invariant: a migration that has been released never changes, so its SQL is literal; a new one is
added at the end. All of an opening's migrations run in one transaction.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

import sqlalchemy as sa

from s3t.errors import IntegrityError
from s3t.ledger import outbox_tables
from s3t.ledger.chain import append
from s3t.ledger.schema import requests, run, schema_version

__all__ = ["COUNT", "MIGRATIONS", "migrate", "stored_version"]

COUNT = (
    "INSERT INTO slots (shard, slice, samples, samples_left, persons, persons_left) "
    "SELECT shard, slice, SUM(held), SUM(there), COUNT(*), "
    "SUM(CASE WHEN there > 0 THEN 1 ELSE 0 END) FROM ("
    "SELECT shard, slice, COUNT(*) AS held, "
    "SUM(CASE WHEN deleted_view IS NULL THEN 1 ELSE 0 END) AS there "
    "FROM samples WHERE subject IS NOT NULL GROUP BY subject, shard, slice "
    "UNION ALL SELECT shard, slice, 1, CASE WHEN deleted_view IS NULL THEN 1 ELSE 0 END "
    "FROM samples WHERE subject IS NULL) AS people GROUP BY shard, slice",
    "INSERT INTO copies (content, samples_left) "
    "SELECT content, SUM(CASE WHEN deleted_view IS NULL THEN 1 ELSE 0 END) "
    "FROM samples GROUP BY content HAVING COUNT(*) > 1",
)
"""Fills the counters of schema 2 from the samples."""


def _first_schema(connection: sa.Connection) -> None:
    """0 → 1."""
    for statement in (
        "CREATE TABLE samples (sample_id TEXT NOT NULL PRIMARY KEY, subject TEXT, "
        "content TEXT NOT NULL, shard INTEGER NOT NULL, slice INTEGER NOT NULL, "
        "deleted_view INTEGER)",
        "CREATE INDEX samples_subject ON samples (subject)",
        "CREATE INDEX samples_content ON samples (content)",
        "CREATE INDEX samples_place ON samples (shard, slice)",
        "CREATE INDEX samples_deleted ON samples (deleted_view) WHERE deleted_view IS NOT NULL",
        "CREATE TABLE hits (shard INTEGER NOT NULL, slice INTEGER NOT NULL, "
        "view INTEGER NOT NULL, PRIMARY KEY (shard, slice))",
        "CREATE TABLE requests (request_id TEXT NOT NULL PRIMARY KEY, view INTEGER NOT NULL, "
        "fingerprint TEXT NOT NULL, receipt TEXT NOT NULL, created_at TEXT NOT NULL)",
        "CREATE TABLE run (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)",
    ):
        connection.exec_driver_sql(statement)
    values = {"view": "0", "secret": secrets.token_hex(32)}
    connection.execute(
        sa.insert(run), [{"key": key, "value": value} for key, value in values.items()]
    )


def _counters(connection: sa.Connection) -> None:
    """1 → 2: what was counted over all samples is kept in counters, and ids are stored once."""
    rowid = "" if connection.dialect.name != "sqlite" else " WITHOUT ROWID"
    for statement in (
        "ALTER TABLE samples RENAME TO older_samples",
        "DROP INDEX IF EXISTS samples_content",  # never again, so its pages are free first
        "DROP INDEX IF EXISTS samples_place",
        "DROP INDEX IF EXISTS samples_deleted",
        "DROP INDEX IF EXISTS samples_subject",
        "CREATE TABLE samples (sample_id TEXT NOT NULL, subject TEXT, content TEXT NOT NULL, "
        "shard INTEGER NOT NULL, slice INTEGER NOT NULL, deleted_view INTEGER, "
        f"PRIMARY KEY (sample_id)){rowid}",
        "INSERT INTO samples (sample_id, subject, content, shard, slice, deleted_view) "
        "SELECT sample_id, subject, content, shard, slice, deleted_view FROM older_samples "
        "ORDER BY sample_id",
        "DROP TABLE older_samples",
        "CREATE TABLE slots (shard INTEGER NOT NULL, slice INTEGER NOT NULL, "
        "samples INTEGER NOT NULL, samples_left INTEGER NOT NULL, persons INTEGER NOT NULL, "
        "persons_left INTEGER NOT NULL, PRIMARY KEY (shard, slice))",
        "CREATE TABLE copies (content TEXT NOT NULL PRIMARY KEY, samples_left INTEGER NOT NULL)",
        *COUNT,
        "CREATE INDEX samples_subject ON samples (subject, deleted_view) WHERE subject IS NOT NULL",
        "CREATE INDEX samples_deleted ON samples (sample_id) WHERE deleted_view IS NOT NULL",
        "CREATE INDEX hits_view ON hits (view, shard, slice)",
        # Made anew without a default, so that an older s3t that still has the ledger open cannot
        # write a deletion that nobody counts.
        "ALTER TABLE requests RENAME TO older_requests",
        "CREATE TABLE requests (request_id TEXT NOT NULL PRIMARY KEY, view INTEGER NOT NULL, "
        "persons INTEGER NOT NULL, fingerprint TEXT NOT NULL, receipt TEXT NOT NULL, "
        "created_at TEXT NOT NULL)",
        "INSERT INTO requests (request_id, view, persons, fingerprint, receipt, created_at) "
        "SELECT request_id, view, 0, fingerprint, receipt, created_at FROM older_requests",
        "DROP TABLE older_requests",
        "DELETE FROM run WHERE key = 'samples_count'",
    ):
        connection.exec_driver_sql(statement)
    _count_persons(connection)
    connection.exec_driver_sql(
        "CREATE INDEX requests_history ON requests (view, created_at, persons) WHERE persons > 0"
    )


def _count_persons(connection: sa.Connection) -> None:
    """The persons that each request took a sample of, of those that took any."""
    counted = connection.exec_driver_sql(
        "SELECT deleted_view, COUNT(DISTINCT subject) + "
        "SUM(CASE WHEN subject IS NULL THEN 1 ELSE 0 END) "
        "FROM samples WHERE deleted_view IS NOT NULL GROUP BY deleted_view"
    )
    persons = {view: int(count) for view, count in counted}
    made = connection.exec_driver_sql("SELECT request_id, view, receipt FROM requests")
    # A request that found everything deleted has the view of the deletion before it.
    took = [
        {"request": request, "persons": persons[view]}
        for request, view, receipt in made
        if view in persons and json.loads(receipt)["deleted"]
    ]
    if took:
        update = "UPDATE requests SET persons = :persons WHERE request_id = :request"
        connection.execute(sa.text(update), took)


def _log(connection: sa.Connection) -> None:
    """2 → 3: receipts become entries of a chained log, and plans and nodes are written down."""
    rowid = "" if connection.dialect.name != "sqlite" else " WITHOUT ROWID"
    made = connection.exec_driver_sql(
        "SELECT request_id, view, persons, fingerprint, receipt, created_at FROM requests "
        "ORDER BY view, created_at, request_id"
    ).all()
    for statement in (
        "DROP TABLE requests",
        "CREATE TABLE requests (request_id TEXT NOT NULL PRIMARY KEY, view INTEGER NOT NULL, "
        "persons INTEGER NOT NULL, fingerprint TEXT NOT NULL, created_at TEXT NOT NULL, "
        "number INTEGER NOT NULL)",
        "CREATE INDEX requests_history ON requests (view, created_at, persons) WHERE persons > 0",
        "CREATE TABLE log (number INTEGER NOT NULL PRIMARY KEY, kind TEXT NOT NULL, "
        "at TEXT NOT NULL, body TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL, "
        "signer TEXT, signature TEXT)",
        "CREATE INDEX log_kind ON log (kind, number)",
        "CREATE TABLE forgotten (sample TEXT NOT NULL, subject TEXT, shard INTEGER NOT NULL, "
        f"slice INTEGER NOT NULL, view INTEGER NOT NULL, PRIMARY KEY (sample)){rowid}",
        "CREATE INDEX forgotten_subject ON forgotten (subject) WHERE subject IS NOT NULL",
        "CREATE TABLE plans (generation INTEGER NOT NULL PRIMARY KEY, digest TEXT NOT NULL, "
        "view INTEGER NOT NULL, in_force INTEGER)",
        f"CREATE TABLE nodes (key TEXT NOT NULL, weights TEXT NOT NULL, PRIMARY KEY (key)){rowid}",
        "INSERT INTO run (key, value) VALUES ('nodes_view', '0')",
        # once the view that hit a slot first, from now on the one that hit it last
        "UPDATE hits SET view = (SELECT MAX(deleted_view) FROM samples "
        "WHERE samples.shard = hits.shard AND samples.slice = hits.slice)",
    ):
        connection.exec_driver_sql(statement)
    for request_id, view, persons, fingerprint, receipt, created_at in made:
        number = append(connection, "deletion", created_at, json.loads(receipt), None)
        connection.execute(
            sa.insert(requests).values(
                request_id=request_id,
                view=view,
                persons=persons,
                fingerprint=fingerprint,
                created_at=created_at,
                number=number,
            )
        )


def _replicas(connection: sa.Connection) -> None:
    """3 → 4: who answers, from which view on, and which deletions have taken effect everywhere."""
    told = connection.exec_driver_sql("SELECT number, body FROM log WHERE kind = 'effective'").all()
    for statement in (
        "CREATE TABLE replicas (replica TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, "
        "view INTEGER NOT NULL, beats INTEGER NOT NULL, lease FLOAT NOT NULL, since TEXT NOT NULL)",
        "ALTER TABLE requests ADD COLUMN effective INTEGER",
        "CREATE INDEX requests_number ON requests (number)",
        "CREATE INDEX requests_pending ON requests (number) WHERE effective IS NULL",
    ):
        connection.exec_driver_sql(statement)
    if told:
        update = "UPDATE requests SET effective = :entry WHERE number = :deletion"
        values = [
            {"entry": one.number, "deletion": json.loads(one.body)["deletion"]} for one in told
        ]
        connection.execute(sa.text(update), values)


def _scores(connection: sa.Connection) -> None:
    """4 → 5: scores are witnessed. Nodes of before are of a format that is not read any more."""
    rowid = "" if connection.dialect.name != "sqlite" else " WITHOUT ROWID"
    for statement in (
        "DROP TABLE nodes",
        "CREATE TABLE nodes (key TEXT NOT NULL PRIMARY KEY, weights TEXT NOT NULL, "
        f"score FLOAT NOT NULL, rows TEXT NOT NULL){rowid}",
    ):
        connection.exec_driver_sql(statement)


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (
    _first_schema,
    _counters,
    _log,
    _replicas,
    _scores,
)
"""Number n takes a ledger from schema version n to n + 1."""


def stored_version(connection: sa.Connection, name: str, create: bool) -> int:
    """Version of the schema, 0 for an empty database that is to become a ledger.

    Raises:
        IntegrityError: not a ledger, or one of a newer s3t.
    """
    tables = sa.inspect(connection).get_table_names()
    if "schema_version" not in tables:
        if tables or not create:
            raise IntegrityError(
                f"{name} is a database but no ledger: give the ledger.db of a run directory"
            )
        return 0
    versions = connection.execute(sa.select(schema_version.c.version)).scalars().all()
    if len(versions) != 1:
        raise IntegrityError(f"{name} has {len(versions)} schema versions: restore it from a copy")
    if versions[0] > len(MIGRATIONS):
        raise IntegrityError(
            f"{name} has schema {versions[0]}, this s3t knows up to {len(MIGRATIONS)}: upgrade s3t"
        )
    return int(versions[0])


def migrate(connection: sa.Connection, version: int) -> None:
    """Bring a ledger from ``version`` to the newest."""
    for migration in MIGRATIONS[version:]:
        migration(connection)
    outbox_tables.create(connection)
    schema_version.create(connection, checkfirst=True)
    connection.execute(sa.delete(schema_version))
    connection.execute(sa.insert(schema_version).values(version=len(MIGRATIONS)))

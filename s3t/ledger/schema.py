"""Tables of the ledger, and how an older ledger becomes a newer one.

    samples   every private sample with its place; ``deleted_view`` once it is deleted
    hits      (shard, slice) that hold a deleted sample, and since which view
    requests  one receipt per request id, with keyed hashes instead of ids
    run       ``view``, the ``secret`` of the hashes, number and digest of the samples

Invariant: a migration that has been released never changes; a new one is added at the end.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import sqlalchemy as sa

from s3t.errors import IntegrityError

__all__ = [
    "MIGRATIONS",
    "REGISTERED",
    "hits",
    "incoming",
    "metadata",
    "migrate",
    "requests",
    "run",
    "samples",
    "schema_version",
    "stored_version",
    "value",
]

metadata = sa.MetaData()
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("sample_id", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("shard", sa.Integer, nullable=False),
    sa.Column("slice", sa.Integer, nullable=False),
    sa.Column("deleted_view", sa.Integer),
)
hits = sa.Table(
    "hits",
    metadata,
    sa.Column("shard", sa.Integer, primary_key=True),
    sa.Column("slice", sa.Integer, primary_key=True),
    sa.Column("view", sa.Integer, nullable=False),
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("view", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("receipt", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)
run = sa.Table(
    "run",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
schema_version = sa.Table(
    "schema_version", metadata, sa.Column("version", sa.Integer, nullable=False)
)
incoming = sa.Table(  # samples to compare with, for one transaction
    "incoming",
    sa.MetaData(),
    sa.Column("sample_id", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text),
    sa.Column("content", sa.Text),
    sa.Column("shard", sa.Integer),
    sa.Column("slice", sa.Integer),
    prefixes=["TEMPORARY"],
)
REGISTERED = ("sample_id", "subject", "content", "shard", "slice")
"""Columns that are fixed once a sample is registered."""


def _first_schema(connection: sa.Connection) -> None:
    """0 → 1. Literal, since it has to stay what it was when the tables above move on."""
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


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_first_schema,)
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
    schema_version.create(connection, checkfirst=True)
    connection.execute(sa.delete(schema_version))
    connection.execute(sa.insert(schema_version).values(version=len(MIGRATIONS)))


def value(connection: sa.Connection, key: str) -> str | None:
    """One value of the table ``run``, None if it is not there."""
    return connection.execute(sa.select(run.c.value).where(run.c.key == key)).scalar()

"""Tables of the ledger as they are now.

    samples    every private sample with its place; ``deleted_view`` once it is deleted
    forgotten  keyed hashes of those that were deleted and then purged, with their place
    slots      per (shard, slice): samples and persons, registered and left
    lookalikes names that others may look like, by the form that these have in common
    copies     contents that several samples have, and how many of those are left
    requests   request ids, each with the entries of the log that are its receipt, and that tell
               when it was effective
    log        all that was ever done, chained; keyed hashes instead of ids. What may be served
               follows from it alone (``log/state``), so no index is on it
    nodes      digest of the weights of every node, as first seen by who trained them, with its
               score, the digest of the public rows that it was scored on, and that of what it
               says of them, if that was there
    replicas   who answers, and a view before which none answers any more
    jobs       large deletions: the ids that they name until they are done, and not a moment longer
    callbacks  URLs that are still to be told of a deletion, in the order in which they are told
    claims     which process works at which of them, and its signs of life
    run        ``view``, the ``secret`` of the hashes, digest of the samples; until the next
               deletion the fitted ``weights`` and the ``evaluation`` of what serves; until the
               next purge the figures of ``evaluations``

Invariant: there is one schema. A ledger of another is refused; a table that is read by its
key has no rowid (SQLite), so its rows lie in the order of the key, and no index can disagree.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from s3t.errors import IntegrityError

__all__ = [
    "REGISTERED",
    "TOOK",
    "callbacks",
    "claims",
    "copies",
    "forgotten",
    "incoming",
    "is_made",
    "jobs",
    "log",
    "lookalikes",
    "make",
    "metadata",
    "nodes",
    "replicas",
    "requests",
    "run",
    "samples",
    "samples_subject",
    "schema_version",
    "set_value",
    "slots",
    "strange",
    "value",
]

_VERSION = 7
"""Of the tables below. 0.1 was never released, so there is nothing to migrate from."""

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
    sqlite_with_rowid=False,  # ids are stored once, and found in one descent
)
_WITH_SUBJECT = samples.c.subject.is_not(None)
samples_subject = sa.Index(
    "samples_subject",
    samples.c.subject,
    samples.c.deleted_view,
    sqlite_where=_WITH_SUBJECT,
    postgresql_where=_WITH_SUBJECT,
)
"""A person's samples, those left first: so one look tells whether any is."""
slots = sa.Table(
    "slots",
    metadata,
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("slice", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("samples_left", sa.Integer, nullable=False),
    sa.Column("persons", sa.Integer, nullable=False),
    sa.Column("persons_left", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
copies = sa.Table(
    "copies",
    metadata,
    sa.Column("content", sa.Text, primary_key=True),
    sa.Column("samples_left", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
lookalikes = sa.Table(
    "lookalikes",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("plain", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sqlite_with_rowid=False,
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("view", sa.Integer, nullable=False),
    sa.Column("persons", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("effective", sa.Integer),
    sqlite_with_rowid=False,
)
sa.Index("requests_number", requests.c.number)
_PENDING = requests.c.effective.is_(None)
sa.Index("requests_pending", requests.c.number, sqlite_where=_PENDING, postgresql_where=_PENDING)
TOOK = requests.c.persons > sa.literal_column("0")
"""Of a request: it deleted a sample. Literal, since an index of only those is found by it."""
sa.Index(
    "requests_history",
    requests.c.view,
    requests.c.created_at,
    requests.c.persons,
    sqlite_where=TOOK,
    postgresql_where=TOOK,
)
forgotten = sa.Table(
    "forgotten",
    metadata,
    sa.Column("sample", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text),
    sa.Column("shard", sa.Integer, nullable=False),
    sa.Column("slice", sa.Integer, nullable=False),
    sa.Column("view", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
_OF_SUBJECT = forgotten.c.subject.is_not(None)
sa.Index(
    "forgotten_subject",
    forgotten.c.subject,
    sqlite_where=_OF_SUBJECT,
    postgresql_where=_OF_SUBJECT,
)
log = sa.Table(
    "log",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("signer", sa.Text),
    sa.Column("signature", sa.Text),
)
nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("weights", sa.Text, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("rows", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text),
    sqlite_with_rowid=False,
)
replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("replica", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("view", sa.Integer, nullable=False),
    sa.Column("beats", sa.Integer, nullable=False),
    sa.Column("lease", sa.Float, nullable=False),
    sa.Column("since", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("received", sa.Text, nullable=False),
    sa.Column("expected", sa.Text, nullable=False),
    sa.Column("sample_ids", sa.Text, nullable=False),
    sa.Column("subjects", sa.Text, nullable=False),
    sa.Column("callbacks", sa.Text, nullable=False),
    sa.Column("controller", sa.Text),
    sa.Column("cancelled", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("title", sa.Text),
    sqlite_with_rowid=False,
)
callbacks = sa.Table(
    "callbacks",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("since", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
sa.Index("callbacks_host", callbacks.c.host, callbacks.c.number)
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("beats", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
run = sa.Table(
    "run",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
schema_version = sa.Table(
    "schema_version", metadata, sa.Column("version", sa.Integer, nullable=False)
)
_BYTES = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Ordered as the other tables' texts are: by their bytes."""
incoming = sa.Table(  # samples on their way in, for one transaction
    "incoming",
    sa.MetaData(),
    sa.Column("sample_id", _BYTES),
    sa.Column("subject", _BYTES),
    sa.Column("content", _BYTES),
    sa.Column("shard", sa.Integer),
    sa.Column("slice", sa.Integer),
    prefixes=["TEMPORARY"],
)
REGISTERED = ("sample_id", "subject", "content", "shard", "slice")
"""Columns that are fixed once a sample is registered."""


def value(connection: sa.Connection, key: str) -> str | None:
    """One value of the table ``run``, None if it is not there."""
    return connection.execute(sa.select(run.c.value).where(run.c.key == key)).scalar()


def set_value(connection: sa.Connection, key: str, text: str) -> None:
    """Set one value of the table ``run``."""
    connection.execute(sa.delete(run).where(run.c.key == key))
    connection.execute(sa.insert(run).values(key=key, value=text))


def is_made(connection: sa.Connection, name: str, create: bool) -> bool:
    """Whether a database is a ledger; False for an empty one that is to become one.

    Raises:
        IntegrityError: it is another database, or a ledger of another schema.
    """
    tables = sa.inspect(connection).get_table_names()
    if schema_version.name not in tables:
        if tables or not create:
            raise IntegrityError(
                f"{name} is a database but no ledger: give the ledger.db of a run directory"
            )
        return False
    versions = connection.execute(sa.select(schema_version.c.version)).scalars().all()
    if len(versions) != 1 or not isinstance(versions[0], int):
        raise IntegrityError(f"{name} has schema versions {versions}: restore it from a copy")
    if versions[0] != _VERSION:
        which = "upgrade s3t" if versions[0] > _VERSION else "an older s3t made it: train a new run"
        raise IntegrityError(f"{name} has schema {versions[0]}, this s3t needs {_VERSION}: {which}")
    return True


def make(connection: sa.Connection) -> None:
    """Make the tables of an empty ledger, and its secret."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(sa.insert(schema_version).values(version=_VERSION))
    values = {"view": "0", "secret": secrets.token_hex(32)}
    connection.execute(sa.insert(run), [{"key": k, "value": v} for k, v in values.items()])


_TRIGGERS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT trigger_name FROM information_schema.triggers "
    "WHERE trigger_schema = current_schema()",
}


def strange(connection: sa.Connection) -> list[str]:
    """What lies beside the ledger in its database, and may hold or do anything, sorted."""
    looked = sa.inspect(connection)
    found = [f"the view {name}" for name in looked.get_view_names()]
    triggers = connection.exec_driver_sql(_TRIGGERS[connection.dialect.name])
    found += [f"the trigger {row[0]}" for row in triggers]
    for name in looked.get_table_names():
        table = metadata.tables.get(name)
        if table is None:
            found.append(f"the table {name}")
            continue
        columns = {str(one["name"]) for one in looked.get_columns(name)} - {*table.columns.keys()}
        found += [f"the column {name}.{column}" for column in columns]
    return sorted(set(found))

"""Tables of the outbox: what was accepted and is not done, and what is still to be told.

jobs       large deletions: the ids that they name until they are done, and not a moment longer
callbacks  URLs that are still to be told of a deletion, in the order in which they are told
claims     which process works at which of them, and its signs of life
"""

from __future__ import annotations

import sqlalchemy as sa

from s3t.ledger.database.schema import metadata

__all__ = ["callbacks", "claims", "jobs"]

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

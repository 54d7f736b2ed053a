"""A real PostgreSQL for tests: one schema a test, or a server of a test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.postgres import Proxy, Server

__all__ = ["Proxy", "Server", "database_url", "postgres", "server"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for the session: leave it running, and leave no setting of it changed."""
    yield from _served()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of a test's own, to kill."""
    yield from _served()


@pytest.fixture
def database_url(postgres: Server) -> str:
    """URL of an empty schema of a database, for one test."""
    return postgres.create()


def _served() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 's3t[postgres]'")
    try:
        made = Server.find()
    except LookupError as error:
        pytest.skip(str(error))
    if made is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    try:
        made.start()
        yield made
    finally:
        made.remove()

"""A real PostgreSQL for tests: one schema a test, or a server that a test may kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.postgres import Proxy, Server

__all__ = ["Proxy", "Server", "database_url", "postgres", "server"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for the session: leave it running, and leave no setting of it changed."""
    yield from _served()


@pytest.fixture(scope="session")
def second_server() -> Iterator[Server]:
    """Beside the server for the session: the one that ``server`` gives to each test in turn."""
    yield from _served()


@pytest.fixture
def server(second_server: Server) -> Iterator[Server]:
    """A server to kill, to stop, and to start with other settings."""
    settings = dict(second_server.settings)
    if not second_server.alive():
        second_server.start()
    yield second_server
    if second_server.settings != settings:
        second_server.stop()
        second_server.settings = settings


@pytest.fixture
def database_url(postgres: Server) -> str:
    """URL of an empty schema of a database, for one test."""
    return postgres.create()


def _served() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 's3t[postgres]'")
    try:
        made = Server.find(_memory())
    except LookupError as error:
        pytest.skip(str(error))
    if made is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    try:
        made.start()
        yield made
    finally:
        made.remove()


def _memory() -> Path | None:
    """Where the folders of tests are, if that is in memory: no other need be open to a server."""
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT", "")
    return Path(root) if root.startswith("/dev/shm") else None

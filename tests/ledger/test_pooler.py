"""PgBouncer before the ledger's server: in session mode it is used, in transaction mode refused."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from s3t.errors import InputError
from s3t.ledger import Ledger
from tests.support.postgres import Server

Pooled = Callable[[str], str]


@pytest.fixture
def pooled(postgres: Server) -> Iterator[Pooled]:
    """Starts a PgBouncer in a mode before a new database; gives the URL of that."""
    program = os.environ.get("S3T_PGBOUNCER") or shutil.which("pgbouncer", path=os.defpath)
    program = program or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("there is no PgBouncer here: apt-get install pgbouncer")
    running: list[subprocess.Popen[bytes]] = []

    def start(mode: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        users = postgres.folder / "users.txt"
        users.write_text('"s3t" ""\n')
        settings = postgres.folder / f"pgbouncer.{port}.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\n"
            f"listen_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n"
            f"auth_type=trust\nauth_file={users}\npool_mode={mode}\n"
        )
        running.append(
            subprocess.Popen([program, settings], stderr=subprocess.DEVNULL, **postgres._as)
        )
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        return postgres.create_database().replace(f":{postgres.port}/", f":{port}/")

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_transaction_mode_is_refused_with_the_reason(pooled: Pooled) -> None:
    url = pooled("transaction")
    for _ in range(3):
        with pytest.raises(InputError, match="behind a pooler in transaction mode"):
            Ledger.open(url, create=True)


@pytest.mark.slow
def test_other_clients_of_the_pooler_do_not_hide_it(pooled: Pooled) -> None:
    import psycopg

    url, ended = pooled("transaction"), threading.Event()

    def busy() -> None:
        at = url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(at, autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                connection.execute("SELECT pg_sleep(0.001)")

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            with pytest.raises(InputError, match="behind a pooler in transaction mode"):
                Ledger.open(url, create=True)
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_in_session_mode_the_training_lock_holds(pooled: Pooled) -> None:
    url = pooled("session")
    with Ledger.open(url, create=True) as one, Ledger.open(url) as two:
        with one.training() as first, two.training() as second:
            assert first and not second
        with two.training() as second:
            assert second

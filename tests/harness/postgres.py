"""A real PostgreSQL, started from this machine's programs, that can be killed and come back; and a
way to it that can be cut.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Proxy", "Server"]

_PLACES = "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"
_USER = "s3t"
_numbers = itertools.count()


def _binaries() -> Path | None:
    """The folder of the newest PostgreSQL of this machine."""
    found = [path for place in _PLACES for path in Path("/").glob(place.lstrip("/"))]
    named = shutil.which("initdb")
    folders = [
        path for path in found if (path / "initdb").is_file() and (path / "postgres").exists()
    ]
    if folders:
        return max(folders, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
    return Path(named).parent if named else None


class Server:
    """One PostgreSQL on a port of its own, data and log in a folder that goes with it.

    As root it runs as another user, since PostgreSQL refuses to be root.

    Attributes:
        folder: where it lies, also its socket.
        port: of 127.0.0.1.
        settings: that it is started with.
    """

    def __init__(self, binaries: Path, within: Path | None = None) -> None:
        """Make its folder, in the system's place for temporary ones, or within another.

        Raises:
            LookupError: we are root, and there is nobody else as whom it could run.
        """
        # by default not below folders of ours: only their owner may look into those
        self.folder = Path(tempfile.mkdtemp(prefix="s3t-postgres-", dir=within))
        self.binaries = binaries
        self._as = _other_user() if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self.folder, self._as["user"], self._as["group"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "on",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # a killed server leaves nothing in /dev/shm
        }
        initdb = ["initdb", "-D", "data", "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        for locale in (
            "en_US.UTF-8",
            "C.UTF-8",
        ):  # an order that is not that of bytes, if it can be
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            made = self._run(*initdb, f"--locale={locale}")
            if made.returncode == 0:
                break
        assert made.returncode == 0, made.stderr

    @classmethod
    def find(cls, within: Path | None = None) -> Server | None:
        """One of this machine's newest PostgreSQL; None if there is none."""
        binaries = _binaries()
        return None if binaries is None else cls(binaries, within)

    def start(self) -> None:
        """Start it, and wait until it lets us in."""
        options = [
            word for key, value in self.settings.items() for word in ("-c", f"{key}={value}")
        ]
        command = [self.binaries / "postgres", "-D", "data", *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, **self._as
            )
        limit = time.monotonic() + 30
        while not self._ready():
            assert self._process.poll() is None and time.monotonic() < limit, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut it down; whoever is connected is cut off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """``kill -9`` of all its processes."""
        assert self._process is not None
        at = self._process.pid
        children = Path(f"/proc/{at}/task/{at}/children").read_text().split()
        for process in (at, *map(int, children)):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(30)
        self._process = None

    def restart(self) -> None:
        """Stop it, and start it again."""
        self.stop()
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still, as when a machine hangs."""
        assert self._process is not None
        at = self._process.pid
        children = Path(f"/proc/{at}/task/{at}/children").read_text().split()
        processes = [at, *map(int, children)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def alive(self) -> bool:
        """Whether its main process runs."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """URL of a database on it."""
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{database}"

    def create(self) -> str:
        """Make an empty schema; returns the URL of it."""
        name = f"run_{next(_numbers)}"
        self.sql(f"CREATE SCHEMA {name}")
        return f"{self.url()}?options=-csearch_path%3D{name}"

    def create_database(self) -> str:
        """Make an empty database, which takes longer; returns its URL."""
        name = f"run_{next(_numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def copy(self, url: str) -> str:
        """Copy a database, and cut off whoever is connected to it; returns the copy's URL."""
        name, source = f"run_{next(_numbers)}", url.rpartition("/")[2]
        others = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname='{source}'"
        self.sql(others)
        self.sql(f"CREATE DATABASE {name} TEMPLATE {source}")
        return self.url(name)

    def replace(self, url: str, copied: str) -> None:
        """Make a database again what it was when it was copied."""
        name, source = (one.rpartition("/")[2] for one in (url, copied))
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")
        self.sql(f"CREATE DATABASE {name} TEMPLATE {source}")

    def sql(self, statement: str, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run a statement past the ledger, in what a URL names."""
        import psycopg
        import sqlalchemy as sa

        at = sa.make_url(url or self.url())
        more = {key: str(value) for key, value in at.query.items()}
        named = {"host": at.host, "port": at.port, "user": at.username, "dbname": at.database}
        with psycopg.connect(**{**named, **more}, autocommit=True) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def log(self) -> str:
        """What it said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def remove(self) -> None:
        """Stop it, and remove all of it."""
        if self._process is not None:
            self.kill()  # nothing of it is kept, so nothing has to be written
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ready(self) -> bool:
        import psycopg

        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.binaries / program, *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._as,  # type: ignore[call-overload]
        )


class Proxy:
    """A way to a server that can be cut, for good (reset) or as if nobody were there (stall)."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._lets_in, self._swallows = True, False
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """End every connection, and let nobody in."""
        self._lets_in = False
        for one in [*self._open]:  # not those that come meanwhile
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Keep every connection, and let nothing through."""
        self._flows.clear()

    def swallow(self) -> None:
        """Let what is said next reach the server, and end everything instead of its answer."""
        self._swallows = True

    def heal(self) -> None:
        """Be a way again."""
        self._swallows = False
        self._lets_in = True
        self._flows.set()

    def close(self) -> None:
        """End it."""
        self.heal()
        self._listening.close()
        self.reset()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here = self._listening.accept()[0]
                if not self._lets_in:
                    here.close()
                    continue
                try:
                    there = socket.create_connection(("127.0.0.1", self._to))
                except OSError:  # it is not there, which may change
                    here.close()
                    continue
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                self._flows.wait()
                if self._swallows and source.getpeername()[1] == self._to:
                    self.reset()
                    return
                target.sendall(content)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _other_user() -> dict[str, object]:
    """As whom a server runs that root starts: words for ``subprocess``."""
    import grp
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        group = grp.getgrgid(entry.pw_gid).gr_name
        return {"user": name, "group": group, "extra_groups": []}
    raise LookupError("PostgreSQL does not run as root, and there is no user postgres or nobody")

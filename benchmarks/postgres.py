"""A real PostgreSQL for tests: one database a test; it can be killed, and come back."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Server"]

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
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "on",
            "shared_buffers": "32MB",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
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
        """Make an empty database; returns its URL."""
        name = f"run_{next(_numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement past the ledger."""
        import psycopg

        where = {"host": "127.0.0.1", "port": self.port, "user": _USER, "dbname": database}
        with psycopg.connect(**where, autocommit=True) as connection:  # type: ignore[arg-type]
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

"""A real ``s3t serve`` process under attack: raw bytes to it, and what it must not lose by them.

Invariant: what counts as the state is all that a request could change: status, the log's last
entry, and every file of the run but the ledger's own and locks.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3t.server.security.tokens import ROLES, TokenFile

__all__ = ["Besieged", "told", "trained"]

ROOT = Path(__file__).resolve().parents[2]
ROLES_ALL = "all"
"""Name of the token that is good for everything."""
_START = 120.0
"""Seconds within which it has to begin, or end."""


class Besieged:
    """One service over a copy of a run, with a token of each role.

    Args:
        run: copied, so that attacks do not add up.
        folder: for the copy and the log.
        settings: ``serve.KEY=VALUE``.
        insecure: start it without tokens.
    """

    def __init__(
        self, run: Path, folder: Path, settings: Sequence[str] = (), insecure: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = Path(shutil.copytree(run, folder / "run", symlinks=True))
        self.log = folder / "log"
        file = TokenFile(self.run / "tokens.json")
        self.tokens = {role: file.create(role, [role])[0] for role in ROLES}
        self.tokens[ROLES_ALL] = file.create(ROLES_ALL, ROLES)[0]
        words = [sys.executable, "-m", "s3t", "serve", str(self.run), *settings, "--port", "0"]
        self._log = self.log.open("wb")
        self.process = subprocess.Popen(
            [*words, *(["--insecure"] if insecure else [])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        patience = threading.Timer(_START, self.process.kill)
        patience.start()
        self.said = self.process.stdout.readline()  # empty if it ends instead
        patience.cancel()
        found = re.search(r"http://([\d.]+):(\d+)", self.said)
        self.host, self.port = (found[1], int(found[2])) if found else ("", 0)
        self.url = f"http://{self.host}:{self.port}"

    @property
    def serves(self) -> bool:
        """Whether it began to."""
        return self.port != 0

    def __enter__(self) -> Besieged:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> int:
        """Tell it to end; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._log.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def ask(
        self,
        method: str,
        path: str,
        role: str | None = ROLES_ALL,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of a well-formed request; bytes are sent as they are."""
        given = {} if role is None else {"Authorization": f"Bearer {self.tokens.get(role, role)}"}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if content is not None:
            given["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, content, given | dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def asked(self, method: str, path: str, role: str | None = ROLES_ALL, **more: Any) -> str:
        """The outcome of a well-formed request, in words."""
        try:
            return told(*self.ask(method, path, role, **more))
        except (OSError, http.client.HTTPException) as error:
            return f"closed ({type(error).__name__})"

    def head(self, method: str, path: str, *lines: str, role: str | None = ROLES_ALL) -> bytes:
        """The head of a request up to the blank line."""
        token = [] if role is None else [f"Authorization: Bearer {self.tokens.get(role, role)}"]
        written = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", *token, *lines]
        return ("\r\n".join(written) + "\r\n\r\n").encode("latin-1")

    def raw(self, parts: Iterable[bytes], pause: float = 0.0, wait: float = 20.0) -> str:
        """What comes back for some bytes, in words."""
        with socket.create_connection((self.host, self.port), timeout=wait) as link:
            try:
                for part in parts:
                    link.sendall(part)
                    if pause:
                        time.sleep(pause)
            except OSError:
                pass  # it has had enough; its answer may be there all the same
            return _read(link)

    def state(self) -> tuple[Any, ...]:
        """All that a refused request must not change."""
        status = self.ask("GET", "/v1/status")[1]
        last = self.ask("GET", "/v1/log?limit=1")[1]
        files = {}
        for path in sorted(self.run.rglob("*")):
            if path.is_file() and not path.name.startswith(("ledger.db", ".lock", ".training")):
                files[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return status, last, tuple(files.items())


def told(status: int, body: bytes) -> str:
    """Status and code, such as ``422 invalid_body``."""
    try:
        code = json.loads(body).get("code", "")
    except (AttributeError, ValueError):
        code = ""
    return f"{status} {code}".strip()


def _read(link: socket.socket) -> str:
    """The first answer on a connection, in words."""
    answer = http.client.HTTPResponse(link)
    try:
        answer.begin()
        return told(answer.status, answer.read())
    except TimeoutError:
        return "no answer"
    except (OSError, http.client.HTTPException):
        return "closed"
    finally:
        answer.close()


def trained(*overrides: str) -> Path:
    """A small digits run in a temporary folder that the caller removes."""
    folder = Path(tempfile.mkdtemp())
    words = ["configs/digits.yaml", f"output={folder}/run", *overrides]
    subprocess.run(
        [sys.executable, "-m", "s3t", "train", *words],
        cwd=ROOT,
        env=os.environ,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder

"""Replicas of one run as processes, the road from each to the ledger, and clients that keep count.

    client ─► s3t serve (replica 1) ─► road ─► PostgreSQL ◄─ road ◄─ s3t serve (replica 2) ◄─ client

A client writes down of each answer what had been acknowledged when it asked: an answer of an older
view than that is one of a dead block.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Ack", "Acks", "Client", "Serving", "delete", "post", "train"]

ROOT = Path(__file__).resolve().parents[2]


def train(run: Path, ledger: str | None, *overrides: str, env: Mapping[str, str]) -> list[str]:
    """Train the digits run of the demo; returns the ids of its private samples."""
    words = ["configs/digits.yaml", f"output={run}", *overrides]
    words += [] if ledger is None else [f"ledger={ledger}"]
    _s3t("train", *words, env=env)
    listed = _s3t("samples", str(run), "--json", env=env)
    return [json.loads(line)["sample_id"] for line in listed.splitlines()]


def _s3t(*words: str, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "s3t", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"s3t {' '.join(words)}: {done.stderr}")
    return done.stdout


class Serving:
    """One ``s3t serve`` process.

    Args:
        run: the run.
        env: of the process, on top of ours.
        before: words before the command, such as ``faketime +1h``.
        settings: ``serve.KEY=VALUE``.
    """

    def __init__(
        self,
        run: Path,
        env: Mapping[str, str],
        log: Path,
        before: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> None:
        self._log = log.open("ab")
        command = [*before, sys.executable, "-m", "s3t", "serve", str(run)]
        self.process = subprocess.Popen(
            [*command, *settings, "--insecure", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " at http://" not in line:
            raise SystemExit(f"a replica did not start: {log.read_text()[-2000:]}")
        self.port = int(line.strip().rpartition(":")[2])

    def kill(self) -> None:
        """``kill -9``, of all that it started too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Let it end by itself; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclass(frozen=True)
class Ack:
    """A deletion that was answered with 201: by whom, when, and what it said."""

    request: str
    view: int
    asked: float
    told: float
    accepted_at: str
    effective_at: str


class Acks:
    """The deletions that were acknowledged; the floor is the newest view among them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.all: list[Ack] = []
        self.floor = 0

    def add(self, ack: Ack) -> None:
        """Count one in."""
        with self._lock:
            self.all.append(ack)
            self.floor = max(self.floor, ack.view)


@dataclass
class Client:
    """A thread that asks one replica again and again.

    Attributes:
        seen: answers by what they were: ``answered``, a problem's code, or ``no connection``.
        stale: answers of a view that a deletion acknowledged before had left behind.
        longest: seconds of the longest time without an answer.
    """

    port: int
    body: bytes
    acks: Acks
    pause: float = 0.02
    seen: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    longest: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def snapshot(self) -> tuple[Counter[str], float]:
        """What was seen since the last snapshot, and the longest silence in it."""
        found, self.seen = self.seen, Counter()
        silence = max(self.longest, time.monotonic() - self._last)
        self.longest = 0.0
        return found, silence

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        connection = None
        while not self._stop.wait(self.pause):
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                floor = self.acks.floor
                status, found = post(connection, "/v1/predict", self.body)
            except (OSError, http.client.HTTPException):
                connection = None
                self.seen["no connection"] += 1
                continue
            if status != 200:
                self.seen[str(found.get("code", status))] += 1
                continue
            now = time.monotonic()
            self.longest, self._last = max(self.longest, now - self._last), now
            self.seen["answered"] += 1
            self.stale += found["view"] < floor


def post(
    connection: http.client.HTTPConnection, path: str, body: bytes
) -> tuple[int, dict[str, Any]]:
    """One request; returns the status and the JSON."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"{}")


def delete(
    ports: Sequence[int], sample: str, acks: Acks, limit: float = 60.0
) -> tuple[Ack | None, list[str]]:
    """Delete a sample as a privacy tool does: at one replica, and at the next if that cannot.

    The request id stays the same, so that no try can delete twice or lose what another one did.

    Returns:
        the acknowledgement, if there was one in time, and what the tries before it got.
    """
    request, tries = uuid.uuid4().hex, []
    body = json.dumps({"sample_ids": [sample], "subject_request_id": request}).encode()
    until = time.monotonic() + limit
    while time.monotonic() < until:
        for port in ports:
            asked = time.time()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                status, found = post(connection, "/v1/deletions", body)
            except (OSError, http.client.HTTPException):
                tries.append("no connection")
                continue
            if status != 201:
                tries.append(str(found.get("code", status)))
                continue
            receipt = found["receipt"]
            ack = Ack(
                request,
                receipt["view"],
                asked,
                time.time(),
                receipt["accepted_at"],
                receipt["effective_at"],
            )
            acks.add(ack)
            return ack, tries
        time.sleep(0.2)
    return None, tries

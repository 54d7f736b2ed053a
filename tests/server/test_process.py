"""``s3t serve`` as a process: its one line, its signals, its log."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from s3t.run import RunDir
from s3t.server.security.tokens import TokenFile
from tests.conftest import ROOT, Run

ROWS = json.dumps({"rows": ["what a day"]})


class Process:
    """A service of its own."""

    def __init__(self, run: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s3t", "serve", str(run), "--port", "0", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.port = int(self.line.rpartition(":")[2] or 0)

    def ask(self, method: str, path: str, body: str = "", token: str = "") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code, and what it said besides its line."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextmanager
def process(run: Path, *words: str) -> Iterator[Process]:
    found = Process(run, *words)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


@pytest.mark.heavy
def test_one_line_then_answers_and_an_end_without_losing_any(small_run: RunDir) -> None:
    tokens = TokenFile(small_run.root / "tokens.json")
    words = ["serve.lease=1", "serve.batch_wait=1.5", "--json-logs"]
    with process(small_run.root, *words) as service:
        assert service.line == f"{small_run.root} at http://127.0.0.1:{service.port}\n"
        assert service.ask("GET", "/readyz") == (200, {"status": "ok"})
        assert service.ask("POST", "/v1/predict", ROWS)[0] == 401
        token, _ = tokens.create("all", ["predict", "delete"])
        service.process.send_signal(signal.SIGHUP)  # tokens are looked at again
        until_status(service, token)
        body = json.dumps({"sample_ids": ["s000"], "subject_request_id": "secret-request"})
        assert service.ask("POST", "/v1/deletions", body, token)[0] == 201
        with small_run.ledger() as ledger:
            assert len(ledger.replicas.all()) == 1
        answers: list[Any] = []
        asks = threading.Thread(
            target=lambda: answers.append(service.ask("POST", "/v1/predict", ROWS, token))
        )
        asks.start()
        time.sleep(0.5)  # it waits for others to share its pass
        code, out, err = service.end()
        asks.join(10)
    assert (code, out) == (0, "")
    assert answers[0][0] == 200 and answers[0][1]["view"] == 1
    with small_run.ledger() as ledger:
        assert not ledger.replicas.all()
    lines = [json.loads(line) for line in err.splitlines()]
    deletion = next(line for line in lines if line.get("route") == "/v1/deletions")
    assert (deletion["method"], deletion["status"]) == ("POST", 201)
    assert not any(said in err for said in ("s000", "secret", token, "what a day", "127.0.0.1"))


def until_status(service: Process, token: str, status: int = 200) -> None:
    end = time.monotonic() + 20
    while service.ask("POST", "/v1/predict", ROWS, token)[0] != status:
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.heavy
def test_what_takes_too_long_does_not_keep_it(small_run: RunDir) -> None:
    words = ["serve.drain=1", "serve.batch_wait=20", "--insecure"]
    with process(small_run.root, *words) as service:
        body = ROWS.encode()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", service.port)) as channel:
            channel.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            time.sleep(0.5)
            started = time.monotonic()
            code, _, err = service.end()
            assert time.monotonic() - started < 10
    assert code == 0 and "Traceback" not in err


def test_what_cannot_be_served_is_told_before_the_model_is_loaded(
    small_run: RunDir, s3t: Run
) -> None:
    root = small_run.root
    for words, said in (
        (["--insecure", "--host", "0.0.0.0"], "takes a loopback address, and 0.0.0.0 is none"),
        (["--host", "no.such.host.invalid"], "has no address"),
        (["serve.batch_row=3"], "did you mean 'serve.batch_rows'"),
        (["partition.slices=3"], "only the section serve can change"),
        (["serve.port=99999"], "serve.port"),
    ):
        done = s3t("serve", root, *words)
        assert done.code == 2 and said in done.err and not done.out
    done = s3t("serve", root / "nothing")
    assert done.code == 2 and not done.out


@pytest.mark.heavy
def test_a_port_that_is_taken_is_told(small_run: RunDir, s3t: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = s3t("serve", small_run.root, "--insecure", "--port", taken.getsockname()[1])
    assert done.code == 2 and "cannot be bound" in done.err
    with small_run.ledger() as ledger:
        assert not ledger.replicas.all()

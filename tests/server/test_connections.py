"""Who is let in when there is no room: probes and deletions always, half-open connections last."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from s3t.errors import InputError
from s3t.run import RunDir
from s3t.server import process as running
from s3t.server.http.connections import Connections
from s3t.server.metrics import Metrics
from tests.conftest import ROOT
from tests.server.test_connection import BODY, call, code, everything, listening, question
from tests.support.fake import Gate, Model, config
from tests.support.waiting import until

PROXY = "10.0.0.0/8"


class Client:
    """A connection that only knows whether it was cut."""

    def __init__(self) -> None:
        self.is_cut = False

    def cut(self) -> None:
        self.is_cut = True


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


@pytest.fixture
def room(model: Model) -> Connections:
    return Connections(4, 2, [PROXY, "fd00::/16"], Metrics(model))


def enter(room: Connections, address: str) -> tuple[Client, bool]:
    client = Client()
    return client, room.enter(client, address)


def test_who_has_waited_longest_leaves_for_who_comes(room: Connections) -> None:
    clients = [enter(room, f"192.0.2.{number}")[0] for number in range(4)]
    room.work(clients[0])
    room.work(clients[1])
    room.wait(clients[1])  # it has its answer, and waits since then alone
    assert enter(room, "192.0.2.9")[1]
    assert [one.is_cut for one in clients] == [False, False, True, False]


def test_who_is_at_work_never_leaves(room: Connections) -> None:
    clients = [enter(room, f"192.0.2.{number}")[0] for number in range(4)]
    for client in clients:
        room.work(client)
    assert enter(room, "192.0.2.9")[1] is False
    room.leave(clients[0])
    assert enter(room, "192.0.2.9")[1] is True
    assert not any(one.is_cut for one in clients)


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::2", "2001:db8::ffff"),
    ],
)
def test_one_address_takes_only_its_own_places(
    room: Connections, first: str, second: str, third: str
) -> None:
    other = enter(room, "198.51.100.1")[0]
    one, two = enter(room, first)[0], enter(room, second)[0]
    assert enter(room, third)[1]
    assert (other.is_cut, one.is_cut, two.is_cut) == (False, True, False)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"])
def test_a_trusted_proxy_takes_as_many_as_there_are(room: Connections, address: str) -> None:
    clients = [enter(room, address)[0] for _ in range(4)]
    assert not any(one.is_cut for one in clients)


def test_who_leaves_takes_nothing_along(room: Connections, model: Model) -> None:
    for _ in range(20):
        client, good = enter(room, "192.0.2.1")
        assert good
        room.leave(client)
        room.leave(client)  # told by the transport as well
        room.wait(client)  # an answer that ends after its connection
    assert room._networks == {} and room._waiting == {} and room._by_network == {}


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy", "10.0.0.0/33", ""])
def test_a_proxy_that_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        config(trusted_proxies=[text])


def test_as_many_connections_as_there_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.os, "listdir", lambda _: ["0", "1", "2", *"abcdefg"])
    for limits, places in (
        ((100, 100), None),
        ((65536, 65536), 4096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 4096),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        found = running._connection_limit(config())
        assert found == places if places else 8 <= found < 50
    monkeypatch.setattr(resource, "getrlimit", lambda _: (24, 24))
    with pytest.raises(InputError, match="ulimit -n 24 leaves room for"):
        running._connection_limit(config())


# ── over real connections ────────────────────────────────────────────────────────────────────


def test_questions_leave_places_for_deletions_and_these_for_probes(model: Model) -> None:
    model.before = gate = Gate()
    ids = json.dumps({"sample_ids": ["a"], "dry_run": True}).encode()
    holds = Gate()

    def deactivate(*_: Any, **__: Any) -> Any:
        holds()
        raise InputError("nothing of that name")

    model.deactivate = deactivate  # type: ignore[attr-defined]
    with listening(model, connections=16) as port, ExitStack() as stack:
        asking = [stack.enter_context(call(port)) for _ in range(12)]
        for channel in asking:
            channel.sendall(question())
        until(lambda: answered(port, question(), "/v1/predict") == "overloaded")
        assert answered(port, get("/v1/traffic")) == "overloaded"
        deleting = [stack.enter_context(call(port)) for _ in range(2)]
        for channel in deleting:
            channel.sendall(question(ids, "/v1/deletions"))
        until(holds.reached.is_set)
        until(lambda: answered(port, question(ids, "/v1/deletions")) == "overloaded")
        assert b'"ok"' in told(port, get("/readyz"))
        assert b"s3t_connections" in told(port, get("/metrics"))
        gate.open()
        holds.open()
        for channel in asking:
            assert channel.recv(65536).startswith(b"HTTP/1.1 200")
        until(lambda: ask(port, "POST", "/v1/predict", {"rows": ["a"]})[0] == 200)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def told(port: int, request: bytes) -> bytes:
    with call(port) as channel:
        channel.sendall(request)
        channel.settimeout(0.3 if b"close" not in request else 10)
        try:
            return everything(channel)
        except TimeoutError:
            return b""


def answered(port: int, request: bytes, path: str = "") -> str:
    answer = told(port, request)
    return code(answer) if answer.startswith(b"HTTP/1.1 503") else ""


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
def test_half_sent_requests_take_no_place(model: Model, part: str) -> None:
    sent = {"nothing": b"", "head": question()[:30], "body": question()[:-1]}[part]
    with listening(model, connections=8) as port, ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(call(port)).sendall(sent)
        with call(port) as channel:
            channel.sendall(question())
            assert channel.recv(65536).startswith(b"HTTP/1.1 200")
        assert b'"ok"' in told(port, get("/healthz"))


def test_an_answer_before_the_body_leaves_no_place_taken(model: Model) -> None:
    """A refused head whose body comes later is idle again, and leaves for others."""
    with listening(model, connections=8) as port, ExitStack() as stack:
        kept = [stack.enter_context(call(port)) for _ in range(8)]
        for channel in kept:
            head, body = question(BODY, "/v1/nothing"), BODY
            channel.sendall(head[: -len(body)])
            assert channel.recv(65536).startswith(b"HTTP/1.1 404")
            channel.sendall(body)
        time.sleep(0.2)
        for _ in range(9):
            assert b'"ok"' in told(port, get("/healthz"))


# ── a process ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def process(run: Path, files: int, *words: str) -> Iterator[int]:
    """``s3t serve`` under ``ulimit -n``; its port."""
    command = [sys.executable, "-m", "s3t", "serve", str(run), "--port", "0", "--insecure", *words]
    started = subprocess.Popen(
        ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        yield int(started.stdout.readline().rpartition(":")[2])
        started.send_signal(signal.SIGTERM)
        _, err = started.communicate(timeout=30)
        assert started.returncode == 0 and "Traceback" not in err and "unexpected" not in err, err
    finally:
        started.kill()
        started.communicate()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, float]:
    """The status, and after how many seconds."""
    begun = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    text = "" if body is None else json.dumps(body)
    connection.request(method, path, text, {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status, time.monotonic() - begun


@pytest.mark.heavy
@pytest.mark.parametrize("part", ["head", "body"])
def test_half_sent_requests_under_few_files_keep_nobody_out(small_run: RunDir, part: str) -> None:
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    sent = head if part == "head" else f"{head}Content-Type: application/json\r\n\r\n{{"
    words = "serve.head_timeout=3", "serve.timeout=3"
    with process(small_run.root, 100, *words) as port, ExitStack() as stack:
        channels = [stack.enter_context(call(port)) for _ in range(150)]
        for channel in channels:
            with suppress(ConnectionError):  # one of the first has had to leave already
                channel.sendall(sent.encode())
        for method, path, body, status in (
            ("GET", "/readyz", None, 200),
            ("GET", "/healthz", None, 200),
            ("GET", "/metrics", None, 200),
            ("POST", "/v1/deletions", {"sample_ids": ["s000"]}, 201),
        ):
            found, seconds = ask(port, method, path, body)
            assert found == status and seconds < 2, (path, found, seconds)
        begun = time.monotonic()
        for channel in channels:
            with suppress(ConnectionError):
                everything(channel)  # until the server hangs up
        assert time.monotonic() - begun < 8


@pytest.mark.heavy
def test_predictions_under_few_files_keep_no_deletion_out(small_run: RunDir) -> None:
    rows = {"rows": ["what a day"]}
    with process(small_run.root, 100, "serve.batch_wait=8", "serve.timeout=20") as port:
        found: list[int] = []
        asking = [
            threading.Thread(target=lambda: found.append(ask(port, "POST", "/v1/predict", rows)[0]))
            for _ in range(60)
        ]
        for thread in asking:
            thread.start()
        until(lambda: len(found) > 20)
        assert set(found) == {503}
        for method, path, body, status in (
            ("GET", "/readyz", None, 200),
            ("POST", "/v1/deletions", {"sample_ids": ["s000"]}, 201),
        ):
            said, seconds = ask(port, method, path, body)
            assert said == status and seconds < 2, (path, said, seconds)
        for thread in asking:
            thread.join(30)
        assert found.count(200) > 10

"""Connections over real sockets: slow clients, long heads, clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from s3t.server.app import create_app
from s3t.server.http.connection import HEAD_BYTES, connection_class
from s3t.server.http.connections import Connections
from tests.support.fake import Gate, Model, config
from tests.support.waiting import until

BODY = b'{"rows": ["a"]}'
SECONDS = 0.2
"""How long an impatient service waits for the rest of a request, and for the next one."""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


@contextmanager
def listening(model: Model, seconds: float = 10.0, **serve: object) -> Iterator[int]:
    """The app on a port, by uvicorn in a thread."""
    values = config(**serve)
    app = create_app(model, values, insecure=True)
    room = Connections(
        values.connections,
        values.address_connections,
        values.trusted_proxies,
        app.state.service.metrics,
    )
    line = connection_class(seconds, seconds, room)
    settings = uvicorn.Config(
        app, http=line, access_log=False, log_config=None, port=0, lifespan="on"
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def port(model: Model) -> Iterator[int]:
    with listening(model) as port:
        yield port


@pytest.fixture
def impatient(model: Model) -> Iterator[int]:
    with listening(model, SECONDS) as port:
        yield port


def call(port: int, receive_bytes: int | None = None) -> socket.socket:
    channel = socket.socket()
    if receive_bytes is not None:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    channel.settimeout(10)
    channel.connect(("127.0.0.1", port))
    return channel


def question(body: bytes = BODY, path: str = "/v1/predict") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def everything(channel: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    found = b""
    while data := channel.recv(65536):
        found += data
    return found


def code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["code"])


def test_head_and_body_of_an_answer_are_one_packet(port: int) -> None:
    with call(port) as channel:
        for _ in range(3):  # on one connection
            channel.sendall(question())
            answer = channel.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["view"] == 0


def test_answers_without_a_body_leave_too(port: int) -> None:
    with call(port) as channel:
        channel.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert channel.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_requests_sent_at_once_are_answered_in_turn(port: int) -> None:
    with call(port) as channel:
        channel.sendall(question() + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b""
        while b'"ok"' not in found:
            found += channel.recv(65536)
    assert found.index(b"predictions") < found.index(b'"ok"')


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        (b"head", b"POST /v1/pre"),
        (b"head", b"POST /v1/predict HTTP/1.1\r\nHost: loc"),
        (b"body", question()[:-1]),
        (
            b"body",
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"r\r\n',
        ),
    ],
    ids=["address", "head", "body", "chunks"],
)
def test_a_request_that_does_not_arrive_is_not_waited_for(
    impatient: int, model: Model, part: bytes, sent: bytes
) -> None:
    with call(impatient) as channel:
        started = time.monotonic()
        channel.sendall(sent)
        answer = everything(channel)
        assert SECONDS * 0.9 < time.monotonic() - started < SECONDS + 5
    assert answer.startswith(b"HTTP/1.1 408 ") and code(answer) == "slow_request"
    assert b"the " + part + b" of a request" in answer
    assert not model.passes


def test_a_connection_without_a_question_is_closed_without_an_answer(impatient: int) -> None:
    with call(impatient) as channel:
        assert everything(channel) == b""


def test_a_body_that_comes_byte_by_byte_is_not_waited_for_either(impatient: int) -> None:
    with call(impatient) as channel:
        channel.sendall(question(b" " * 1000 + BODY)[:-1000])
        with pytest.raises(OSError):
            for _ in range(100):
                channel.sendall(b" ")
                time.sleep(0.05)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * HEAD_BYTES,
        b"GET / HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEAD_BYTES,
    ],
    ids=["address", "header", "headers"],
)
def test_a_head_that_does_not_end_is_refused(impatient: int, head: bytes) -> None:
    with call(impatient) as channel:
        try:
            channel.sendall(head + b"\r\n")
            answer = everything(channel)
        except ConnectionError:
            return  # it hung up while we were still sending
    assert answer.startswith(b"HTTP/1.1 4")


def test_what_is_no_http_is_hung_up_on(port: int) -> None:
    with call(port) as channel:
        channel.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert everything(channel).startswith(b"HTTP/1.1 400 ")


def test_rows_of_a_client_that_hangs_up_are_not_computed(model: Model) -> None:
    model.before = gate = Gate()
    with listening(model) as port, call(port) as first:
        first.sendall(question())
        until(gate.reached.is_set)
        left = call(port)
        left.sendall(question(b'{"rows": ["left"]}'))
        time.sleep(0.1)
        left.close()
        time.sleep(0.1)
        gate.open()
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        with call(port) as other:
            other.sendall(question())
            assert other.recv(65536).startswith(b"HTTP/1.1 200")
    assert ["left"] not in model.passes


def test_a_client_that_takes_nothing_is_cut_off_and_holds_up_nobody(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3t.server.http.held_response.SECONDS", 0.3)
    large = json.dumps({"rows": ["a"] * 200}).encode()
    letting_go = threading.Event()

    class Watched(Model):
        @contextmanager
        def hold(self, view: int) -> Iterator[bool]:
            try:
                yield True
            finally:
                letting_go.set()

    watched = Watched(model.root)
    with listening(watched, body_bytes=2**24) as port:
        # so that an answer fits into no buffer on the way
        watched.predict = lambda batch: [  # type: ignore[method-assign]
            type("A", (), {"label": "x" * 50_000, "probabilities": {}, "view": 0})() for _ in batch
        ]
        with call(port, receive_bytes=4096) as slow:
            started = time.monotonic()
            slow.sendall(question(large))
            assert letting_go.wait(10)
            assert time.monotonic() - started < 5
            with pytest.raises(OSError):  # cut, not merely ended: half an answer is none
                everything(slow)
        with call(port) as other:
            other.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (
                f's3t_answers_cut_total{{run="{watched.run_id}"}} 1.0' in other.recv(2**20).decode()
            )


def test_cutting_twice_is_harmless() -> None:
    async def twice() -> None:
        from s3t.server.http.held_response import cut

        await cut({"type": "http"})
        await cut({"type": "http", "extensions": {}})

    asyncio.run(twice())


def test_a_request_cut_short_is_not_answered_in_the_place_of_the_one_before(model: Model) -> None:
    model.before = gate = Gate()
    with listening(model, SECONDS) as port, call(port) as channel:
        channel.sendall(question() + b"GET /healthz HT")
        try:
            found = everything(channel)
        except ConnectionError:
            found = b""
        gate.open()
    assert b"slow_request" not in found


def test_a_second_request_that_does_not_arrive_is_told(impatient: int) -> None:
    with call(impatient) as channel:
        channel.sendall(question())
        assert channel.recv(65536).startswith(b"HTTP/1.1 200")
        channel.sendall(b"GET /healthz HT")
        assert code(everything(channel)) == "slow_request"

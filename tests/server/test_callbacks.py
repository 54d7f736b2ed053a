"""Callbacks: only to whom the config names, at addresses that were judged, signed, and durably."""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from s3t.errors import UnavailableError
from s3t.ledger import Ledger, Outbox, Signer, host_claim
from s3t.ledger.log import chain
from s3t.server import worker
from s3t.server.deletions import callbacks
from s3t.server.deletions.callbacks import Callbacks, Destination, Hosts, Seal
from s3t.server.http.problems import Problem
from tests.support.receiver import Receiver
from tests.support.waiting import until

TOLD = {"subject_request_id": "r1", "request_status": "completed"}


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(key)
    return Signer(tmp_path / "key.pem")


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Ledger.open(tmp_path / "ledger.db", create=True) as ledger:
        yield ledger.outbox


@pytest.fixture
def make(outbox: Outbox, signer: Signer) -> Iterator[Callable[..., Callbacks]]:
    made: list[Callbacks] = []

    def callbacks_of(*hosts: str, told: Any = lambda _: TOLD, **more: Any) -> Callbacks:
        given = Hosts(hosts, insecure=True)
        seal = Seal(signer, "forget.example")
        made.append(Callbacks(outbox, given, seal, told, first=0.02, **more))
        return made[-1]

    yield callbacks_of
    for one in made:
        one.close()


def left(outbox: Outbox) -> int:
    return outbox.counts()["callbacks"]


# ── which URLs ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        "https://privacy.example/done",
        "https://privacy.example:443/",
        "https://PRIVACY.example",
        "https://privacy.example/a?b=c",
        "https://other.example:8443/x",
        "http://127.0.0.1:9000/x",
    ],
)
def test_named_hosts_may_be_called(url: str) -> None:
    hosts = Hosts(["privacy.example", "other.example:8443", "127.0.0.1:9000"], insecure=True)
    assert isinstance(hosts.target(url), Destination)


@pytest.mark.parametrize(
    "url",
    [
        "http://privacy.example/",
        "https://evil.example/",
        "https://privacy.example.evil.example/",
        "https://evil.example/privacy.example",
        "https://evil.example#privacy.example",
        "https://evil.example?privacy.example",
        "https://privacy.example@evil.example/",
        "https://user:word@privacy.example/",
        "https://privacy.example:8443/",
        "https://privacy.example:x/",
        "https://privacy.example:99999/",
        "https://privacy.example\\@evil.example/",
        "https://privacy.example/\r\nHost: evil.example",
        "https://privacy.example/ x",
        "https://privacy.example/#x",
        "https://prıvacy.example/",
        "https://privacy.example.",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "file:///etc/passwd",
        "gopher://privacy.example/",
        "//privacy.example/",
        "privacy.example",
        "https://",
        "https://[",
        "",
    ],
)
def test_all_others_may_not(url: str) -> None:
    with pytest.raises(Problem) as refused:
        Hosts(["privacy.example"], insecure=True).target(url)
    assert refused.value.code == "invalid_body"


def test_http_is_for_loopback_and_insecure_services() -> None:
    url = "http://127.0.0.1:9000/"
    Hosts(["127.0.0.1:9000"], insecure=True).target(url)
    with pytest.raises(Problem, match="invalid_body"):
        Hosts(["127.0.0.1:9000"]).target(url)
    with pytest.raises(Problem, match="invalid_body"):
        Hosts(["192.0.2.1:9000"], insecure=True).target("http://192.0.2.1:9000/")


PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%eth0",
    "fd00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
]


def resolved(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 443)) for one in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_named_host_at_a_private_address_is_not_called(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(["privacy.example"])
    resolved(monkeypatch, address)
    with pytest.raises(OSError, match="no address"):
        hosts.address(hosts.target("https://privacy.example/"))


def test_of_several_addresses_a_public_or_listed_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved(monkeypatch, "10.0.0.1", "10.0.0.2", "93.184.216.34")
    url = "https://privacy.example/"
    public = Hosts(["privacy.example"])
    assert public.address(public.target(url)) == "93.184.216.34"
    inside = Hosts(["privacy.example", "10.0.0.2"])
    assert inside.address(inside.target(url)) == "10.0.0.2"


def test_the_address_that_was_judged_is_the_one_that_is_called(
    make: Callable[..., Callbacks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is turned to loopback after the look leads nowhere: it is looked up once."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, **_: [(socket.AF_INET, 1, 6, "", (one, port)) for one in next(answers)],
    )
    reached: list[Any] = []

    def connect(address: Any, *_: Any) -> socket.socket:
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    made = make("privacy.example")
    with pytest.raises(ConnectionRefusedError):
        made._post(Hosts(["privacy.example"]).target("https://privacy.example/"), b"{}")
    assert reached == [("93.184.216.34", 443)]


# ── telling ──────────────────────────────────────────────────────────────────────────────────


def test_a_callback_is_signed_and_then_forgotten(
    make: Callable[..., Callbacks], receiver: Receiver, signer: Signer, outbox: Outbox
) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/done?x=1"
    made = make(f"127.0.0.1:{receiver.server_port}")
    made.check([url])
    made.start()
    made.put("r1", [url])
    until(lambda: bool(receiver.got) and not left(outbox))
    path, headers, body = receiver.got[0]
    assert path == "/done?x=1" and json.loads(body) == {**TOLD, "status_callback_url": url}
    assert headers["X-OpenDSR-Processor-Domain"] == "forget.example"
    assert headers["Host"] == f"127.0.0.1:{receiver.server_port}"
    signature = base64.b64decode(headers["X-OpenDSR-Signature"], validate=True)
    assert signer.verifier().holds(body.decode(), signature.hex())
    assert not signer.verifier().holds(body.decode() + " ", signature.hex())
    assert len(receiver.got) == 1


def test_it_is_tried_again_until_it_is_taken(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    receiver.status = 500
    made = make(f"127.0.0.1:{receiver.server_port}")
    made.start()
    made.put("r1", [f"http://127.0.0.1:{receiver.server_port}/"])
    until(lambda: len(receiver.got) >= 3)
    assert left(outbox)
    receiver.status = 200
    until(lambda: not left(outbox))


def test_one_that_is_killed_is_made_by_the_next_process(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    host = f"127.0.0.1:{receiver.server_port}"
    make(host).put("r1", [f"http://{host}/"])  # never started: killed before
    make(host).start()
    until(lambda: len(receiver.got) == 1 and not left(outbox))


def test_no_redirect_is_followed(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    inside = Receiver()
    receiver.status = 307
    receiver.headers = {"Location": f"http://127.0.0.1:{inside.server_port}/admin"}
    made = make(f"127.0.0.1:{receiver.server_port}")
    made.start()
    made.put("r1", [f"http://127.0.0.1:{receiver.server_port}/"])
    until(lambda: len(receiver.got) >= 2)
    assert inside.got == [] and left(outbox)
    inside.shutdown()
    inside.server_close()


def test_nothing_is_told_before_it_has_ended(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    answers: list[Any] = [None, UnavailableError("not now"), None, TOLD]

    def told(_: str) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = make(f"127.0.0.1:{receiver.server_port}", told=told)
    made.start()
    made.put("r1", [f"http://127.0.0.1:{receiver.server_port}/"])
    until(lambda: not left(outbox))
    assert len(answers) == 1 and len(receiver.got) == 1


def test_a_dead_host_holds_up_no_other(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
    alive = f"127.0.0.1:{receiver.server_port}"
    made = make(alive, dead)
    made.start()
    made.put("r1", [f"http://{dead}/", f"http://{alive}/"])
    until(lambda: len(receiver.got) == 1)
    until(lambda: outbox.hosts() == [dead])


def test_of_several_replicas_one_tells_a_host_in_the_order_of_what_ended(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    host = f"127.0.0.1:{receiver.server_port}"
    many = [make(host, told=lambda one: {**TOLD, "subject_request_id": one}) for _ in range(3)]
    for number in range(10):
        many[number % 3].put(f"r{number}", [f"http://{host}/"])
    for one in many:
        one.start()
    for number in range(10, 20):
        many[number % 3].put(f"r{number}", [f"http://{host}/"])
    until(lambda: not left(outbox))
    got = [json.loads(body)["subject_request_id"] for _, _, body in receiver.got]
    assert got == [f"r{number}" for number in range(20)]


def test_what_a_host_has_not_taken_comes_before_what_ended_later(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    receiver.status = 503
    host = f"127.0.0.1:{receiver.server_port}"
    made = make(host, told=lambda one: {**TOLD, "subject_request_id": one})
    made.start()
    made.put("r1", [f"http://{host}/a"])
    until(lambda: len(receiver.got) >= 2)
    made.put("r2", [f"http://{host}/b"])
    until(lambda: len(receiver.got) >= 4)
    assert {path for path, _, _ in receiver.got} == {"/a"}
    receiver.status = 200
    until(lambda: not left(outbox))
    assert [path for path, _, _ in receiver.got][-2:] == ["/a", "/b"]


def test_a_silent_replica_loses_the_host_that_it_calls(
    make: Callable[..., Callbacks],
    receiver: Receiver,
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "LEASE", 0.3)
    host = f"127.0.0.1:{receiver.server_port}"
    made = make(host)
    made.put("r1", [f"http://{host}/"])
    assert outbox.take(host_claim(host), "killed")
    made.start()
    until(lambda: not left(outbox))
    assert len(receiver.got) == 1


def test_after_a_day_it_is_given_up(
    make: Callable[..., Callbacks],
    receiver: Receiver,
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.status = 404
    past = datetime.now(UTC) - timedelta(days=1, minutes=1)
    monkeypatch.setattr(chain, "now", lambda: past.isoformat(timespec="milliseconds"))
    made = make(f"127.0.0.1:{receiver.server_port}")
    made.start()
    made.put("r1", [f"http://127.0.0.1:{receiver.server_port}/?secret=1"])
    until(lambda: not left(outbox))
    until(lambda: "given up" in caplog.text)
    assert "secret" not in caplog.text and "r1" not in caplog.text


def test_a_peer_that_drips_is_cut_off(
    make: Callable[..., Callbacks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "_WHOLE", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        link, _ = listener.accept()
        with link, listener:
            try:
                while True:
                    link.sendall(b"H")
                    time.sleep(0.02)
            except OSError:
                pass

    threading.Thread(target=drip, daemon=True).start()
    port = listener.getsockname()[1]
    made = make(f"127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises((OSError, callbacks.http.client.HTTPException)):
        made._post(Hosts([f"127.0.0.1:{port}"], True).target(f"http://127.0.0.1:{port}/"), b"{}")
    assert time.monotonic() - started < 3


def test_without_a_key_callbacks_are_refused(outbox: Outbox) -> None:
    unsigned = Callbacks(outbox, Hosts(["privacy.example"]), Seal(None, "x"), lambda _: TOLD)
    with pytest.raises(Problem) as refused:
        unsigned.check(["https://privacy.example/"])
    assert "signing_key" in refused.value.detail
    unsigned.check([])


def test_a_replica_without_the_key_leaves_callbacks_to_others(
    make: Callable[..., Callbacks], receiver: Receiver, outbox: Outbox
) -> None:
    host = f"127.0.0.1:{receiver.server_port}"
    unsigned = Callbacks(outbox, Hosts([host], True), Seal(None, "x"), lambda _: TOLD, first=0.02)
    unsigned.put("r1", [f"http://{host}/"])
    unsigned.start()
    time.sleep(0.2)
    assert not receiver.got and left(outbox) == 1
    make(host).start()
    until(lambda: not left(outbox))
    unsigned.close()
    assert len(receiver.got) == 1 and "X-OpenDSR-Signature" in receiver.got[0][1]


# ── certificates ─────────────────────────────────────────────────────────────────────────────


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with a certificate of its own, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "both.pem").write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


@pytest.mark.parametrize(
    ("name", "trusted", "taken"),
    [("127.0.0.1", True, True), ("other.example", True, False), ("127.0.0.1", False, False)],
)
def test_https_is_for_hosts_that_prove_their_name(
    make: Callable[..., Callbacks], tmp_path: Path, name: str, trusted: bool, taken: bool
) -> None:
    server, client = certificate(tmp_path, name)
    receiver = Receiver(server)
    host = f"127.0.0.1:{receiver.server_port}"
    made = make(host, trust=client if trusted else ssl.create_default_context())
    target = Hosts([host]).target(f"https://{host}/x")
    if taken:
        assert made._post(target, b"{}") == 202
    else:
        with pytest.raises(ssl.SSLError):
            made._post(target, b"{}")
    assert len(receiver.got) == taken
    receiver.shutdown()
    receiver.server_close()

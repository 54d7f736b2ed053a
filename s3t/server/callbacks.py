"""Telling others about deletions: signed, durably, and to nobody but whom the config names.

    a deletion has ended ─► RUN/jobs/callbacks/… ─► effective? ─► POST to each URL ─► 2xx: forgotten
                                                      again, later and later, for a day ◄─┘ else

Invariants: a URL is called only if its host stands in ``serve.callback_hosts``, and only at an
address that is public or stands there itself; the address that was judged is the one that is
connected to, so a name that is turned elsewhere in between leads nowhere. No redirect is followed.
What is sent and what lies here holds no id of a sample or subject.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from s3t.errors import S3TError
from s3t.ledger import Signer
from s3t.server.problems import Problem
from s3t.server.spool import Spool

__all__ = ["Callbacks", "Delivery", "Hosts", "Seal", "Target"]

_log = logging.getLogger(__name__)

_DAY = timedelta(days=1)
"""How long a callback is tried."""
_CONNECT, _WHOLE = 5.0, 15.0
"""Seconds for a connection, and for all of a call."""
_FIRST, _LAST = 2.0, 3600.0
"""Seconds between two attempts: the first pause, doubled until the last."""
_LOOK = 1.0
"""Seconds between two looks at what is to be told."""

_WRAPPED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32")))
"""IPv6 addresses that lead to an IPv4 address, which could be any (NAT64, 6to4, Teredo)."""

Told = Mapping[str, Any] | None
"""What is told of a deletion, or None while it has not ended."""


class Target(NamedTuple):
    """Where a URL leads."""

    secure: bool
    host: str
    port: int
    path: str


class Hosts:
    """Which URLs may be called back.

    Args:
        listed: hosts, each with the port if it is not that of https; a private address that one
            of them leads to has to be listed as well.
        insecure: http may be used to loopback addresses.
    """

    def __init__(self, listed: Sequence[str], insecure: bool = False) -> None:
        self._listed, self._insecure = frozenset(host.lower() for host in listed), insecure

    def target(self, url: str) -> Target:
        """Where a URL leads.

        Raises:
            Problem: it must not be called; nothing was looked up for that.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise _refused("is no URL") from None
        secure = parts.scheme == "https"
        if not secure and not (parts.scheme == "http" and self._insecure and _is_loopback(host)):
            raise _refused("must begin with https://")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise _refused("must hold neither a user nor a fragment")
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise _refused("must be written in printable ASCII")
        usual = 443 if secure else 80
        shown = f"[{host}]" if ":" in host else host
        names = {f"{shown}:{port or usual}"} | ({shown} if port in (None, usual) else set())
        if not host or not names & self._listed:
            raise _refused("is of a host that serve.callback_hosts does not name")
        path = parts.path or "/"
        return Target(
            secure, host, port or usual, path + (f"?{parts.query}" if parts.query else "")
        )

    def address(self, target: Target) -> str:
        """An address of the target that may be connected to.

        Raises:
            OSError: there is none.
        """
        for *_, place in socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM):
            address = str(place[0])
            if self._may(address):
                return address
        raise OSError("no address of it may be connected to")

    def _may(self, address: str) -> bool:
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        shown = f"[{found}]" if found.version == 6 else str(found)
        if any(one == shown or one.startswith(f"{shown}:") for one in self._listed):
            return True
        wrapped = any(found in network for network in _WRAPPED if network.version == found.version)
        return found.is_global and not found.is_multicast and not wrapped


class Seal:
    """Signs what is sent, as OpenDSR's headers have it (with Ed25519 over the body).

    Args:
        signer: of ``receipts.signing_key``; None if there is none.
        domain: of the processor.
    """

    def __init__(self, signer: Signer | None, domain: str) -> None:
        self.domain, self._signer = domain, signer

    @property
    def signs(self) -> bool:
        """Whether there is a key."""
        return self._signer is not None

    def headers(self, body: bytes) -> dict[str, str]:
        """The headers for a body; none without a key."""
        if self._signer is None:
            return {}
        signature = bytes.fromhex(self._signer.sign(body.decode()))
        return {
            "X-OpenDSR-Processor-Domain": self.domain,
            "X-OpenDSR-Signature": base64.b64encode(signature).decode(),
        }


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is still to be told of one deletion.

    Attributes:
        request_id: of the deletion.
        urls: that have not taken it yet.
        since: when it was put down, ISO 8601 in UTC.
    """

    request_id: str
    urls: tuple[str, ...]
    since: str


class Callbacks:
    """The callbacks of a run, and the thread that makes them.

    Args:
        spool: where they lie until they are made.
        hosts: which may be called.
        seal: signs them.
        told: gives what is told of a request; None while it has not ended.
        first: seconds before the second attempt.
        trust: certificates of the hosts; default: the system's.
    """

    def __init__(
        self,
        spool: Spool,
        hosts: Hosts,
        seal: Seal,
        told: Callable[[str], Told],
        first: float = _FIRST,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._spool, self._hosts, self._seal, self._told = spool, hosts, seal, told
        self._first, self._trust = first, trust
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="s3t-callbacks", daemon=True)
        self._pauses: dict[str, tuple[float, float]] = {}  # host → the pause, and its end

    def start(self) -> None:
        """Begin, with what an earlier process has left."""
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Finish the call under way; what waits is left to the next start."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._spool.leave()

    def check(self, urls: Sequence[str]) -> None:
        """Refuse what could not be called, before anything is done.

        Raises:
            Problem: ``invalid_body``.
        """
        if urls and not self._seal.signs:
            raise Problem(
                "invalid_body",
                "status_callback_urls: callbacks are signed, and the run has no "
                "receipts.signing_key",
            )
        for url in urls:
            self._hosts.target(url)

    def put(self, request_id: str, urls: Sequence[str]) -> None:
        """Have a deletion told, durably. More URLs for the same one are added.

        Raises:
            OSError: it cannot be written down.
        """
        if not urls:
            return
        with self._spool.alone():
            held = self._spool.get(request_id)
            before = () if held is None else tuple(held["urls"])
            urls = tuple(dict.fromkeys([*before, *urls]))
            self._spool.put(request_id, asdict(Delivery(request_id, urls, _now())))
        self._wake.set()

    # ── the thread ───────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while not self._ending:
            try:
                for document in self._spool.oldest(_log.error) if self._spool.hold() else ():
                    urls = tuple(document["urls"])
                    self._deliver(Delivery(document["key"], urls, document["since"]))
            except Exception as error:  # such as a disk that is gone: it must go on after it
                _log.error("callbacks pause: %s", type(error).__name__)
            self._wake.wait(min(_LOOK, self._first))
            self._wake.clear()

    def _deliver(self, delivery: Delivery) -> None:
        """Try what is due of one deletion, and keep what is left of it."""
        try:
            told = self._told(delivery.request_id)
        except S3TError:
            return  # the ledger cannot be reached now
        if told is None:
            return
        left = tuple(url for url in delivery.urls if not self._call(url, told))
        if left == delivery.urls and datetime.now(UTC) - _parsed(delivery.since) <= _DAY:
            return
        with self._spool.alone():
            held = self._spool.get(delivery.request_id)
            more = () if held is None else tuple(u for u in held["urls"] if u not in delivery.urls)
            late = datetime.now(UTC) - _parsed(delivery.since) > _DAY
            if late and left:
                _log.error("%d callbacks were tried for a day, and are given up", len(left))
            kept = (() if late else left) + more
            if kept:
                self._spool.put(delivery.request_id, asdict(replace(delivery, urls=kept)))
            else:
                self._spool.remove(delivery.request_id)

    def _call(self, url: str, told: Mapping[str, Any]) -> bool:
        """Whether a URL has taken it. A host that has not is left in peace for a while."""
        host, now = urlsplit(url).netloc, time.monotonic()
        pause, end = self._pauses.get(host, (self._first / 2, now))
        if now < end or self._ending:
            return False
        body = json.dumps({**told, "status_callback_url": url}).encode()
        try:
            status = self._post(self._hosts.target(url), body)
            if 200 <= status < 300:
                self._pauses.pop(host, None)
                return True
            why = f"status {status}"
        except (OSError, http.client.HTTPException, Problem, ValueError) as error:
            why = type(error).__name__
        pause = min(_LAST, pause * 2)
        self._pauses[host] = pause, time.monotonic() + pause
        _log.warning("a callback was not taken (%s): again in %.0f s", why, pause)
        return False

    def _post(self, target: Target, body: bytes) -> int:
        """The status that a POST got."""
        address = self._hosts.address(target)
        link = socket.create_connection((address, target.port), _CONNECT)
        if target.secure:
            trust = self._trust or ssl.create_default_context()
            name = target.host
            link = trust.wrap_socket(link, server_hostname=name, do_handshake_on_connect=False)
        # a peer that sends a byte now and then must not keep the thread either
        guard = threading.Timer(_WHOLE, _cut, [link])
        guard.start()
        try:
            if isinstance(link, ssl.SSLSocket):
                link.do_handshake()
            connection = http.client.HTTPConnection(target.host, target.port, timeout=_CONNECT)
            connection.default_port = 443 if target.secure else 80  # so Host names others alone
            connection.sock = link
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "s3t",
                "Connection": "close",
            }
            connection.request("POST", target.path, body, headers | self._seal.headers(body))
            return connection.getresponse().status
        finally:
            guard.cancel()
            link.close()


def _cut(link: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        link.shutdown(socket.SHUT_RDWR)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(why: str) -> Problem:
    return Problem("invalid_body", f"status_callback_urls: a URL {why}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(moment: str) -> datetime:
    return datetime.fromisoformat(moment)

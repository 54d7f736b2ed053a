"""Callbacks: the hosts that the config names are told of deletions, signed and durably.

    a deletion has ended ─► the ledger's outbox ─► effective? ─► POST to each URL ─► 2xx: forgotten
                                                      again, later and later, for a day ◄─┘ else

Whichever replica has claimed a host tells it, at least once, in the order in which things ended.

Invariants: a URL is called only if its host stands in ``serve.callback_hosts``, and only at an
address that is public or stands there itself; the address that was judged is the one that is
connected to, so a name that is turned elsewhere in between leads nowhere. No redirect is followed.
What is sent and what lies in the outbox holds no id of a sample or subject.
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
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from s3t.errors import S3TError
from s3t.ledger import Callback, Outbox, Signer, host_claim
from s3t.server.http.problems import Problem
from s3t.server.worker import Worker

__all__ = ["Callbacks", "Destination", "Hosts", "Seal"]

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


class Destination(NamedTuple):
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

    def target(self, url: str) -> Destination:
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
        return Destination(
            secure, host, port or usual, path + (f"?{parts.query}" if parts.query else "")
        )

    def address(self, target: Destination) -> str:
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


class Callbacks:
    """The callbacks of a run, and the thread that makes them.

    Args:
        outbox: where they lie until they are made.
        hosts: which may be called.
        seal: signs them.
        told: gives what is told of a request; None while it has not ended.
        first: seconds before the second attempt.
        trust: certificates of the hosts; default: the system's.
    """

    def __init__(
        self,
        outbox: Outbox,
        hosts: Hosts,
        seal: Seal,
        told: Callable[[str], Told],
        first: float = _FIRST,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._outbox, self._hosts, self._seal, self._told = outbox, hosts, seal, told
        self._first, self._trust = first, trust
        self._worker = Worker("callbacks", outbox, self._work, min(_LOOK, first))
        self._pauses: dict[str, tuple[float, float]] = {}  # host → the pause, and its end

    def start(self) -> None:
        """Begin, with what earlier processes have left."""
        self._worker.start()

    def close(self, seconds: float | None = None) -> None:
        """Finish the call under way; what waits is left to other replicas and the next start."""
        self._worker.close(seconds)

    def wake(self) -> None:
        """Look now: there is something to tell."""
        self._worker.wake()

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
            UnavailableError: the ledger takes it not now.
        """
        if urls:
            self._outbox.tell(request_id, urls)
            self.wake()

    # ── the thread ───────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """Tell every host what it can be told now."""
        if not self._seal.signs:
            return  # a replica that has the key does it
        for host in self._outbox.hosts():
            if self._worker.ending or self._is_paused(host) or self._next(host) is None:
                continue
            with self._worker.claim(host_claim(host)) as claim:
                while claim is not None and claim.left > 0 and self._deliver(host):
                    pass

    def _next(self, host: str) -> tuple[Callback, Mapping[str, Any]] | None:
        """What a host is to be told next, and the words; None while there is nothing that has
        ended. What comes after it waits, so that a host hears of things in their order."""
        while (callback := self._outbox.callback(host)) is not None:
            try:
                told = self._told(callback.request_id)
            except S3TError:
                return None  # its records cannot be read now
            if told is not None:
                return callback, told
            if callback.since >= _yesterday():
                return None
            self._give_up(host)
        return None

    def _deliver(self, host: str) -> bool:
        """Tell a host one thing; whether it took it. If not it is left in peace for a while."""
        found = self._next(host)
        if found is None or self._worker.ending:
            return False
        callback, told = found
        body = json.dumps({**told, "status_callback_url": callback.url}).encode()
        try:
            status = self._post(self._hosts.target(callback.url), body)
            why = "" if 200 <= status < 300 else f"status {status}"
        except (OSError, http.client.HTTPException, Problem, ValueError) as error:
            why = type(error).__name__
        if not why:
            self._pauses.pop(host, None)
            self._outbox.told(callback)
            return True
        pause = min(_LAST, self._pauses.get(host, (self._first / 2, 0.0))[0] * 2)
        self._pauses[host] = pause, time.monotonic() + pause
        _log.warning("a callback was not taken (%s): again in %.0f s", why, pause)
        if callback.since < _yesterday():
            self._give_up(host)
        return False

    def _give_up(self, host: str) -> None:
        count = self._outbox.give_up(host, _yesterday())
        if count:
            _log.error("%d callbacks were tried for a day, and are given up", count)

    def _is_paused(self, host: str) -> bool:
        return time.monotonic() < self._pauses.get(host, (0.0, 0.0))[1]

    def _post(self, target: Destination, body: bytes) -> int:
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


def _yesterday() -> str:
    """Callbacks that were put down before this are given up, ISO 8601 in UTC."""
    return (datetime.now(UTC) - _DAY).isoformat(timespec="milliseconds")

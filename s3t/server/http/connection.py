"""A client's connection: uvicorn's HTTP protocol with limits of time and size.

    extension "s3t.connection" of the scope:  gone()   has the client disconnected?
                                              cut()    disconnect it, drop what it has not read

Invariants: the write buffer has a high-water mark of 0, so a second ``send`` returns only after the
bytes of the first have left this process. The head of a request has to arrive within
``head_seconds`` and ``HEAD_BYTES``, its body within ``seconds`` after that; uvicorn limits none of
these. How many connections may be open is decided in ``connections``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from s3t.server.http.connections import Connections
from s3t.server.http.held_response import CONNECTION
from s3t.server.http.problems import Problem

__all__ = ["HEAD_BYTES", "LimitedConnection", "connection_class"]

HEAD_BYTES = 2**15
"""Bytes that the request's address and headers may have together."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing discards what the client has not acknowledged."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's connection, with limits. ``connection_class`` sets its class attributes.

    Attributes:
        head_seconds: seconds within which the head of a request has to arrive.
        seconds: seconds within which the body has to arrive after that.
        connections_open: the open connections of this process.
    """

    head_seconds: float
    seconds: float
    connections_open: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio: a client has connected."""
        transport.set_write_buffer_limits(high=0)
        self._corked = _Corked(transport)
        super().connection_made(cast(asyncio.Transport, self._corked))
        self._head, self._begun = 0, False
        self._deadline: asyncio.TimerHandle | None = None
        if not self.connections_open.enter(self, self.client[0] if self.client else ""):
            self.cut()
            return
        self._await_request("head", self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection has ended."""
        self.connections_open.leave(self)
        self._cancel_deadline()
        super().connection_lost(exc)

    # ── for routes, through the scope ────────────────────────────────────────────────────────

    @property
    def is_full(self) -> bool:
        """Whether bytes that were written are still in this process."""
        return self.flow.write_paused

    def gone(self) -> bool:
        """Whether the client has disconnected."""
        return self.transport.is_closing()

    def cut(self) -> None:
        """Disconnect the client, and discard what it has not read."""
        channel = self.transport.get_extra_info("socket")
        if channel is not None and channel.family in (socket.AF_INET, socket.AF_INET6):
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # ── called by the parser ────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """The first byte of a request has arrived."""
        super().on_message_begin()
        self._head, self._begun = 0, True
        extended: dict[str, Any] = self.scope  # type: ignore[assignment]
        extended["extensions"] = {CONNECTION: self}
        self._await_request("head", self.head_seconds)

    def on_url(self, url: bytes) -> None:
        """A part of the address has arrived."""
        self._measure(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has arrived."""
        self._measure(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete; the body has a deadline of its own."""
        self._cancel_deadline()
        self._await_request("body", self.seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._cancel_deadline()
        if not self.cycle.response_complete:  # it may be refused before its body has arrived
            self.connections_open.work(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response is complete."""
        self._corked.flush()
        super().on_response_complete()
        if self.cycle.response_complete or self.cycle.more_body:  # no next request is complete
            self.connections_open.wait(self)

    def _measure(self, length: int) -> None:
        self._head += length
        if self._head > HEAD_BYTES:
            self._refuse(Problem("headers_too_large", f"up to {HEAD_BYTES:,} bytes are taken"))

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def _await_request(self, part: str, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(seconds, self._late, part, seconds)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self, part: str, seconds: float) -> None:
        self._deadline = None
        if not self._begun:
            self.transport.close()  # no request was begun, so there is none to answer
            return
        detail = f"the {part} of a request has to arrive within {seconds:g} s"
        self._refuse(Problem("slow_request", detail))

    def _refuse(self, problem: Problem) -> None:
        """Answer without the app, and close the connection. If the response to an earlier request
        is not complete, only close it: the client would take this answer for that response."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        arriving = cycle is not None and cycle.more_body and not cycle.response_started
        if cycle is not None and not cycle.response_complete and not arriving:
            self.cut()
            return
        response = problem.response()
        head = [f"HTTP/1.1 {problem.status} {problem.title}\r\n".encode(), b"connection: close\r\n"]
        head += [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", response.body]))
        self.transport.close()


class _Corked:
    """A transport that keeps the head of a response until the first part of the body is written.
    Both are then sent in one packet instead of two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes; the head of a response is kept until the next write."""
        if self._head or not data.startswith(b"HTTP/1.1 "):
            data, self._head = self._head + data, b""
            self._transport.write(data)
        else:
            self._head = data

    def flush(self) -> None:
        """Send a head that is kept."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Send a head that is kept, then close."""
        self.flush()
        self._transport.close()


def connection_class(
    head_seconds: float, seconds: float, connections: Connections
) -> type[LimitedConnection]:
    """The protocol class for ``uvicorn.Config(http=…)``.

    Args:
        head_seconds: seconds within which the head of a request has to arrive.
        seconds: seconds within which the body has to arrive after that.
        connections: the open connections of this process.
    """
    values = {"head_seconds": head_seconds, "seconds": seconds, "connections_open": connections}
    return type("LimitedConnection", (LimitedConnection,), values)

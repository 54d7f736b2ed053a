"""One client's connection: how long it may take, how much it may say, and when it is cut.

    s3t.line in the scope's extensions:  gone()   has the client left?
                                         cut()    drop it, and what it has not taken

Invariants: nothing that was written waits in this process unseen (the mark above which a write
waits is 0), so a ``send`` that follows another one tells that the bytes before it have left. A
request's head has to be here within ``head_seconds`` and ``HEAD_BYTES``, its body within
``seconds`` after that: none of it is limited by uvicorn over httptools. How many connections there
may be, and which of them leave for others, is for ``connections``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from s3t.server.http.connections import Connections
from s3t.server.http.held_response import LINE
from s3t.server.http.problems import Problem

__all__ = ["HEAD_BYTES", "Line", "line_of"]

HEAD_BYTES = 2**15
"""Of address and headers together."""

_RESET = struct.pack("ii", 1, 0)
"""Linger for 0 s: what the client has not acknowledged is dropped with the connection."""


class Line(HttpToolsProtocol):
    """uvicorn's connection, with limits. Made by ``line_of``."""

    head_seconds: float
    seconds: float
    room: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        transport.set_write_buffer_limits(high=0)
        self._corked = _Corked(transport)
        super().connection_made(cast(asyncio.Transport, self._corked))
        self._head, self._begun = 0, False
        self._deadline: asyncio.TimerHandle | None = None
        if not self.room.enter(self, self.client[0] if self.client else ""):
            self.cut()
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self.room.leave(self)
        self._arrived()
        super().connection_lost(exc)

    # ── what extends the scope ───────────────────────────────────────────────────────────────

    @property
    def is_full(self) -> bool:
        """Whether something that was written has not left this process."""
        return self.flow.write_paused

    def gone(self) -> bool:
        """Whether the client has left."""
        return self.transport.is_closing()

    def cut(self) -> None:
        """Drop the client, and what it has not taken."""
        channel = self.transport.get_extra_info("socket")
        if channel is not None and channel.family in (socket.AF_INET, socket.AF_INET6):
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # ── what the parser tells ────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._head, self._begun = 0, True
        extended: dict[str, Any] = self.scope  # type: ignore[assignment]
        extended["extensions"] = {LINE: self}
        self._await_request()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._measure(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._measure(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The last byte of a head; its body has time of its own."""
        self._arrived()
        self._await_request(self.seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._arrived()
        if not self.cycle.response_complete:  # one may be refused before its body is here
            self.room.work(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The last message of an answer."""
        self._corked.flush()
        super().on_response_complete()
        if self.cycle.response_complete or self.cycle.more_body:  # no next request is whole
            self.room.wait(self)

    def _measure(self, length: int) -> None:
        self._head += length
        if self._head > HEAD_BYTES:
            self._refuse(Problem("headers_too_large", f"up to {HEAD_BYTES:,} bytes are taken"))

    # ── time ─────────────────────────────────────────────────────────────────────────────────

    def _await_request(self, seconds: float | None = None) -> None:
        if self._deadline is None:
            self._limit = self.head_seconds if seconds is None else seconds
            self._deadline = self.loop.call_later(self._limit, self._late)

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if not self._begun:
            self.transport.close()  # a connection opened for later: no answer without a question
            return
        part = "the body" if self._limit == self.seconds else "the head"
        detail = f"{part} of a request has to arrive within {self._limit:g} s"
        self._refuse(Problem("slow_request", detail))

    def _refuse(self, problem: Problem) -> None:
        """Answer without the app, and hang up. Where an answer to the request before this one is
        still to come, hang up alone: the client would take ours for that."""
        if self.transport.is_closing():
            return
        known = self.cycle
        arriving = known is not None and known.more_body and not known.response_started
        if known is not None and not known.response_complete and not arriving:
            self.cut()
            return
        response = problem.response()
        head = [f"HTTP/1.1 {problem.status} {problem.title}\r\n".encode(), b"connection: close\r\n"]
        head += [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", response.body]))
        self.transport.close()


class _Corked:
    """A transport on which the head of an answer waits for the first part of its body: one packet
    and one wake-up of the client instead of two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or keep a head until there is more."""
        if self._head or not data.startswith(b"HTTP/1.1 "):
            data, self._head = self._head + data, b""
            self._transport.write(data)
        else:
            self._head = data

    def flush(self) -> None:
        """Send what is kept."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """End, after what is kept."""
        self.flush()
        self._transport.close()


def line_of(head_seconds: float, seconds: float, room: Connections) -> type[Line]:
    """The protocol for uvicorn.

    Args:
        head_seconds: within which the head of a request has to arrive.
        seconds: within which the rest of it has to, after that.
        room: who may be connected.
    """
    values = {"head_seconds": head_seconds, "seconds": seconds, "room": room}
    return type("Line", (Line,), values)

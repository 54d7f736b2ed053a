"""Responses that are sent only while the view that computed them is held.

    answer of view 7 ─► hold(7)? ─ yes ─► bytes to the socket ─► release
                            └ no: a deletion hit a block that computed it ─► ask the model again

Invariant (E6): an answer is handed to the network before a deletion that hits it is acknowledged,
or it is not sent. The deletion waits while the view is held. So a client that does not read its
answer within ``SECONDS`` is disconnected.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from s3t.server.metrics import Metrics
    from s3t.service import S3T

__all__ = [
    "CONNECTION",
    "SECONDS",
    "VIEW",
    "VIEW_HEADER",
    "Connection",
    "HeldResponse",
    "body_part",
    "cut",
    "gone",
    "send_whole",
]

CONNECTION = "s3t.connection"
"""Key of the ASGI scope's extensions: the request's ``Connection``. Only our server sets it."""

SECONDS = 1.0
"""Seconds in which a client has to read what is sent to it."""

VIEW = "version of what answered; it grows with each deletion and repair"
"""Description of the field ``view`` in the schemas of answers."""

VIEW_HEADER = {
    "X-S3T-View": {
        "description": "version of what answered, as in the body",
        "schema": {"type": "integer"},
    }
}
"""The header that ``HeldResponse`` sends, for the OpenAPI document."""


class Connection(Protocol):
    """What is needed of a client's connection (``s3t.server.http.connection``)."""

    @property
    def is_full(self) -> bool: ...
    def gone(self) -> bool: ...
    def cut(self) -> None: ...


class HeldResponse(Response):
    """A JSON response with the answers of one view. If a deletion has hit that view before they
    are sent, the model is asked again.

    Args:
        model: the model that gave the answers.
        metrics: where answers that are computed again are counted.
        found: answers of the model, all of one view; at least one.
        content: turns answers into JSON values.
        again: asks the model again.
    """

    media_type = "application/json"

    def __init__(
        self,
        model: S3T,
        metrics: Metrics,
        found: Sequence[Any],
        content: Callable[[Sequence[Any]], Any],
        again: Callable[[], Awaitable[Sequence[Any]]],
    ) -> None:
        self._model, self._metrics, self._found = model, metrics, found
        self._content, self._again = content, again
        self.status_code, self.background, self.raw_headers = 200, None, []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        while not await self._sent(scope, send):
            self._metrics.again.inc()
            self._found = await self._again()

    async def _sent(self, scope: Scope, send: Send) -> bool:
        """Send the answers if their view may still be served; returns whether it may."""
        view: int = self._found[0].view
        content = self._content(self._found)
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"x-s3t-view", b"%d" % view),
            ],
        }
        with self._model.hold(view) as good:
            if good:
                await send_whole(scope, send, [start, body_part(body), body_part(b"", more=False)])
        return good


async def send_whole(scope: Scope, send: Send, messages: Sequence[dict[str, Any]]) -> None:
    """Send messages while a view is held.

    The last message is sent after all bytes before it have left this process.

    Raises:
        ConnectionAbortedError: the client did not read them within ``SECONDS``, and was
            disconnected.
    """
    connection, end = _connection(scope), asyncio.get_running_loop().time() + SECONDS
    try:
        for message in messages:
            if connection is not None and not connection.is_full:
                await send(message)  # no timer: it would cost as much as the answer itself
                continue
            async with asyncio.timeout_at(end):
                await send(message)
    except TimeoutError:
        await cut(scope)
        raise ConnectionAbortedError("a client did not read its answer") from None


def gone(scope: Scope) -> Callable[[], bool]:
    """A function that tells whether the client has disconnected. Under another server than ours it
    always says no."""
    connection = _connection(scope)
    return (lambda: False) if connection is None else connection.gone


async def cut(scope: Scope) -> None:
    """Disconnect a client and discard what it has not read. Under another server than ours this
    does nothing."""
    connection = _connection(scope)
    if connection is not None:
        connection.cut()
        await asyncio.sleep(0)  # asyncio calls connection_lost in the next turn of the loop


def _connection(scope: Scope) -> Connection | None:
    found: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    return found


def body_part(body: bytes, more: bool = True) -> dict[str, Any]:
    """An ASGI message with a part of a response's body; ``more`` is False for the last one."""
    return {"type": "http.response.body", "body": body, "more_body": more}

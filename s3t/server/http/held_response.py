"""The last step of an answer: it leaves only while the view that gave it is held.

    answer of view 7 ─► hold(7)? ─ yes ─► bytes to the socket ─► let go
                            └ no: a block that gave it has died ─► ask again

Invariant (E6): an answer is handed to the network before the deletion that hits it is acknowledged,
or not at all. A deletion waits meanwhile, so a client that does not take its answer is cut off
after ``SECONDS``.
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

__all__ = ["LINE", "SECONDS", "Connection", "Held", "cut", "gone", "part", "send_whole"]

LINE = "s3t.line"
"""Extension of the scope: the ``Connection``, where the server is ours."""

SECONDS = 1.0
"""In which a client has to take what is sent to it."""


class Connection(Protocol):
    """A client's connection (``s3t.server.http.connection``)."""

    @property
    def is_full(self) -> bool: ...
    def gone(self) -> bool: ...
    def cut(self) -> None: ...


class Held(Response):
    """JSON made of a view's answer, and of a newer view's if that one has been hit.

    Args:
        model: what the answer came from.
        metrics: count answers that are computed again.
        found: what the model gave, all of one view; at least one.
        content: the JSON values that it becomes.
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
        """Send it if the view still serves."""
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
        with self._model.serving.hold(view) as good:
            if good:
                await send_whole(scope, send, [start, part(body), part(b"", more=False)])
        return good


async def send_whole(scope: Scope, send: Send, messages: Sequence[dict[str, Any]]) -> None:
    """Hand messages to the network, while a view is held.

    The last message waits until those before it have left this process.

    Raises:
        ConnectionAbortedError: the client did not take them in time, and has been cut off.
    """
    line, end = _line(scope), asyncio.get_running_loop().time() + SECONDS
    try:
        for message in messages:
            if line is not None and not line.is_full:
                await send(message)  # at once: a timer for each answer would cost as much as it
                continue
            async with asyncio.timeout_at(end):
                await send(message)
    except TimeoutError:
        await cut(scope)
        raise ConnectionAbortedError("a client did not take its answer") from None


def gone(scope: Scope) -> Callable[[], bool]:
    """Whether the client of a request has gone, as far as the server can tell."""
    line = _line(scope)
    return (lambda: False) if line is None else line.gone


async def cut(scope: Scope) -> None:
    """Drop a client and what it has not taken, where the server is ours."""
    line = _line(scope)
    if line is not None:
        line.cut()
        await asyncio.sleep(0)  # the connection hears of its end


def _line(scope: Scope) -> Connection | None:
    found: Connection | None = scope.get("extensions", {}).get(LINE)
    return found


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    """A message with a part of an answer's body."""
    return {"type": "http.response.body", "body": body, "more_body": more}

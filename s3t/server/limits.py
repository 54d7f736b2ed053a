"""How large a body may be, whatever its length claims (pure ASGI).

Invariant: no more than ``body_bytes`` and one packet of a body are ever held in memory. A body that
says that it is longer is refused before a byte of it is read; one that does not say, or lies, when
it has become longer.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3t.config.serving import ServeConfig
from s3t.server.problems import Problem

__all__ = ["Limits"]


class Limits:
    """Refuses bodies that are too large.

    Args:
        app: what comes next.
        config: its ``body_bytes``.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._most = app, config.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b""
        )
        if claimed.isdigit() and int(claimed) > self._most:
            await self._refusal().response()(scope, receive, send)
            return
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            if message["type"] == "http.request":
                arrived += len(message.get("body", b""))
                if arrived > self._most:
                    raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> Problem:
        return Problem(
            "body_too_large",
            f"a body may have up to {self._most:,} bytes: send it in parts",
            headers={"Connection": "close"},  # the rest of it is not waited for
        )

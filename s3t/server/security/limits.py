"""How large a body may be, and how many requests may be at work at once (pure ASGI).

    of all connections   3/4   questions, and whatever is not named below
                         7/8   those and deletions
                         all   those and probes: /healthz, /readyz, /metrics

Invariants: no more than ``body_bytes`` and one packet of a body are ever held in memory. A body
that says that it is longer is refused before a byte of it is read; one that does not say, or lies,
when it has become longer. However many questions come, a deletion finds a place, and however many
deletions, a probe. A request is at work once all of it is here: one half sent takes no place.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3t.config.serve import ServeConfig
from s3t.server.http.problems import Problem

__all__ = ["Limits"]

_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_DELETIONS = "/v1/deletions"


class Limits:
    """Refuses bodies that are too large, and requests that would take the places of others.

    Args:
        app: what comes next.
        config: its ``body_bytes`` and ``connections``.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._most = app, config.body_bytes
        self._questions, self._others = config.connections * 3 // 4, config.connections * 7 // 8
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b""
        )
        if claimed.isdigit() and int(claimed) > self._most:
            await self._too_large().response()(scope, receive, send)
            return
        if scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        is_deletion = scope["path"].startswith(_DELETIONS)
        places = self._others if is_deletion else self._questions
        bodiless = scope["method"] in ("GET", "HEAD")
        if bodiless and self._working >= places:
            await self._overloaded().response()(scope, receive, send)
            return
        arrived, works = 0, bodiless
        self._working += works

        async def counted() -> Message:
            nonlocal arrived, works
            message = await receive()
            if message["type"] == "http.request":
                arrived += len(message.get("body", b""))
                if arrived > self._most:
                    raise self._too_large()
                if not works and not message.get("more_body", False):
                    if self._working >= places:
                        raise self._overloaded()
                    works = True
                    self._working += 1
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._working -= works

    def _overloaded(self) -> Problem:
        return Problem(
            "overloaded",
            f"{self._working} requests are at work: repeat the request later",
            retry_after=1,
            headers={"Connection": "close"},  # its place is for those that may have one
        )

    def _too_large(self) -> Problem:
        return Problem(
            "body_too_large",
            f"a body may have up to {self._most:,} bytes: send it in parts",
            headers={"Connection": "close"},  # the rest of it is not waited for
        )

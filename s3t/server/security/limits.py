"""Limits of body sizes and of requests at work at once, by kind of request.

    of serve.connections   3/4   requests that are not named below
                           7/8   those and deletions
                           all   those and probes: /healthz, /readyz, /metrics

Invariants: at most ``body_bytes`` of a body and one packet are held in memory. A body is refused
before it is read if Content-Length is over the limit, otherwise as soon as it exceeds the limit.
Deletions are accepted however many other requests come, and probes however many deletions come. A
request counts as at work once all of it has arrived: half-sent requests count nothing.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3t.config.serve import ServeConfig
from s3t.server.http.problems import Problem

__all__ = ["LimitMiddleware"]

_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_DELETIONS = "/v1/deletions"


class LimitMiddleware:
    """Refuses bodies that are too large, and requests over the limit of their kind (pure ASGI)."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._most = app, config.body_bytes
        self._others, self._deletions = config.connections * 3 // 4, config.connections * 7 // 8
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b""
        )
        if declared.isdigit() and int(declared) > self._most:
            await self._too_large().response()(scope, receive, send)
        elif scope["path"] in _PROBES:
            await self._app(scope, receive, send)
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that counts as at work once it has arrived."""
        is_deletion = scope["path"].startswith(_DELETIONS)
        limit = self._deletions if is_deletion else self._others
        bodiless = scope["method"] in ("GET", "HEAD")
        if bodiless and self._working >= limit:
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
                    if self._working >= limit:
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
            headers={"Connection": "close"},  # frees the connection for requests that are accepted
        )

    def _too_large(self) -> Problem:
        return Problem(
            "body_too_large",
            f"a body may have up to {self._most:,} bytes: send it in parts",
            headers={"Connection": "close"},  # the rest of the body is not read
        )

"""Every request on its way in and out: counted, timed, logged, and never left without an answer.

Invariant: an error that nobody foresaw becomes a 500 of the one shape. What is logged of it is its
kind and the lines of code that it passed, not its message, which may hold an id. A request's line
holds method, route, status and time; not its address, query, body or token.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3t.server.http.held_response import cut
from s3t.server.http.problems import cause_of, problem_of
from s3t.server.logs import Causes
from s3t.server.metrics import Metrics

__all__ = ["Traffic"]

_log = logging.getLogger(__name__)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GONE = 499
"""Counted where nobody waits for an answer any more; nothing is sent."""
_FREQUENT = frozenset({"/v1/predict", "/v1/completions"})
"""Routes of users, which are counted; only what fails of them is logged."""


class Traffic:
    """The outermost layer (pure ASGI).

    Args:
        app: what comes next.
        metrics: where requests are counted.
        causes: what is told of failures of disk, ledger and store.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, causes: Causes) -> None:
        self._app, self._metrics, self._causes = app, metrics, causes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            status = _GONE
        except ConnectionAbortedError:
            self._metrics.cut.inc()
            await cut(scope)
        except Exception as error:
            instance = self._told(error)
            if status:
                await cut(scope)  # half of an answer must not look like one
            else:
                response = problem_of(error).response(instance)
                await response(scope, receive, watched)
        finally:
            self._ended(scope, status, time.perf_counter() - started)

    def _told(self, error: Exception) -> str | None:
        """Log an error; where the log tells more of this very one, under what name."""
        cause = cause_of(error)
        if cause is None:
            return f"urn:s3t:{_logged(error)}"
        self._causes.tell(cause)
        return None

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.request(route, method, status, seconds)
        if status >= 500 or (method not in ("GET", "HEAD") and route not in _FREQUENT):
            fields = {
                "method": method,
                "route": route,
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
            }
            _log.info(
                "%(method)s %(route)s %(status)d in %(milliseconds).1f ms",
                fields,
                extra={"fields": fields},
            )


def _logged(error: Exception) -> str:
    """Log an error without its message; returns the number under which it stands there."""
    number = secrets.token_hex(6)
    passed = [
        f"{frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-12:]
    ]
    fields = {"error": type(error).__name__, "number": number, "passed": passed}
    _log.error(
        "unforeseen %s (%s) at %s",
        type(error).__name__,
        number,
        " < ".join(reversed(passed)),
        extra={"fields": fields},
    )
    return number

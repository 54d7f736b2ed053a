"""The outermost middleware: it counts, times and logs each request, and answers every error.

Invariants: an unexpected error becomes a 500 of the common shape (``problems``). The log holds its
type and its stack, not its message, which may contain an id. The log line of a request holds
method, route, status and time; not its address, query, body or token.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3t.server.http.held_response import cut
from s3t.server.http.problems import failure_of, problem_of
from s3t.server.logs import FailureLog
from s3t.server.metrics import Metrics

__all__ = ["MonitorMiddleware"]

_log = logging.getLogger(__name__)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GONE = 499
"""Status that is counted where the client disconnected before it was answered."""
_FREQUENT = frozenset({"/v1/predict", "/v1/completions"})
"""Routes whose requests are logged only if they fail, since there are many."""


class MonitorMiddleware:
    """Monitors requests and turns errors into responses (pure ASGI).

    Args:
        app: the next ASGI app.
        metrics: where requests are counted.
        failures: where failures of disk, ledger and store are logged.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, failures: FailureLog) -> None:
        self._app, self._metrics, self._failures = app, metrics, failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        except ClientDisconnect:
            status = _GONE
        except ConnectionAbortedError:
            self._metrics.cut.inc()
            await cut(scope)
        except Exception as error:
            instance = self._log_error(error)
            if status:
                await cut(scope)  # half a response must not look like a whole one
            else:
                response = problem_of(error).response(instance)
                await response(scope, receive, send_watched)
        finally:
            self._record(scope, status or _GONE, time.perf_counter() - started)

    def _log_error(self, error: Exception) -> str | None:
        """Log an error. Returns the name of its log entry, which the client is told; None for a
        failure of the service, which is logged once and not for each request."""
        failure = failure_of(error)
        if failure is None:
            return f"urn:s3t:{_log_unexpected(error)}"
        self._failures.report(failure)
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
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


def _log_unexpected(error: Exception) -> str:
    """Log an error without its message; returns the random number of the log entry."""
    number = secrets.token_hex(6)
    stack = [
        f"{frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-12:]
    ]
    fields = {"error": type(error).__name__, "number": number, "passed": stack}
    _log.error(
        "unexpected %s (%s) at %s",
        type(error).__name__,
        number,
        " < ".join(reversed(stack)),
        extra={"fields": fields},
    )
    return number

"""The service's log on standard error: plain lines for people, or JSON lines for programs.

Invariants: a line holds a message and fields that the code names, and of an exception only its
type. uvicorn's access log, which would hold addresses and queries, is off. A failure that goes on
is logged once with its cause, not once for each request.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from s3t.errors import DamagedNodeError, S3TError, UnavailableError

__all__ = ["FailureLog", "JsonLines", "log_to_stderr"]

_log = logging.getLogger(__name__)

_QUIET = 60.0
"""Seconds without a failure after which the next one with the same cause is logged again."""


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The JSON text, without a newline."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__  # not the message, which may hold an id
        return json.dumps(line, default=str)


class _Lines(logging.Formatter):
    """Formats a record as a line of text; of an exception only its type is shown."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        # a message may hold text from elsewhere, which must not be able to start a line of its own
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{at:%H:%M:%S} {record.levelname.lower():7s} {message}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f" ({record.exc_info[0].__name__})"
        return line


class FailureLog:
    """Logs failures of the service, each cause once. A cause is logged again after it has not
    occurred for a minute. Safe to share between threads.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def report(self, error: S3TError) -> None:
        """Log a failure, unless its cause was logged and has gone on since.

        Args:
            error: an error of the service, not of a request, so its message holds no id
                (``problems.failure_of``).
        """
        code = error.code if isinstance(error, UnavailableError) else type(error).__name__
        node = error.key if isinstance(error, DamagedNodeError) else ""
        if self._is_new(code + node):  # not by the message, which may hold a number of each request
            fields = {"code": code}
            _log.error(
                "%s: %s (logged once while it goes on)", code, error, extra={"fields": fields}
            )

    def _is_new(self, cause: str) -> bool:
        with self._lock:
            now = self._clock()
            before = self._seen.get(cause)
            self._seen[cause] = now
        return before is None or now - before > _QUIET


def log_to_stderr(*, as_json: bool = False) -> None:
    """Log to standard error: s3t from level INFO on, other packages from WARNING on.

    Args:
        as_json: write JSON lines instead of plain ones.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else _Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("s3t").setLevel(logging.INFO)

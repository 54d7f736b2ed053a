"""The service's log on standard error: lines for people, or JSON lines for programs.

Invariant: every line is made here, of a message and of fields that the code names; uvicorn's own
log of requests, which would hold addresses and queries, is off. What goes on failing is told once,
with its cause, not once for each request.
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

__all__ = ["Causes", "JsonLines", "log_to_stderr"]

_log = logging.getLogger(__name__)

_QUIET = 60.0
"""Seconds without a failure after which the next one of its kind is told again."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__  # its message may hold an id
        return json.dumps(line, default=str)


class _Lines(logging.Formatter):
    """A line for people; of an exception its kind alone."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        # whoever may choose a part of a message must not be able to begin a line of their own
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{at:%H:%M:%S} {record.levelname.lower():7s} {message}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f" ({record.exc_info[0].__name__})"
        return line


class Causes:
    """Why requests fail, told once each: again only after a minute without that cause.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def tell(self, error: S3TError) -> None:
        """Log the cause, unless it was told and has gone on since.

        Args:
            error: of the service, not of a request: its message holds no id.
        """
        code = error.code if isinstance(error, UnavailableError) else type(error).__name__
        node = error.key if isinstance(error, DamagedNodeError) else ""
        if self._is_new(code + node):  # not by the message: a server may number its refusals
            fields = {"code": code}
            _log.error("%s: %s (told once while it goes on)", code, error, extra={"fields": fields})

    def _is_new(self, cause: str) -> bool:
        with self._lock:
            now = self._clock()
            before = self._seen.get(cause)
            self._seen[cause] = now
        return before is None or now - before > _QUIET


def log_to_stderr(*, as_json: bool = False) -> None:
    """Send what s3t logs from INFO on, and what others do from WARNING on, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else _Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("s3t").setLevel(logging.INFO)

"""The service's log on standard error: lines for people, or JSON lines for programs.

Invariant: every line is made here, of a message and of fields that the code names; uvicorn's own
log of requests, which would hold addresses and queries, is off.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["JsonLines", "log_to_stderr"]


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


def log_to_stderr(*, as_json: bool = False) -> None:
    """Send what s3t logs from INFO on, and what others do from WARNING on, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else _Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("s3t").setLevel(logging.INFO)

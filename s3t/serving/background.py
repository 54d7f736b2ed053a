"""A thread that takes up the ledger's view where no question has come that would.

Invariant: at most one such thread runs; an error is logged once, until a later refresh succeeds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from s3t.errors import S3TError

__all__ = ["BackgroundRefresh", "cause_of"]

_log = logging.getLogger(__name__)


class BackgroundRefresh:
    """Refreshes in a thread of its own.

    Args:
        refresh: puts the ledger's view in force.

    Attributes:
        failed: whether the last refresh has failed.
    """

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._thread: threading.Thread | None = None
        self.failed = False

    def start(self) -> None:
        """Begin a refresh, unless one is at work."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="s3t-view", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait for the refresh that is at work."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._refresh()
            self.failed = False
        except Exception as error:  # the caller tries again
            if not self.failed:
                _log.error("another view cannot be taken up: %s", cause_of(error))
            self.failed = True


def cause_of(error: Exception) -> str:
    """Why something failed, for the log. The message of a foreign error may name samples, so only
    its kind is told."""
    return str(error) if isinstance(error, S3TError) else type(error).__name__

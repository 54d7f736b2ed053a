"""Tells the store at ``store.url`` of deletions, and remembers why that failed.

Invariant: the store is told before a deletion counts as effective. What it could not be told waits,
since the ledger has it.
"""

from __future__ import annotations

import logging
import threading
import time

from s3t.errors import S3TError
from s3t.ledger import Ledger
from s3t.run.directory import RunDir

__all__ = ["StoreNotifier"]

_log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds after which a store that could not be told is tried again."""


class StoreNotifier:
    """Tells one run's store. Safe to share between threads.

    Attributes:
        reason: why the store was not told when that was last tried; None if it was, or if there is
            no store.
    """

    def __init__(self, run: RunDir, ledger: Ledger) -> None:
        self._run, self._ledger = run, ledger
        self._lock = threading.Lock()
        self._next_try = 0.0
        self.reason: str | None = None

    def tell(self) -> str | None:
        """Tell the store at ``store.url`` every deletion; why it was not told, if that fails.

        After a failure it is not tried again for some seconds, so that callers do not wait each
        time.
        """
        if self._run.store.depot is None:
            return None
        with self._lock:
            if time.monotonic() < self._next_try:
                return self.reason
            before = self.reason
            try:
                self._run.notices().tell(self._ledger)
                self.reason = None
            except S3TError as error:
                self.reason, self._next_try = str(error), time.monotonic() + _PATIENCE
                if before is None:
                    _log.error("store not told yet of deletions, which are durable: %s", error)
            else:
                if before is not None:
                    _log.warning("the store is told of every deletion again")
            return self.reason

"""Evaluates what serves on the public test rows, now and then, so that the page shows how it does.

    every ``serve.evaluate`` seconds: a view without an evaluation? ─► S3T.evaluate ─► the ledger

Invariants: it takes at most a twentieth of the time. A deletion waits for a part of the rows alone
(``Serving.evaluation``), and the end of the service for no more.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from s3t.errors import ExhaustedError, S3TError

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["RegularEvaluation"]

_log = logging.getLogger(__name__)
_SHARE = 20
"""Of the time, one part in so many is spent."""


class RegularEvaluation:
    """Evaluates a model in a thread of its own.

    Args:
        model: what answers.
        every: seconds between looks; 0 for none.
    """

    def __init__(self, model: S3T, every: float) -> None:
        self._model, self._every = model, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="s3t-evaluation", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if self._every:
            self._thread.start()

    def close(self) -> None:
        """End, after the part that is under way."""
        self._ended.set()
        if self._every:
            self._thread.join()

    def _run(self) -> None:
        wait = self._every
        while not self._ended.wait(wait):
            started = time.monotonic()
            try:
                if self._model.status().evaluation is None:
                    self._model.evaluate(self._ended.is_set)
            except ExhaustedError:
                pass
            except S3TError as error:
                _log.warning("what serves is not evaluated: %s", type(error).__name__)
            wait = max(self._every, _SHARE * (time.monotonic() - started))

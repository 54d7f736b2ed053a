"""Fits the weights of the view in force, on a thread apart from answers and deletions.

    a view is put in force, uniform ─► fitted apart ─► still in force? ─► the same view, weighted
                                            └─ in doubt: uniform goes on, counted and told

Invariant: no deletion waits for a fit. What was fitted for a view that has gone is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from s3t.serving.background import cause_of
from s3t.serving.ensemble.mixture import Mixture
from s3t.serving.views import ServingView

__all__ = ["WeightFitter", "WeightState"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightState:
    """How the weights of this process are.

    Attributes:
        fitted: those that serve; None while they are uniform.
        reason: why the last fit was given up; None if it was not.
        failures: fits that were given up since the process began.
    """

    fitted: Mixture | None
    reason: str | None
    failures: int


class WeightFitter:
    """Fits views one after the other; the newest alone counts.

    Args:
        fit: from a view to its weights; None if the ledger has come to another view meanwhile.
        is_current: whether a view is in force.
        put: puts a view in force again, with its weights, if it still is.
    """

    def __init__(
        self,
        fit: Callable[[ServingView], Mixture | None],
        is_current: Callable[[ServingView], bool],
        put: Callable[[ServingView, Mixture], None],
    ) -> None:
        self._fit, self._is_current, self._put = fit, is_current, put
        self._turn = threading.Lock()
        self._newest: threading.Thread | None = None
        self._reason: str | None = None
        self._failures = 0

    def begin(self, served: ServingView) -> None:
        """Fit a view that has been put in force; returns at once."""
        args = (served,)
        self._newest = threading.Thread(
            target=self._fitted, args=args, name="s3t-weights", daemon=True
        )
        self._newest.start()

    def wait(self) -> None:
        """Wait until the newest view has its weights, or they were given up."""
        if self._newest is not None:
            self._newest.join()

    def state(self, current: ServingView | None) -> WeightState:
        """How the weights are, with this view in force."""
        fitted = None if current is None else current.mixture
        return WeightState(fitted, None if fitted else self._reason, self._failures)

    def _fitted(self, served: ServingView) -> None:
        with self._turn:
            if not self._is_current(served):
                return
            try:
                mixture = self._fit(served)
                if mixture is not None:
                    self._put(served, mixture)
                self._reason = None
            except Exception as error:  # whatever it is, uniform weights go on
                why = cause_of(error)
                if why != self._reason:
                    _log.error("weights are uniform: %s", why)
                self._reason = why
                self._failures += 1

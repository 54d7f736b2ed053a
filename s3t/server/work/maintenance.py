"""Repair, purge and reload of a run while it is served.

Invariants: this process runs one repair at a time. A repair is a process of its own, and no value
of a request decides how it is launched.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from s3t.server.deletions.jobs import moment
from s3t.server.http.problems import Problem, problem_of
from s3t.server.work.threads import ThreadPool

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["Maintenance", "RepairState"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepairFailure:
    """Why a repair failed: code and title as errors of the service have them."""

    code: str
    title: str


@dataclass(frozen=True, slots=True)
class RepairState:
    """State of the latest repair that this process began.

    Attributes:
        state: ``none`` if this process began no repair.
        started, ended: ISO 8601 in UTC.
        report: what `s3t repair --json` prints, once it is done.
        problem: why it failed.
    """

    state: Literal["none", "running", "done", "failed"] = "none"
    started: str | None = None
    ended: str | None = None
    report: dict[str, Any] | None = None
    problem: RepairFailure | None = None


class Maintenance:
    """Repairs, purges and reloads a model: one repair at a time, and one purge or reload."""

    def __init__(self, model: S3T) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._state = RepairState()
        self._threads = ThreadPool("purges and reloads", 1, 2)

    @property
    def state(self) -> RepairState:
        """State of the latest repair."""
        return self._state

    def start(self) -> RepairState:
        """Begin a repair.

        Raises:
            Problem: ``busy`` if one is under way.
        """
        with self._lock:
            if self._state.state == "running":
                raise Problem("busy", "a repair is under way: GET /v1/repair shows its state")
            self._state = RepairState("running", moment(datetime.now(UTC)))
        # a daemon thread: a repair that is killed with this process is continued by the next one
        threading.Thread(target=self._run, name="s3t-repair", daemon=True).start()
        return self._state

    async def purge(self) -> dict[str, Any]:
        """Remove dead nodes and deleted rows from the disk; returns ``S3T.purge``'s report as JSON
        values.

        Raises:
            Problem: ``overloaded`` or ``draining``.
            S3TError: see ``S3T.purge``.
        """
        found: dict[str, Any] = await self._threads.run(lambda: self._model.purge().to_dict())
        # the reason why a file cannot be read may hold values of its rows
        own = [[name.partition(" (cannot be read")[0], rows] for name, rows in found["own_files"]]
        return {**found, "own_files": own}

    async def reload(self) -> None:
        """Read store and ledger again.

        Raises:
            Problem: ``overloaded`` or ``draining``.
            S3TError: see ``Serving.reload``.
        """
        await self._threads.run(self._model.serving.reload)

    def close(self) -> None:
        """Wait for a purge or reload under way."""
        self._threads.close()

    def _run(self) -> None:
        try:
            report = self._model.repair()
        except Exception as error:
            # only the type: a message about data may hold values of their rows
            _log.error("the repair failed: %s; s3t repair RUN shows why", type(error).__name__)
            problem = problem_of(error)
            failure = RepairFailure(problem.code, problem.title)
            ended = replace(self._state, state="failed", problem=failure)
        else:
            ended = replace(self._state, state="done", report=report)
        self._state = replace(ended, ended=moment(datetime.now(UTC)))

"""Repair, purge and reload of a run while it serves.

Invariant: one repair at a time. It is a process of its own, and nothing of how it is launched comes
from the network.
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

__all__ = ["Maintenance", "RepairProgress"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepairProgress:
    """How the latest repair of this process goes.

    Attributes:
        state: ``none`` if there was none.
        started, ended: ISO 8601 in UTC.
        report: of the training, where it is done.
        problem: what it failed with.
    """

    state: Literal["none", "running", "done", "failed"] = "none"
    started: str | None = None
    ended: str | None = None
    report: dict[str, Any] | None = None
    problem: Problem | None = None


class Maintenance:
    """Repairs, purges and reloads, one of each at a time.

    Args:
        model: what is repaired.
    """

    def __init__(self, model: S3T) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._state = RepairProgress()
        self._threads = ThreadPool("purges and reloads", 1, 2)

    @property
    def state(self) -> RepairProgress:
        """How the latest repair goes."""
        return self._state

    def start(self) -> RepairProgress:
        """Begin one.

        Raises:
            Problem: ``busy``.
        """
        with self._lock:
            if self._state.state == "running":
                raise Problem("busy", "a repair is under way: GET /v1/repair tells how it goes")
            self._state = RepairProgress("running", moment(datetime.now(UTC)))
        # a daemon: the repair is a process of its own, and goes on where it was if it is killed
        threading.Thread(target=self._run, name="s3t-repair", daemon=True).start()
        return self._state

    async def purge(self) -> dict[str, Any]:
        """Remove what is dead from the disk."""
        found: dict[str, Any] = await self._threads.run(lambda: self._model.purge().to_dict())
        # why a file cannot be read may name its rows
        own = [[name.partition(" (cannot be read")[0], rows] for name, rows in found["own_files"]]
        return {**found, "own_files": own}

    async def reload(self) -> None:
        """Look at the store and the ledger anew."""
        await self._threads.run(self._model.serving.reload)

    def close(self) -> None:
        """Wait for a purge or reload under way."""
        self._threads.close()

    def _run(self) -> None:
        try:
            report = self._model.repair()
        except Exception as error:
            # the kind alone: a message about data may name their rows
            _log.error("the repair failed: %s; s3t repair RUN tells why", type(error).__name__)
            ended = replace(self._state, state="failed", problem=problem_of(error))
        else:
            ended = replace(self._state, state="done", report=report)
        self._state = replace(ended, ended=moment(datetime.now(UTC)))

"""Deletions too large to wait for: accepted durably, then done one after the other, all or nothing.

    POST ─► the ledger's outbox ─► 202      one thread a replica: claim ─► deactivate ─► end
                     │                                                      │ the job's row goes,
                     └── killed? another replica does it, or the next ◄─────┘ its callbacks wait,
                         start does                                           the receipt stays

Invariant: what was accepted with 202 is done, however often processes are killed and whatever
machine is lost: the ledger has it, and the request id makes repeating it harmless. Only a deletion
that can never be done (it names what the run does not hold) is cancelled; everything else is tried
again. Ids stay in the ledger's outbox until then and no longer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from s3t.errors import InputError, IntegrityError, RequestConflictError
from s3t.ledger import Deletion, Job, Outbox, job_claim
from s3t.server.http.problems import Problem, problem_of
from s3t.server.worker import Worker

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["JobQueue", "moment"]

_log = logging.getLogger(__name__)

_LIMIT = 64
"""Jobs that may wait."""
_KEPT = timedelta(days=7)
"""How long it is told that a job was cancelled."""
_LOOK = 1.0
"""Seconds between two looks for jobs that other replicas have accepted."""
_PATIENCE = 60.0
"""The longest pause, in seconds, before a job that failed for now is tried again here."""


class JobQueue:
    """The jobs of a run, and the thread that does them in this process.

    Args:
        model: what forgets.
        outbox: of its ledger.
        ended: called when a job has ended, so that its callbacks are made.
        look: seconds between two looks at the outbox.
    """

    def __init__(
        self,
        model: S3T,
        outbox: Outbox,
        ended: Callable[[], None],
        look: float = _LOOK,
    ) -> None:
        self._model, self._outbox, self._ended, self._look = model, outbox, ended, look
        self._worker = Worker("large deletions", outbox, self._work, look)
        self._failures: dict[str, tuple[int, float]] = {}
        self._damaged: set[str] = set()

    def start(self) -> None:
        """Begin, with what earlier processes have left."""
        self._worker.start()

    def close(self, seconds: float | None = None) -> None:
        """Finish the job under way; what waits is left to other replicas and the next start."""
        self._worker.close(seconds)

    def put(
        self,
        deletion: Deletion,
        callbacks: Sequence[str] = (),
        controller: str | None = None,
    ) -> Job:
        """Accept a deletion: when this returns the ledger has it. The same again is the same.

        Raises:
            Problem: ``request_conflict`` or ``overloaded``; nothing was accepted.
            UnavailableError: the ledger takes no more now; nothing was accepted.
        """
        job = self._outbox.accept(deletion, callbacks, controller, limit=_LIMIT)
        if job is None:
            raise Problem("overloaded", f"{_LIMIT} large deletions wait already", retry_after=30)
        self._worker.wake()
        return self.agreed(job, deletion)

    def find(self, request_id: str) -> Job | None:
        """The job of a request that is not done, whichever replica took it in; a cancelled one for
        a week.

        Raises:
            IntegrityError: its row is damaged.
        """
        return None if "\0" in request_id else self._outbox.job(request_id)

    def agreed(self, job: Job, deletion: Deletion) -> Job:
        """The job, if a request of its id names the same.

        Raises:
            Problem: ``request_conflict``.
        """
        if job.deletion.text != deletion.text:
            raise Problem(
                "request_conflict",
                "the request id stands for another deletion, which waits to be done: use a new one",
            )
        return job

    # ── the thread ───────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """Do every job that no other process has in hand, the longest waiting first."""
        self._outbox.expire(moment(datetime.now(UTC) - _KEPT))
        for request_id in self._outbox.waiting():
            if self._worker.ending:
                return
            paused = self._failures.get(request_id, (0, 0.0))[1] > time.monotonic()
            if paused or request_id in self._damaged:
                continue
            with self._worker.claim(job_claim(request_id)) as claim:
                job = None if claim is None else self._read(request_id)
                if job is not None and job.cancelled is None:
                    self._do(job)

    def _read(self, request_id: str) -> Job | None:
        try:
            return self._outbox.job(request_id)
        except IntegrityError as error:  # it holds up no other
            self._damaged.add(request_id)
            _log.error("%s", error)
            return None

    def _do(self, job: Job) -> None:
        """Do one; afterwards it has ended, or waits for another try, here or elsewhere."""
        problem = None
        try:
            self._model.deactivate(job.deletion)
        except RequestConflictError:
            # no other deletion can take the id of a job that waits: it was done by a process that
            # was killed before it could say so, and samples that it names were taken in since
            pass
        except InputError as error:
            told = problem_of(error)
            problem = told.code, told.title  # not the detail, which may name ids
        except Exception as error:
            failed = self._failures.get(job.request_id, (0, 0.0))[0] + 1
            pause = min(_PATIENCE, 2.0 ** min(failed, 16) * self._look / 2)
            self._failures[job.request_id] = failed, time.monotonic() + pause
            # the kind alone: a message may name samples
            _log.error("a large deletion failed for now: %s", type(error).__name__)
            return
        self._outbox.end(job, problem)
        self._failures.pop(job.request_id, None)
        self._ended()


def moment(at: datetime) -> str:
    """A moment as answers tell it, ISO 8601 in UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")

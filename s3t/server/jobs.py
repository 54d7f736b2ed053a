"""Deletions too large to wait for: accepted durably, then done one after the other, all or nothing.

    POST ─► RUN/jobs/deletions/… (0600, fsynced) ─► 202      one thread: deactivate ─► callbacks
                     │                                          │ done: the file goes, the receipt
                     └── killed? read again at the next start ◄─┘       in the ledger stays

Invariant: what was accepted with 202 is done, however often the process is killed: the request id
makes repeating it harmless. Only a deletion that can never be done (it names what the run does not
hold) is cancelled; everything else is tried again. Ids stay in the file until then and no longer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from s3t.errors import InputError, IntegrityError
from s3t.server.problems import Problem, problem_of
from s3t.server.spool import Spool

if TYPE_CHECKING:
    from s3t.server.state import Model

__all__ = ["Job", "JobQueue", "moment"]

_log = logging.getLogger(__name__)

_LIMIT = 64
"""Jobs that may wait; each is a file."""
_KEPT = timedelta(days=7)
"""How long it is told that a job was cancelled."""
_LOOK = 1.0
"""Seconds between two looks for jobs that other processes have accepted in the same folder."""
_PATIENCE = 60.0
"""The longest pause, in seconds, before a job that failed for now is tried again."""


@dataclass(frozen=True, slots=True)
class Job:
    """One large deletion.

    Attributes:
        request_id: its name, here and in the ledger.
        received: ISO 8601 in UTC.
        expected: by when it should be done, ISO 8601 in UTC.
        sample_ids, subjects: what to delete; empty once cancelled.
        callbacks: URLs to tell.
        controller: name of whoever asked.
        salt, mark: tell whether another request names the same, without naming it.
        cancelled: when it was found that it can never be done, ISO 8601 in UTC.
        problem: code and sentence of why; no ids.
    """

    request_id: str
    received: str
    expected: str
    sample_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    callbacks: tuple[str, ...]
    controller: str | None
    salt: str
    mark: str
    cancelled: str | None = None
    problem: tuple[str, str] | None = None

    def same(self, sample_ids: Sequence[str], subjects: Sequence[str]) -> bool:
        """Whether a request names the same samples and subjects."""
        return self.mark == _mark(self.salt, sample_ids, subjects)


class JobQueue:
    """The jobs of a run, and the thread that does them.

    Args:
        model: what forgets.
        spool: where they lie until they are done.
        tell: called with a job that has ended, before it is forgotten here.
        look: seconds between two looks at the folder.
    """

    def __init__(
        self,
        model: Model,
        spool: Spool,
        tell: Callable[[Job], None],
        look: float = _LOOK,
    ) -> None:
        self._model, self._spool, self._tell, self._look = model, spool, tell, look
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="s3t-jobs", daemon=True)
        self._running: str | None = None
        self._failures: dict[str, tuple[int, float]] = {}
        self._damaged: set[str] = set()

    def start(self) -> None:
        """Begin, with what an earlier process has left."""
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Finish the job under way; what waits is left to the next start."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._spool.leave()

    def put(
        self,
        request_id: str,
        sample_ids: Sequence[str],
        subjects: Sequence[str],
        callbacks: Sequence[str] = (),
        controller: str | None = None,
    ) -> Job:
        """Accept a deletion: when this returns it outlives the process. The same again is the same.

        Raises:
            Problem: ``request_conflict``, ``overloaded``, or ``unavailable`` where the disk takes
                no more; nothing was accepted.
        """
        with self._spool.alone():
            held = self.find(request_id)
            if held is not None and held.cancelled is None:
                return self.agreed(held, sample_ids, subjects)
            waiting = len(self._spool)
            if waiting >= _LIMIT:
                raise Problem(
                    "overloaded", f"{waiting} large deletions wait already", retry_after=30
                )
            now = datetime.now(UTC)
            salt = secrets.token_hex(16)
            job = Job(
                request_id=request_id,
                received=moment(now),
                expected=moment(now + timedelta(minutes=1 + waiting)),
                sample_ids=tuple(sample_ids),
                subjects=tuple(subjects),
                callbacks=tuple(callbacks),
                controller=controller,
                salt=salt,
                mark=_mark(salt, sample_ids, subjects),
            )
            try:
                self._spool.put(request_id, asdict(job))
            except OSError as error:
                _log.error("a deletion cannot be written down: %s", error.strerror)
                raise Problem(
                    "unavailable", "the request cannot be written down: repeat it", retry_after=10
                ) from None
        self._wake.set()
        return job

    def find(self, request_id: str) -> Job | None:
        """The job of a request that is not done; a cancelled one for a week.

        Raises:
            IntegrityError: its file is damaged.
        """
        document = self._spool.get(request_id)
        return None if document is None else _job(document)

    def agreed(self, job: Job, sample_ids: Sequence[str], subjects: Sequence[str]) -> Job:
        """The job, if a request of its id names the same.

        Raises:
            Problem: ``request_conflict``.
        """
        if not job.same(sample_ids, subjects):
            raise Problem(
                "request_conflict",
                "the request id stands for another deletion, which waits to be done: use a new one",
            )
        return job

    def is_running(self, request_id: str) -> bool:
        """Whether this process is doing it now."""
        return self._running == request_id

    # ── the thread ───────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while not self._ending:
            try:
                job = self._next() if self._spool.hold() else None
                if job is None:
                    self._wake.wait(self._look)
                    self._wake.clear()
                else:
                    self._do(job)
            except Exception as error:  # such as a disk that is gone: jobs must go on after it
                _log.error("large deletions pause: %s", type(error).__name__)
                time.sleep(self._look)

    def _next(self) -> Job | None:
        """The job that has waited longest, of those that are not to wait longer."""
        now = time.monotonic()
        for document in self._spool.oldest(_log.error):
            try:
                job = _job(document)
            except IntegrityError as error:
                if document["key"] not in self._damaged:
                    self._damaged.add(document["key"])
                    _log.error("%s", error)
                continue
            if job.cancelled is not None:
                if datetime.now(UTC) - datetime.fromisoformat(job.cancelled) > _KEPT:
                    self._spool.remove(job.request_id)
            elif self._failures.get(job.request_id, (0, now))[1] <= now:
                return job
        return None

    def _do(self, job: Job) -> None:
        """Do one; afterwards it is done and forgotten here, cancelled, or waits for another try."""
        self._running = job.request_id
        try:
            self._model.deactivate(job.sample_ids, job.subjects, request_id=job.request_id)
        except InputError as error:
            self._end(_cancelled(job, problem_of(error)))
        except Exception as error:
            failed = self._failures.get(job.request_id, (0, 0.0))[0] + 1
            pause = min(_PATIENCE, 2.0 ** min(failed, 16) * self._look / 2)
            self._failures[job.request_id] = failed, time.monotonic() + pause
            # the kind alone: a message may name samples
            _log.error("a large deletion failed for now: %s", type(error).__name__)
        else:
            self._end(job)
        finally:
            self._running = None

    def _end(self, job: Job) -> None:
        """Tell of it, and only then forget it: a kill in between tells twice, never not at all."""
        self._tell(job)
        self._failures.pop(job.request_id, None)
        with self._spool.alone():
            if job.cancelled is None:
                self._spool.remove(job.request_id)
            else:
                self._spool.put(job.request_id, asdict(job))


def moment(at: datetime) -> str:
    """A moment as answers tell it, ISO 8601 in UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def _cancelled(job: Job, problem: Problem) -> Job:
    """The job without what it names."""
    return replace(
        job,
        sample_ids=(),
        subjects=(),
        cancelled=moment(datetime.now(UTC)),
        problem=(problem.code, problem.title),  # not the detail, which may name ids
    )


def _job(document: dict[str, Any]) -> Job:
    values = {name: value for name, value in document.items() if name != "key"}
    try:
        for name in ("sample_ids", "subjects", "callbacks"):
            values[name] = tuple(values[name])
        problem = values["problem"]
        values["problem"] = None if problem is None else (problem[0], problem[1])
        return Job(**values)
    except (LookupError, TypeError) as error:
        raise IntegrityError(f"a job in RUN/jobs is damaged ({type(error).__name__})") from None


def _mark(salt: str, sample_ids: Sequence[str], subjects: Sequence[str]) -> str:
    named = json.dumps([salt, sorted(set(sample_ids)), sorted(set(subjects))])
    return hashlib.sha256(named.encode()).hexdigest()

"""Where deletions are taken in: at once if they are small, as jobs if they are not.

    POST ─► job of this id? ─► large? ─ no ─► threads of their own: deactivate ─► 201, or 202 while
                                  │            a replica has not been seen to follow
                                  └─ yes ───► JobQueue ─► 202
            ended, and someone to be told ──► Callbacks

Jobs and callbacks lie in the ledger, so any replica answers for them, and does them.

Invariant: what is answered as completed is durable and effective; what is answered as accepted
outlives the process and its machine. Ids come in and never go out, not even in a refusal.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from s3t.config.serve import ServeConfig
from s3t.errors import InputError, PublicSampleError, S3TError, UnknownSampleError
from s3t.ledger import Deletion, Job, Receipt, Signer
from s3t.server.deletions.callbacks import Callbacks, Hosts, Seal
from s3t.server.deletions.jobs import JobQueue, moment
from s3t.server.deletions.opendsr import Answer, DeletionRequest, Failure, RequestStatus
from s3t.server.http.problems import Problem
from s3t.server.work.threads import ThreadPool

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["DeletionService"]

_log = logging.getLogger(__name__)

_THREADS, _LIMIT = 4, 32
"""Deletions that are under way at once, and with those that wait for them."""
_LOOKS = 2
"""Threads of those who ask what became of deletions: these wait for none of them."""


class DeletionService:
    """Takes deletions, and tells what became of them.

    Args:
        model: what forgets.
        config: limits, and whom to call back.
        insecure: http callbacks to this machine are allowed.
    """

    def __init__(self, model: S3T, config: ServeConfig, insecure: bool = False) -> None:
        self._model, self._config = model, config
        key = model.config.receipts.signing_key
        self.seal = Seal(None if key is None else Signer(key), config.domain or config.host)
        outbox = model.ledger.outbox
        hosts = Hosts(config.callback_hosts, insecure)
        self.callbacks = Callbacks(outbox, hosts, self.seal, self._told)
        self.jobs = JobQueue(model, outbox, self.callbacks.wake)
        self._lane = ThreadPool("deletions", _THREADS, _LIMIT)
        self._looks = ThreadPool("looks at deletions", _LOOKS, _LIMIT)

    def start(self) -> None:
        """Begin with what earlier processes have left."""
        self.jobs.start()
        self.callbacks.start()

    def close(self) -> None:
        """Finish what is under way; what waits is left to other replicas and the next start."""
        self._lane.close()
        self._looks.close()
        self.jobs.close()
        self.callbacks.close()

    async def preview(self, request: DeletionRequest) -> dict[str, Any]:
        """The receipt that a deletion would have, as JSON values."""
        deletion = _deletion(request, None)
        receipt = await self._lane.run(partial(self._delete, deletion, request))
        return receipt.to_dict()

    async def take(
        self, request: DeletionRequest, request_id: str | None, controller: str | None
    ) -> tuple[int, Answer]:
        """Delete, or accept to; returns the status and the answer.

        Args:
            request: the body.
            request_id: by which the caller names it, if it does.
            controller: name of the caller's token.

        Raises:
            Problem: refused; nothing was changed.
            S3TError: see ``S3T.deactivate``.
        """
        deletion = _deletion(request, request_id or str(uuid.uuid4()))
        self.callbacks.check(request.status_callback_urls)
        received = moment(datetime.now(UTC))
        return await self._lane.run(partial(self._take, deletion, request, controller, received))

    async def find(self, request_id: str) -> Answer:
        """What became of a request.

        Raises:
            Problem: ``not_found``.
        """
        found = await self._looks.run(partial(self._find, request_id))
        if found is None:
            raise Problem("not_found", "there is no deletion of this id")
        return found

    async def recent(self, limit: int, before: int | None) -> tuple[list[Answer], int | None]:
        """Deletions that were made, the latest first, and where the next page begins.

        Args:
            limit: how many at the most.
            before: only those whose entry of the log has a smaller number.
        """
        return await self._looks.run(partial(self._recent, limit, before))

    def results_url(self, request_id: str) -> str:
        """Where the outcome can be asked for. Its host is the config's, never the request's."""
        path = f"/v1/deletions/{quote(request_id, safe='')}"
        return path if self._config.domain is None else f"https://{self._config.domain}{path}"

    # ── in threads ───────────────────────────────────────────────────────────────────────────

    def _take(
        self, deletion: Deletion, request: DeletionRequest, controller: str | None, received: str
    ) -> tuple[int, Answer]:
        name, urls = str(deletion.request_id), request.status_callback_urls
        job = self.jobs.find(name)
        if job is not None and job.cancelled is None:
            return 202, self._waiting(self.jobs.agreed(job, deletion))
        if deletion.count > self._config.job_samples and self._stored(name) is None:
            return 202, self._waiting(self.jobs.put(deletion, urls, controller))
        receipt = self._delete(deletion, request)
        self._note(name, urls)
        answer = self._done(receipt, received, controller)
        return (202 if receipt.effective_at is None else 201), answer

    def _delete(self, deletion: Deletion, request: DeletionRequest) -> Receipt:
        """Delete; what the run does not hold is named by its place in the body, not by its id.

        Raises:
            Problem: ``unknown_sample`` or ``public_sample``.
        """
        try:
            receipt: Receipt = self._model.deactivate(deletion)
        except UnknownSampleError as error:
            raise _unknown(error, request) from None
        return receipt

    def _stored(self, request_id: str) -> Receipt | None:
        """The receipt of a deletion that was made."""
        if "\0" in request_id:
            return None  # no ledger holds one
        try:
            return self._model.receipt(request_id)
        except InputError:
            return None

    def _find(self, request_id: str) -> Answer | None:
        job = self.jobs.find(request_id)
        if job is not None and job.cancelled is None:
            return self._waiting(job)
        stored = self._stored(request_id)
        if stored is not None:
            return self._done(stored)
        return None if job is None else self._waiting(job)

    def _waiting(self, job: Job) -> Answer:
        status: RequestStatus = "in_progress" if job.running else "pending"
        return Answer(
            subject_request_id=job.request_id,
            request_status=status if job.cancelled is None else "cancelled",
            received_time=job.received,
            expected_completion_time=job.expected if job.cancelled is None else None,
            results_url=self.results_url(job.request_id),
            controller_id=job.controller,
            problem=None
            if job.problem is None
            else Failure(code=job.problem[0], title=job.problem[1]),
        )

    def _done(
        self, receipt: Receipt, received: str | None = None, controller: str | None = None
    ) -> Answer:
        """A deletion that was made.

        Args:
            receipt: of it.
            received: when it was asked for, ISO 8601; by default when it was durable.
            controller: name of the token that asked.
        """
        effective = receipt.effective_at
        return Answer(
            subject_request_id=receipt.request_id,
            request_status="in_progress" if effective is None else "completed",
            received_time=received or str(receipt.accepted_at),
            expected_completion_time=effective,
            results_url=self.results_url(receipt.request_id),
            controller_id=controller,
            receipt=receipt.to_dict(),
        )

    def _recent(self, limit: int, before: int | None) -> tuple[list[Answer], int | None]:
        found = self._model.ledger.receipts(limit + 1, before)
        answers = [self._done(receipt) for receipt in found[:limit]]
        last = found[limit - 1].entry if len(found) > limit else None
        return answers, None if last is None else last.number

    # ── telling others ───────────────────────────────────────────────────────────────────────

    def _note(self, request_id: str, urls: Sequence[str]) -> None:
        try:
            self.callbacks.put(request_id, urls)
        except S3TError as error:
            _log.error("callbacks cannot be written down: %s", error)
            raise Problem(
                "unavailable",
                "the deletion is done, but who is to be told cannot be written down: repeat the "
                "same request",
                retry_after=10,
            ) from None

    def _told(self, request_id: str) -> dict[str, Any] | None:
        """What others are told of a request, once it has ended."""
        found = self._find(request_id)
        if found is None or found.request_status in ("pending", "in_progress"):
            return None
        told = found.model_dump(exclude_none=True)
        told.pop("receipt", None)  # those who may see it ask at results_url
        return told


def _deletion(request: DeletionRequest, request_id: str | None) -> Deletion:
    """What a body asks for.

    Raises:
        Problem: ``invalid_body``: it names nothing.
    """
    deletion = request.deletion(request_id)
    if not deletion.count:
        raise Problem("invalid_body", "nothing to delete: name at least one sample id or subject")
    return deletion


def _unknown(error: UnknownSampleError, request: DeletionRequest) -> Problem:
    """The refusal of what the run does not hold, or holds as public."""
    persons = set(error.subjects)
    named = (
        ("sample_ids", request.sample_ids, set(error.sample_ids)),
        ("subjects", request.subjects, persons),
        ("subject_identities", [p.identity_value for p in request.subject_identities], persons),
    )
    places = [
        f"{name}[{place}]"
        for name, values, unknown in named
        for place, value in enumerate(values)
        if value in unknown
    ]
    rest = f" and {len(places) - 10} more" if len(places) > 10 else ""
    shown = f"{', '.join(places[:10])}{rest}; nothing was deleted"
    if isinstance(error, PublicSampleError):
        return Problem("public_sample", f"cut aside as public: {shown}")
    return Problem("unknown_sample", f"unknown: {shown}")

"""Questions that come at the same time share a pass of the model.

    ask ─► waiting ──(batch_rows are there, or batch_wait is over)──► one thread: predict
              ▲          while a pass runs the next ones gather here        │
              └── over queue_rows: overloaded, and for how long             ▼
                                              each question its own answers, or its error

Invariants: a question's rows are answered in one pass, so they are of one view. What cannot be
answered fails its own question alone. The event loop only counts rows and wakes people up. Whoever
has gone, or has waited too long, is not computed for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from s3t.config.serve import ServeConfig
from s3t.errors import ExhaustedError, IntegrityError, UnavailableError
from s3t.server.http.problems import Problem
from s3t.server.metrics import Metrics

if TYPE_CHECKING:
    from s3t.service import S3T
    from s3t.serving.predictor import Prediction

__all__ = ["Batcher"]

_OF_ALL = (ExhaustedError, IntegrityError, UnavailableError)
"""Errors of the service rather than of a question."""
_WEIGHT = 0.2
"""Of the last pass in the measured rate."""


@dataclass(eq=False)
class _Question:
    rows: Sequence[Any]
    answer: asyncio.Future[Sequence[Prediction]]
    gone: Callable[[], bool]

    @property
    def is_wanted(self) -> bool:
        return not self.answer.done() and not self.gone()


class Batcher:
    """Gathers questions into passes. To be used on one event loop.

    Args:
        model: whose ``predict`` answers, in a thread of its own.
        config: rows of a pass and of the queue, and how long is waited.
        metrics: where passes are counted.
    """

    def __init__(self, model: S3T, config: ServeConfig, metrics: Metrics) -> None:
        self._model, self._config, self._metrics = model, config, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="s3t-predict")
        self._waiting: deque[_Question] = deque()
        self._rows = 0
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._open: deque[tuple[float, asyncio.Future[Sequence[Prediction]]]] = deque()
        self._clock: asyncio.TimerHandle | None = None
        self._rate: float | None = None  # rows a second, measured

    async def ask(
        self, rows: Sequence[Any], gone: Callable[[], bool] = lambda: False
    ) -> Sequence[Prediction]:
        """The answers of some rows, all of one view.

        Args:
            rows: read and checked as far as that goes without the model; at least one.
            gone: whether nobody waits for the answer any more.

        Raises:
            Problem: ``overloaded`` or ``timeout``.
            ClientDisconnect: it had gone.
            S3TError: as ``predict``.
        """
        if self._rows and self._rows + len(rows) > self._config.queue_rows:
            raise Problem(
                "overloaded",
                f"{self._rows} rows are waiting: repeat the request later",
                retry_after=self.seconds_to_empty(),
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Prediction]] = loop.create_future()
        self._waiting.append(_Question(rows, answer, gone))
        self._open.append((loop.time() + self._config.timeout, answer))
        if self._clock is None:
            self._clock = loop.call_at(self._open[0][0], self._expire)
        self._count(len(rows))
        self._see()
        return await answer

    def seconds_to_empty(self) -> float:
        """How long what waits now will take, by the measured rate."""
        return self._rows / self._rate if self._rate else 1.0

    def _expire(self) -> None:
        """Tell those that have waited too long. One timer for all of them, the oldest first."""
        now = asyncio.get_running_loop().time()
        while self._open and (self._open[0][0] <= now or self._open[0][1].done()):
            _, answer = self._open.popleft()
            if not answer.done():
                limit = f"no answer within {self._config.timeout:g} s"
                wait = self.seconds_to_empty()
                answer.set_exception(Problem("timeout", limit, retry_after=wait))
        self._clock = None
        if self._open:
            self._clock = asyncio.get_running_loop().call_at(self._open[0][0], self._expire)

    def close(self) -> None:
        """Wait for the pass under way."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    # ── gathering ────────────────────────────────────────────────────────────────────────────

    def _see(self) -> None:
        """Begin a pass, or wait a moment for more to share it."""
        if self._busy or not self._waiting:
            return
        if self._rows >= self._config.batch_rows or not self._config.batch_wait:
            self._begin()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._config.batch_wait, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        questions = self._next()
        if questions:
            self._busy = True
            loop, started = asyncio.get_running_loop(), time.perf_counter()
            future = self._thread.submit(self._answers, questions)
            future.add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._end, questions, done, started)
            )

    def _next(self) -> list[_Question]:
        """The questions of the next pass, the oldest first; one is never divided."""
        questions: list[_Question] = []
        room = self._config.batch_rows
        while self._waiting and (not questions or len(self._waiting[0].rows) <= room):
            question = self._waiting.popleft()
            self._count(-len(question.rows))
            if question.is_wanted:
                questions.append(question)
                room -= len(question.rows)
            elif not question.answer.done():
                self._metrics.dropped.inc(len(question.rows))
                question.answer.set_exception(ClientDisconnect())
        return questions

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._metrics.queued.set(self._rows)

    def _end(
        self,
        questions: list[_Question],
        done: Future[list[Sequence[Prediction] | Exception]],
        started: float,
    ) -> None:
        """Hand the answers out, and go on with what has gathered meanwhile."""
        rows, seconds = sum(len(one.rows) for one in questions), time.perf_counter() - started
        self._metrics.batch_rows.observe(rows)
        self._metrics.batch_seconds.observe(seconds)
        rate = rows / seconds
        self._rate = rate if self._rate is None else _WEIGHT * rate + (1 - _WEIGHT) * self._rate
        self._busy = False
        self._see()
        for question, found in zip(questions, done.result(), strict=True):
            if question.answer.done():
                continue  # it had waited too long
            if isinstance(found, Exception):
                question.answer.set_exception(found)
            else:
                question.answer.set_result(found)
        while self._open and self._open[0][1].done():
            self._open.popleft()

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def _answers(self, questions: list[_Question]) -> list[Sequence[Prediction] | Exception]:
        """What became of each question: together, or each alone if one of them spoils it."""
        try:
            found = iter(self._model.predict([row for one in questions for row in one.rows]))
            return [list(islice(found, len(one.rows))) for one in questions]
        except Exception as error:
            if len(questions) == 1 or isinstance(error, _OF_ALL):
                return [error] * len(questions)
        return [self._answers([question])[0] for question in questions]

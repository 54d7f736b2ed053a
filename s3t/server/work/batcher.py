"""Batches predictions: requests that wait at the same time share a forward pass.

    ask ─► waiting ──(batch_rows rows wait, or batch_wait s are over)──► one thread: S3T.predict
              ▲          during a pass the next requests wait here              │
              └── over queue_rows: 503 overloaded, with Retry-After             ▼
                                              each request gets its answers, or its error

Invariants: all rows of a request are in one pass, so one view answers them. A row that cannot be
answered fails its own request alone. The event loop only counts rows and sets results. Nothing is
computed for a client that has disconnected or a request that has timed out.
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

from s3t.config.aggregation import ServeConfig
from s3t.errors import ExhaustedError, IntegrityError, UnavailableError
from s3t.server.http.problems import Problem
from s3t.server.metrics import Metrics

if TYPE_CHECKING:
    from s3t.service import S3T
    from s3t.serving.predictor import Prediction

__all__ = ["Batcher"]

_OF_ALL = (ExhaustedError, IntegrityError, UnavailableError)
"""Errors of the service: they fail all requests of a pass."""
_WEIGHT = 0.2
"""Weight of the last pass in the moving average of the rate."""


@dataclass(eq=False)
class _Request:
    rows: Sequence[Any]
    answer: asyncio.Future[Sequence[Prediction]]
    gone: Callable[[], bool]

    @property
    def is_wanted(self) -> bool:
        return not self.answer.done() and not self.gone()


class Batcher:
    """Batches requests. To be used on one event loop.

    Args:
        model: its ``predict`` is called in one thread.
        config: ``batch_rows``, ``batch_wait`` (s), ``queue_rows`` and ``timeout`` (s).
        metrics: where passes and rows are counted.
    """

    def __init__(self, model: S3T, config: ServeConfig, metrics: Metrics) -> None:
        self._model, self._config, self._metrics = model, config, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="s3t-predict")
        self._waiting: deque[_Request] = deque()
        self._rows = 0
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._open: deque[tuple[float, asyncio.Future[Sequence[Prediction]]]] = deque()
        self._clock: asyncio.TimerHandle | None = None
        self._rate: float | None = None  # rows a second, moving average

    async def ask(
        self, rows: Sequence[Any], gone: Callable[[], bool] = lambda: False
    ) -> Sequence[Prediction]:
        """The answers to a request's rows, all of one view.

        Args:
            rows: at least one, checked as far as that goes without the model.
            gone: whether the client has disconnected.

        Raises:
            Problem: ``overloaded`` or ``timeout``.
            ClientDisconnect: the client had disconnected, and nothing was computed.
            S3TError: see ``S3T.predict``.
        """
        if self._rows and self._rows + len(rows) > self._config.queue_rows:
            raise Problem(
                "overloaded",
                f"{self._rows} rows are waiting: repeat the request later",
                retry_after=self.seconds_to_empty(),
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Prediction]] = loop.create_future()
        self._waiting.append(_Request(rows, answer, gone))
        self._open.append((loop.time() + self._config.timeout, answer))
        if self._clock is None:
            self._clock = loop.call_at(self._open[0][0], self._expire)
        self._count(len(rows))
        self._begin_or_wait()
        return await answer

    def seconds_to_empty(self) -> float:
        """Seconds until the rows that wait now are answered, estimated from the last passes."""
        return self._rows / self._rate if self._rate else 1.0

    def _expire(self) -> None:
        """Time out requests that have waited too long. One timer serves all, the oldest first."""
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
        """Wait for the pass that runs."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    # ── gathering ────────────────────────────────────────────────────────────────────────────

    def _begin_or_wait(self) -> None:
        """Begin a pass, or wait ``batch_wait`` seconds for more requests to share it."""
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
        requests = self._next()
        if requests:
            self._busy = True
            loop, started = asyncio.get_running_loop(), time.perf_counter()
            future = self._thread.submit(self._answers, requests)
            future.add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._end, requests, done, started)
            )

    def _next(self) -> list[_Request]:
        """The requests of the next pass, the oldest first; a request is never divided."""
        requests: list[_Request] = []
        room = self._config.batch_rows
        while self._waiting and (not requests or len(self._waiting[0].rows) <= room):
            request = self._waiting.popleft()
            self._count(-len(request.rows))
            if request.is_wanted:
                requests.append(request)
                room -= len(request.rows)
            elif not request.answer.done():
                self._metrics.dropped.inc(len(request.rows))
                request.answer.set_exception(ClientDisconnect())
        return requests

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._metrics.queued.set(self._rows)

    def _end(
        self,
        requests: list[_Request],
        done: Future[list[Sequence[Prediction] | Exception]],
        started: float,
    ) -> None:
        """Begin the next pass, and set the results of this one."""
        rows, seconds = sum(len(one.rows) for one in requests), time.perf_counter() - started
        self._metrics.batch_rows.observe(rows)
        self._metrics.batch_seconds.observe(seconds)
        rate = rows / seconds
        self._rate = rate if self._rate is None else _WEIGHT * rate + (1 - _WEIGHT) * self._rate
        self._busy = False
        self._begin_or_wait()
        for request, found in zip(requests, done.result(), strict=True):
            if request.answer.done():
                continue  # it had timed out
            if isinstance(found, Exception):
                request.answer.set_exception(found)
            else:
                request.answer.set_result(found)
        while self._open and self._open[0][1].done():
            self._open.popleft()

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def _answers(self, requests: list[_Request]) -> list[Sequence[Prediction] | Exception]:
        """Answers or error of each request. If one of them fails the pass, each is tried alone."""
        try:
            found = iter(self._model.predict([row for one in requests for row in one.rows]))
            return [list(islice(found, len(one.rows))) for one in requests]
        except Exception as error:
            if len(requests) == 1 or isinstance(error, _OF_ALL):
                return [error] * len(requests)
        return [self._answers([request])[0] for request in requests]

"""Completions under way: the threads that compute them, and a limit to their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from s3t.server.http.problems import Problem
from s3t.server.metrics import Metrics
from s3t.server.work.threads import ThreadPool

__all__ = ["Streams"]

Result = TypeVar("Result")


class Streams:
    """A thread pool for completions, and a limit to how many are under way. To be used on one event
    loop.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._threads = ThreadPool("completions", limit, limit)
        self._limit, self._metrics, self.count = limit, metrics, 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one completion while it is computed and sent.

        Raises:
            Problem: ``overloaded``.
        """
        if self.count >= self._limit:
            raise Problem(
                "overloaded", f"{self._limit} completions are under way already", retry_after=1
            )
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    async def run(self, call: Callable[[], Result]) -> Result:
        """The call's result, computed in a thread.

        Raises:
            Problem: ``overloaded``, or ``draining``; the call was not made.
        """
        return await self._threads.run(call)

    def close(self) -> None:
        """Wait for calls under way, and accept no more."""
        self._threads.close()

    def _add(self, number: int) -> None:
        self.count += number
        self._metrics.streams.set(self.count)

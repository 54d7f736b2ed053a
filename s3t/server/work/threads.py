"""Threads for calls that block, apart from the event loop and from predictions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from s3t.server.http.problems import Problem

__all__ = ["ThreadPool"]

Result = TypeVar("Result")


class ThreadPool:
    """A few threads of their own, and a limit to what may wait for them.

    A call that was begun is never broken off: whoever asked may be gone, its effect is not.

    Args:
        name: of the threads.
        threads: calls at once.
        limit: calls under way or waiting; above it there is a 503.
    """

    def __init__(self, name: str, threads: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"s3t-{name}")
        self._name, self._limit, self._taken = name, limit, 0

    async def run(self, call: Callable[[], Result]) -> Result:
        """The call's result. To be used on one event loop.

        Raises:
            Problem: ``overloaded``, or ``draining``; the call was not made.
        """
        if self._taken >= self._limit:
            raise Problem(
                "overloaded", f"{self._limit} {self._name} are under way already", retry_after=1
            )
        loop = asyncio.get_running_loop()
        try:
            future = self._pool.submit(call)
        except RuntimeError:
            raise Problem("draining", "the service is about to end", retry_after=5) from None
        self._taken += 1
        future.add_done_callback(lambda _: self._leave(loop))
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Wait for what is under way; take nothing more."""
        self._pool.shutdown(wait=True)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count one less, on the loop's own thread."""
        with suppress(RuntimeError):  # the loop has ended, and nobody asks any more
            loop.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self._taken -= 1

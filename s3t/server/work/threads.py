"""Thread pools for calls that block, so that the event loop goes on."""

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
    """A thread pool with a limit to the calls that wait for it.

    A call that has begun is finished, even if the client that asked for it disconnects.

    Args:
        name: of the calls, for messages and thread names.
        threads: calls that run at once.
        limit: calls that run or wait; more are refused with 503.
    """

    def __init__(self, name: str, threads: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"s3t-{name}")
        self._name, self._limit, self._taken = name, limit, 0

    async def run(self, call: Callable[[], Result]) -> Result:
        """The call's result, computed in a thread. To be used on one event loop.

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
        """Wait for calls that run or wait, and accept no more."""
        self._pool.shutdown(wait=True)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count one call less, in the loop's thread."""
        with suppress(RuntimeError):  # the loop has ended, and no call can come any more
            loop.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self._taken -= 1

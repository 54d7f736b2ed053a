"""The completions under way: the threads that write them, and how many there may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from s3t.server.http.problems import Problem
from s3t.server.work.threads import ThreadPool

__all__ = ["Streams"]


class Streams:
    """Threads for completions, and a limit to how many are under way.

    Args:
        limit: at once.
    """

    def __init__(self, limit: int) -> None:
        self.threads = ThreadPool("completions", limit, limit)
        self._limit, self.count = limit, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count one completion while it is written.

        Raises:
            Problem: ``overloaded``.
        """
        if self.count >= self._limit:
            raise Problem(
                "overloaded", f"{self._limit} completions are under way already", retry_after=1
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

"""A thread that works the outbox off, while other replicas do the same.

    look ─► claim ─► work, beating ─► release ─► look …
              └── another has it: left alone, unless it is silent for a whole lease

Invariant: what a thread works at it has claimed in the ledger. A claim says truly that no other
process works at it until its lease has run out (``ledger.outbox`` tells what happens if it has).
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from s3t.errors import S3TError, UnavailableError
from s3t.ledger import Claim, Lease, Outbox, clock

__all__ = ["LEASE", "Worker"]

_log = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds of silence after which a process is taken for dead, and its work is taken over; the same
in all processes."""
_BEATS = 4
"""Signs of life in one lease."""


class Worker:
    """One such thread.

    Args:
        name: of the thread, and of its work in the log.
        outbox: where the claims are.
        work: called again and again; does what is due, and leaves the rest.
        look: seconds between two calls.
    """

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        work: Callable[[], None],
        look: float,
    ) -> None:
        self._name, self._outbox, self._work = name, outbox, work
        self._look, self._lease = look, LEASE
        self._holder = uuid.uuid4().hex
        self._seen: dict[str, tuple[Claim, float]] = {}
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"s3t-{name}", daemon=True)
        self.ending = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: there is something."""
        self._wake.set()

    def close(self, seconds: float | None = None) -> None:
        """Finish what is under way; the rest is left to other processes, or the next start."""
        self.ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @contextmanager
    def claim(self, what: str) -> Iterator[Lease | None]:
        """Claim something for a while; None if another process has it.

        What it gives tells whether the claim still holds: ``left`` is above 0.
        """
        asked = clock()
        if not self._take(what):
            yield None
            return
        lease, ended = Lease(self._lease), threading.Event()
        lease.renew(asked)
        beats = threading.Thread(target=self._beat, args=(what, lease, ended), daemon=True)
        beats.start()
        try:
            yield lease
        finally:
            ended.set()
            beats.join()
            self._outbox.release(what, self._holder)

    def _take(self, what: str) -> bool:
        held = self._outbox.claim(what)
        if held is not None and held.holder != self._holder:
            known, since = self._seen.get(what, (None, 0.0))
            if known != held:
                self._seen[what] = held, clock()
                return False
            if clock() - since < self._lease:
                return False
            self._outbox.strike(what, held)
        self._seen.pop(what, None)
        return self._outbox.take(what, self._holder)

    def _beat(self, what: str, lease: Lease, ended: threading.Event) -> None:
        while not ended.wait(self._lease / _BEATS):
            asked = clock()
            try:
                if not self._outbox.beat(what, self._holder):
                    lease.end()
                    return
            except S3TError:
                continue  # the ledger is away; the lease runs out if it stays so
            lease.renew(asked)

    def _run(self) -> None:
        failed = ""
        while not self.ending:
            try:
                self._work()
                failed = ""
            except Exception as error:  # such as a ledger that is away: it must go on after it
                # others by their kind alone: a message may name samples
                why = str(error) if isinstance(error, UnavailableError) else type(error).__name__
                if why != failed:
                    _log.error("%s pause: %s", self._name, why)
                failed = why
            self._wake.wait(self._look)
            self._wake.clear()

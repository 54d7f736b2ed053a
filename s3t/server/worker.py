"""A thread that does the work in the ledger's outbox, which other replicas do as well.

    look ─► claim ─► work, with heartbeats ─► release ─► look …
              └── another process holds the claim: skip it, unless it sends no heartbeat for a lease

Invariant: a thread works only on what it has claimed in the ledger. While its lease has not run
out, no other process works on it (``ledger.outbox`` says what happens after that).
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from s3t.errors import S3TError, UnavailableError
from s3t.ledger import Holder, Lease, Outbox, clock

__all__ = ["LEASE", "Worker"]

_log = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds without a heartbeat after which a process is taken for dead and others take its work
over. It has to be the same in all processes."""
_BEATS = 4
"""Heartbeats in one lease."""


class Worker:
    """A thread that does what is due in the outbox.

    Args:
        name: of the thread, and of its work in the log.
        outbox: where claims are made.
        work: called repeatedly; does what is due and returns.
        look: seconds between two calls.

    Attributes:
        ending: ``close`` was called: ``work`` should return soon.
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
        self._seen: dict[str, tuple[Holder, float]] = {}
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"s3t-{name}", daemon=True)
        self.ending = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Call ``work`` now, since there is something to do."""
        self._wake.set()

    def close(self, seconds: float | None = None) -> None:
        """End the thread after the work under way. The rest stays in the outbox, for other
        processes or the next start.

        Args:
            seconds: how long to wait for the thread; None for as long as it takes.
        """
        self.ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @contextmanager
    def claim(self, what: str) -> Iterator[Lease | None]:
        """Holder something while the context lasts; None if another process holds it.

        The claim holds as long as the lease's ``left`` (seconds) is above 0.
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
                continue  # no ledger now; if it stays so, the lease runs out
            lease.renew(asked)

    def _run(self) -> None:
        failed = ""
        while not self.ending:
            try:
                self._work()
                failed = ""
            except Exception as error:  # such as a ledger that is away: the thread must survive it
                # of others only the type: a message may name samples
                why = str(error) if isinstance(error, UnavailableError) else type(error).__name__
                if why != failed:
                    _log.error("%s pause: %s", self._name, why)
                failed = why
            self._wake.wait(self._look)
            self._wake.clear()

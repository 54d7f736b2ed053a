"""This process as one of a run's replicas: its lease, and how it learns of new views.

    beater     beat, a quarter of a lease, beat, …              the lease runs from before each beat
    follower   told of a change ─► take the view up ─► readers of older ones gone ─► say so

Invariant: ``holds`` is True only while no deletion can have been called effective without this
process having left the view that it hit (``s3t.ledger.replicas`` says why). While the ledger cannot
be reached the lease runs on; when it has run out, ``holds`` is False until there is a new seat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from s3t.errors import S3TError
from s3t.ledger import Ledger, Watch
from s3t.ledger.replicas import Lease, Observer, clock
from s3t.serving.readers import Readers

__all__ = ["Follow", "Seat", "receipt", "settle_left", "settled"]

_log = logging.getLogger(__name__)

Follow = Callable[[float], int]
"""Takes the ledger's present view up and waits, at most so many seconds, for answers under way on
older ones; returns the oldest view that anything may still come from."""

Untold = Callable[[], str | None]
"""Tells the store of deletions; why that failed, None if it knows of all, or there is none."""

_POLL = 0.002
_POLL_MOST = 0.05


class Seat:
    """A replica's place in the ledger, kept by two threads until ``close``.

    Args:
        ledger: of the run.
        name: what people call the replica.
        lease: seconds.
        follow: brings this process to the ledger's view.
        readers: those that answer for the run without a lease, if there can be any.
        untold: tells the store of deletions; why that failed, None if it knows of them all.

    Raises:
        UnavailableError: the ledger cannot be reached.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        lease: float,
        follow: Follow,
        readers: Readers | None = None,
        untold: Untold = lambda: None,
    ) -> None:
        self.name, self.lease = name, Lease(lease)
        self._ledger, self._follow = ledger, follow
        self._readers, self._untold = readers, untold
        self._closing = threading.Event()
        self._pace = lease / 4
        self._watching: Watch | None = None
        self.replica = ""
        self._sit()
        self._threads = [
            threading.Thread(target=self._keep, args=(work,), name=f"s3t-{what}", daemon=True)
            for what, work in (
                ("beats", self._beat),
                ("views", self._watch),
                ("deletions", self._settle),
            )
        ]
        for thread in self._threads:
            thread.start()

    def holds(self) -> bool:
        """Whether this process may answer."""
        return self.lease.left > 0

    def close(self) -> None:
        """Give the seat back. The caller no longer answers."""
        self._closing.set()
        self.lease.end()
        if self._watching is not None:
            self._watching.stop()
        for thread in self._threads:
            thread.join(timeout=8 * self._pace)
        try:
            self._ledger.replicas.leave(self.replica)
        except S3TError as error:
            _log.warning("replica %s could not leave, its lease runs out: %s", self.name, error)

    def _sit(self) -> None:
        """Take a seat; the lease begins once nothing older than its view is under way here."""
        asked = clock()
        seat = self._ledger.replicas.join(self.name, self.lease.seconds)
        self.replica = seat.replica
        while self._follow(self._pace) < seat.view and not self._closing.is_set():
            pass
        self.lease.renew(asked)

    def _beat(self) -> None:
        """Beats; a seat that was lost is taken anew."""
        while not self._closing.wait(self._pace):
            asked = clock()
            if self._ledger.replicas.beat(self.replica):
                self.lease.renew(asked)
            else:
                self.lease.end()
                _log.warning("replica %s had lost its lease, and takes a new one", self.name)
                self._sit()

    def _watch(self) -> None:
        """Follows the ledger's view; now and then strikes out who is gone."""
        table, observer = self._ledger.replicas, Observer(self._ledger.replicas)
        told, looked = ("", -1), 0.0
        with self._ledger.watch() as self._watching:
            while not self._closing.is_set():
                known = self.replica, self._follow(self._pace)
                if known != told:
                    table.left(*known)
                    told = known
                if clock() - looked >= self._pace:
                    looked = clock()
                    observer.look([one for one in table.all() if one.replica != self.replica])
                self._watching.wait(self._pace)

    def _settle(self) -> None:
        """Tells the store of deletions and settles them, if nobody waits for them any more; in a
        thread of its own, since a store that does not answer must not hold up the others."""
        while not self._closing.is_set():
            settle_left(self._ledger, self._readers, self._untold)
            self._closing.wait(self._pace)

    def _keep(self, work: Callable[[], None]) -> None:
        """Do the work again and again, whatever goes wrong: who beats, and no longer follows, would
        hold up every deletion."""
        said = False
        while not self._closing.is_set():
            try:
                work()
            except Exception as error:
                if not said:
                    why = error if isinstance(error, S3TError) else type(error).__name__
                    _log.warning("replica %s: %s", self.name, why)
                said = True
                self._closing.wait(min(0.5, self._pace / 2))


def settled(
    ledger: Ledger, request_id: str, view: int, own: str = "", told: bool = True
) -> str | None:
    """Wait until a deletion is effective on all replicas: each has left it behind, or is gone.

    Args:
        ledger: of the run.
        request_id: of the deletion, which is durable.
        view: its view.
        own: a replica that has left the older views already.
        told: whether the store knows of it; else no moment is written down yet.

    Returns:
        when it was so, ISO 8601; None if the store was not told.

    Raises:
        UnavailableError: the ledger cannot be reached meanwhile.
    """
    observer, pause = Observer(ledger.replicas), _POLL
    while True:
        if not observer.look(ledger.replicas.behind(view, own)):
            if not told:
                return None
            at = ledger.replicas.settle(request_id, own)
            if at is not None:
                return at
        time.sleep(pause)
        pause = min(2 * pause, _POLL_MOST)


def settle_left(ledger: Ledger, readers: Readers | None, untold: Untold = lambda: None) -> None:
    """Write down that deletions are effective which were not yet when they were acknowledged.

    Args:
        ledger: of the run.
        readers, untold: see ``Seat``.

    Raises:
        UnavailableError: the ledger cannot be reached.
    """
    pending = ledger.replicas.pending()
    if not pending or untold() is not None:
        return
    for request in pending:
        if readers is None or not readers.behind(ledger.receipt(request)["view"]):
            ledger.replicas.settle(request)


def receipt(ledger: Ledger, request_id: str, untold: Untold = lambda: None) -> dict[str, Any]:
    """A stored receipt; who asks for it looks whether the deletion is effective by now.

    Raises:
        InputError: no such request.
    """
    found = ledger.receipt(request_id)
    if found["effective_at"] is None:
        with suppress(S3TError):  # the receipt can be told all the same
            settle_left(ledger, Readers.of(ledger), untold)
            found = ledger.receipt(request_id)
    return found

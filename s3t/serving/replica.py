"""This process as one of a run's replicas: its lease, and how it learns of new views.

    renewer    renew, a quarter of a lease, renew, …            the lease runs from before each one
    follower   told of a change ─► take the view up ─► answers on older ones end ─► say so
    settler    tell the store ─► write down which deletions are effective

Invariant: while ``holds`` is True, every deletion that is told to be effective hit a view from
which this process no longer answers (``s3t.ledger.replicas`` says why). While the ledger cannot be
reached the lease runs on. Once it has run out, ``holds`` is False until there is a new one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from s3t.errors import S3TError, UnavailableError
from s3t.ledger import Ledger, Watch
from s3t.ledger.replicas import Lease, Observer, clock
from s3t.serving.effective import Tell, settle_pending
from s3t.serving.readers import Readers

__all__ = ["Follower", "ReplicaLease"]

_log = logging.getLogger(__name__)

Follower = Callable[[float], int]
"""Takes the ledger's present view up and waits, at most so many seconds, for answers under way on
older ones; returns the oldest view that anything may still come from."""


class ReplicaLease:
    """By what a replica answers: a lease in the ledger, renewed by threads until ``close``.

    Args:
        ledger: of the run.
        name: what people call the replica.
        lease: seconds.
        follow: brings this process to the ledger's view.
        readers: those that answer for the run without a lease, if there can be any.
        tell: tells the store of deletions.

    Attributes:
        replica: the replica's own name in the ledger, a new one with each new lease.

    Raises:
        UnavailableError: the ledger cannot be reached.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        lease: float,
        follow: Follower,
        readers: Readers | None,
        tell: Tell,
    ) -> None:
        self.name, self._lease = name, Lease(lease)
        self._ledger, self._follow = ledger, follow
        self._readers, self._tell = readers, tell
        self._closing = threading.Event()
        self._pace = lease / 4
        self._watching: Watch | None = None
        self.replica = ""
        self._take()
        self._threads = [
            threading.Thread(target=self._keep, args=(work,), name=f"s3t-{what}", daemon=True)
            for what, work in (
                ("beats", self._renew),
                ("views", self._watch),
                ("deletions", self._settle),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def left(self) -> float:
        """Seconds that are left; not over 0 if the lease has run out."""
        return self._lease.left

    def holds(self) -> bool:
        """Whether this process may answer."""
        return self.left > 0

    def refuse_if_ended(self) -> None:
        """Refuse to answer without a lease.

        Raises:
            UnavailableError: it has run out.
        """
        if not self.holds():
            raise UnavailableError(
                f"replica {self.name} has not reached the ledger for {self._lease.seconds} s, its "
                "lease, so it cannot know what was deleted: ask another, or wait until it is back"
            )

    def close(self) -> None:
        """Give the lease back. The caller no longer answers."""
        self._closing.set()
        self._lease.end()
        if self._watching is not None:
            self._watching.stop()
        for thread in self._threads:
            thread.join(timeout=8 * self._pace)
        try:
            self._ledger.replicas.leave(self.replica)
        except S3TError as error:
            _log.warning("replica %s could not leave, its lease runs out: %s", self.name, error)

    def _take(self) -> None:
        """Take a lease; it begins once nothing older than its view is under way here."""
        asked = clock()
        joined = self._ledger.replicas.join(self.name, self._lease.seconds)
        self.replica = joined.replica
        while self._follow(self._pace) < joined.view and not self._closing.is_set():
            pass
        self._lease.renew(asked)

    def _renew(self) -> None:
        """Renews the lease; takes a new one if it was lost."""
        while not self._closing.wait(self._pace):
            asked = clock()
            if self._ledger.replicas.beat(self.replica):
                self._lease.renew(asked)
            else:
                self._lease.end()
                _log.warning("replica %s had lost its lease, and takes a new one", self.name)
                self._take()

    def _watch(self) -> None:
        """Follows the ledger's view; now and then strikes out replicas that are gone."""
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
        """Tells the store of deletions and settles those that no caller waits for any more. It has
        a thread of its own, since a store that does not answer must not hold up the others."""
        while not self._closing.is_set():
            settle_pending(self._ledger, self._readers, self._tell)
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

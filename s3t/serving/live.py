"""What a process serves: the model, the view in force, and its seat among the replicas.

    looking   an answer looks at the ledger before and after,          library, commands, SQLite
              and holds a lock meanwhile (``readers``)
    leased    it goes by the seat's lease; the follower swaps views    replicas on PostgreSQL

Invariant (E6): an answer is given only if, after it was computed, nothing that it came from was
dead as far as the ledger, or the lease, can tell; and a deletion is
effective only when all answers that came before have ended, in every process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from s3t.errors import (
    DamagedNodeError,
    ExhaustedError,
    IntegrityError,
    S3TError,
    UnavailableError,
)
from s3t.plan.trie import Node
from s3t.run import prove_locks
from s3t.run.deletion import Forgetting, Receipt
from s3t.serving.readers import Readers
from s3t.serving.replica import Seat, settle_left, settled
from s3t.serving.views import View, Views
from s3t.types import Draw, NodeKey

if TYPE_CHECKING:
    from s3t.plan import Plan
    from s3t.serving.ensemble.ensemble import Ensemble
    from s3t.serving.generation.completion import Completion
    from s3t.serving.predictor import Predictor
    from s3t.store import Stamp

__all__ = ["Serving"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
"""How often the files are looked at, at most."""

Answer = TypeVar("Answer")


class Serving:
    """The serving side of a run, shared by threads. The model is loaded when first needed."""

    def __init__(self, forgetting: Forgetting) -> None:
        self._forgetting = forgetting
        self._lock = threading.RLock()  # who builds views; deletions hold it too
        self._readers = Readers.of(forgetting.ledger)
        self._views = Views(self._readers)
        self._model: Predictor | None = None
        self._has_served = False
        self._looked, self._told = -_LOOK_SECONDS, ""
        self._catching: threading.Thread | None = None
        self._behind = False
        self.seat: Seat | None = None

    def model(self) -> Predictor:
        """The model, loaded once.

        Raises:
            InputError, IntegrityError: see ``Predictor``.
        """
        if self._model is not None:  # without the lock, which a deletion holds while it waits
            return self._model
        with self._lock:
            if self._model is None:
                from s3t.serving.predictor import Predictor

                forgetting = self._forgetting
                forgetting.prove_ledger()
                self._model = Predictor(forgetting.run, forgetting.config, forgetting.plan)
            return self._model

    def join(self, name: str, lease: float | None) -> None:
        """Put a view in force, and answer by a lease from now on, if one is given.

        Raises:
            InputError: the ledger is a file, and locks do not hold where it or the run lies.
            S3TError: see ``S3T.join``.
        """
        if self._readers is not None:
            for folder in {self._forgetting.run.root.resolve(), self._readers.path.parent}:
                prove_locks(folder)
        model = self.model()
        with self._lock:
            self._swap(model)
        ledger = self._forgetting.ledger
        if lease is not None and self.seat is None:
            self.seat = Seat(
                ledger, name, lease, self._follow, self._readers, self._forgetting.untold
            )
            self._views.untold()  # it has left all that was before its seat
        elif self._readers is not None:
            settle_left(ledger, self._readers, self._forgetting.untold)

    def leave(self) -> None:
        """Give the seat back, if there is one."""
        if self.seat is not None:
            self.seat.close()
        if self._catching is not None:
            self._catching.join()

    def readiness(self) -> str | None:
        """Why no answer can be given now; None if it can, as far as this process knows.

        Builds nothing itself. Where another process has come to another view, and no question has
        come here since, that view is taken up in a thread: who is asked nothing until it is ready
        would else never be, and would keep what is dead in memory.
        """
        view = self._views.current
        if view is None:
            if self._model is not None and self.seat is None:
                self._catch_up_apart()
            return "loading"
        if self.seat is not None and not self.seat.holds():
            return "the lease has run out: the ledger cannot be reached"
        try:
            with self._looking():
                behind = self.seat is None and view.version != self._forgetting.ledger.view()
            if behind:
                self._catch_up_apart()
            else:
                self._check_files(view)
        except S3TError:
            return "files of the run were replaced or removed under the service, its log says which"
        if behind and self._behind:
            return "another view cannot be taken up, the log says why"
        return "exhausted" if view.ensemble is None else None

    def _catch_up_apart(self) -> None:
        if self._catching is None or not self._catching.is_alive():
            self._catching = threading.Thread(target=self._caught_up, name="s3t-view", daemon=True)
            self._catching.start()

    def _caught_up(self) -> None:
        try:
            self.refresh()
            self._behind = False
        except Exception as error:  # told by readiness, which tries again
            if not self._behind:
                _log.error("another view cannot be taken up: %s", _cause(error))
            self._behind = True

    # ── deletions ────────────────────────────────────────────────────────────────────────────

    def delete(self, commit: Callable[[], Receipt]) -> Receipt:
        """Commit a deletion, and let nothing older than its view answer from then on."""
        with self._lock:
            receipt = commit()
            if not receipt.dry_run and self._model is not None:
                self._take_up(self._model, receipt.view)
        return receipt

    def settled(self, request: str, view: int, told: bool = True) -> str | None:
        """Wait for all who are on views before a deletion's, here, in other processes, on replicas.

        Another process without a lease is waited for as long as a question may take
        (``serve.timeout``): it may hang. Its lock stays, and who looks later settles the deletion.

        Args:
            request: id of the deletion.
            view: its view.
            told: whether the store knows of it; it is not effective before.

        Returns:
            when the deletion was effective, ISO 8601; None if it is not yet, or that cannot be
            seen.
        """
        self._views.wait(view)
        own = "" if self.seat is None else self.seat.replica
        ledger, readers = self._forgetting.ledger, self._readers
        try:
            if readers is not None and not readers.wait(view, self._patience):
                _log.error(
                    "request %s is durable and not yet effective: a process has not ended an "
                    "answer of before for %g s (fuser -v %s names it)",
                    request,
                    self._patience,
                    readers.path,
                )
                return None
            at = settled(ledger, request, view, own, told)
            if readers is not None and told:
                settle_left(ledger, readers)
            return at
        except S3TError as error:
            _log.error("request %s is durable; %s", request, error)
            return None

    def settle_left(self) -> None:
        """Settle deletions that the store could not be told of when they were made."""
        if self._forgetting.run.store.depot is not None:
            settle_left(self._forgetting.ledger, self._readers, self._forgetting.untold)

    @property
    def _patience(self) -> float:
        return self._forgetting.config.serve.timeout

    def refresh(self, anew: bool = False) -> None:
        """Put the ledger's view in force, if anything is served; drop tensors of what is dead.

        Args:
            anew: read and prove every node once more.
        """
        with self._lock:
            if self._model is None:
                return
            if anew:
                self._model.keep_only(lambda _: False)
            self._swap(self._model, anew)

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def answer(self, compute: Callable[[Ensemble, int], Answer]) -> Answer:
        """Compute on the view in force, and anew if a deletion has hit that view meanwhile.

        Ends, because each lost round has lost nodes for good.

        Raises:
            ExhaustedError: no shard has a prefix left, and the config names no fallback.
            IntegrityError: a block that should serve is damaged.
            UnavailableError: the ledger cannot be reached, or the lease has run out.
        """
        return self._answered(lambda ensemble, view: compute(ensemble, view.version))

    def _answered(self, compute: Callable[[Ensemble, View], Answer]) -> Answer:
        from s3t.serving.generation.completion import ViewOutdated

        model = self.model()
        while True:
            view = self._pin(model)
            try:
                if view.ensemble is None:
                    self._forgetting.prove_exhausted()
                    raise ExhaustedError(
                        f"{self._forgetting.run.root}: no shard has a surviving prefix; train a "
                        "new run, or set aggregation.on_exhausted=base to answer with the base"
                    )
                answer = compute(view.ensemble, view)
                if self._still_serves(view):
                    return answer
            except ViewOutdated:
                continue
            finally:
                self._views.unpin(view)

    def completions(self, prompts: Sequence[Sequence[int]], draw: Draw) -> list[Completion]:
        """Continue token ids on one view; begun anew if a deletion hits that view meanwhile.

        Raises:
            ExhaustedError, IntegrityError, UnavailableError: as ``answer``.
        """
        generator = self.model().text_generator
        return self._answered(
            lambda ensemble, view: generator.completions(
                ensemble, prompts, draw, view.version, lambda: not self._still_serves(view)
            )
        )

    @contextmanager
    def hold(self, version: int) -> Iterator[bool]:
        """Pin what is in force while an answer of a view is sent; see ``S3T.hold``."""
        pinned = self._views.pin()
        if pinned is None:
            yield False
            return
        try:
            if self.seat is not None:
                good = self.seat.holds()
            else:
                good = self._forgetting.ledger.view() == pinned.version
            yield good and not self.spoilt(version)
        finally:
            self._views.unpin(pinned)

    def spoilt(self, version: int) -> bool:
        """Whether something that served at a view has died since, as far as is known here."""
        return self._views.spoilt(version)

    def is_sound(self, version: int) -> bool:
        """Whether all that served at a view lives, as the ledger, or the lease, has it now.

        Raises:
            IntegrityError, UnavailableError: as ``answer``.
        """
        pinned = self._pin(self.model())  # the ledger's, so that ``spoilt`` is up to date
        try:
            return not self.spoilt(version)
        finally:
            self._views.unpin(pinned)

    # ── views ────────────────────────────────────────────────────────────────────────────────

    def _pin(self, model: Predictor) -> View:
        """The view in force, with this reader counted on it; without a lease, the ledger's."""
        while True:
            view = self._views.pin()
            if view is not None:
                try:
                    # pinned first, looked up after: a deletion that the look misses sees the pin
                    if self._is_in_force(view):
                        return view
                except BaseException:
                    self._views.unpin(view)
                    raise
                self._views.unpin(view)
            with self._lock:
                self._swap(model)

    def _is_in_force(self, view: View) -> bool:
        if self.seat is None:
            return view.version == self._forgetting.ledger.view() and self._check_files(view)
        self._vouch(self.seat)
        return self._check_files(view)  # who follows the ledger has put it in force

    def _check_files(self, view: View) -> bool:
        """See that the files are those that were read, a few times a second; see ``Forgetting``."""
        if time.monotonic() < self._looked + _LOOK_SECONDS:
            return True
        with self._looking():
            same = self._forgetting.check_files(view.files, view.version)
        if self._told:
            _log.warning("the files of %s are as they were: answering", self._forgetting.run.root)
        self._told, self._looked = "", time.monotonic()
        return same

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Log why the run cannot be looked at, once while it is so."""
        try:
            yield
        except S3TError as error:
            if str(error) != self._told:
                _log.error("nothing answers: %s", error)
            self._told = str(error)
            raise

    def _still_serves(self, view: View) -> bool:
        if self.seat is not None:
            self._vouch(self.seat)
            return not self.spoilt(view.version)
        if self._forgetting.ledger.view() == view.version:
            return True
        self._forgetting.catch_up()
        return all(node is None or self._forgetting.is_alive(node.key) for node in view.nodes)

    def _vouch(self, seat: Seat) -> None:
        if not seat.holds():
            raise UnavailableError(
                f"replica {seat.name} has not reached the ledger for {seat.lease.seconds} s, its "
                "lease, so it cannot know what was deleted: ask another, or wait until it is back"
            )

    def _swap(self, model: Predictor, anew: bool = False) -> None:
        """Put the view of the ledger's version in force. Needs ``_lock``."""
        version, nodes, plan = self._forgetting.catch_up()
        current = self._views.current
        if current is not None and current.version == version and not anew:
            return
        if current is not None and current.nodes == nodes and not anew:
            ensemble, files = current.ensemble, current.files
        else:
            known = {} if current is None or anew else current.files
            nodes, ensemble, files = self._build(model, nodes, plan, known)
        self._views.put(View(version, nodes, ensemble, files), self._forgetting.is_alive)
        self._has_served = True
        model.keep_only(self._forgetting.is_alive)
        if left := self._forgetting.forget_copies():
            _log.error("copies of dead nodes cannot be removed: %s", ", ".join(left))

    def _build(
        self,
        model: Predictor,
        nodes: tuple[Node | None, ...],
        plan: Plan,
        known: Mapping[NodeKey, Stamp | None],
    ) -> tuple[tuple[Node | None, ...], Ensemble | None, dict[NodeKey, Stamp | None]]:
        """The ensemble of the nodes, and the stamps of their files.

        A damaged block is an error when a run is first served; later, when a deletion must not
        fail for it, the shard falls back to a shorter prefix.
        """
        if not self._has_served:
            self._forgetting.prove()
        while True:
            try:
                if all(node is None for node in nodes):
                    self._forgetting.prove_exhausted()
                keys = [one.key for last in nodes if last for one in plan.forest.lineage(last.key)]
                files = self._forgetting.run.store.stamps(keys)
                files.update((key, known[key]) for key in files if key in known)
                return nodes, model.ensemble(nodes, plan), files
            except DamagedNodeError as error:
                if not self._has_served:
                    raise
                if all(node is None for node in nodes):
                    return nodes, None, {}  # no fallback either: who asks is told why
                _log.error("%s; serving a shorter prefix", error)
                self._forgetting.lose(NodeKey(error.key))
                _, nodes, plan = self._forgetting.catch_up()

    def _take_up(self, model: Predictor, version: int) -> None:
        """Swap to the ledger's view; if that fails, nothing older than ``version`` answers."""
        try:
            self._swap(model)
        except Exception as error:  # such as no memory left: whatever it is, the old view must go
            _log.error("nothing answers until there is a new view: %s", _cause(error))
            self._views.drop(version)

    def _follow(self, seconds: float) -> int:
        """Bring this replica to the ledger's view; see ``replica.Follow``."""
        current = self._views.current
        try:
            version = self._forgetting.ledger.view()
        except IntegrityError as error:
            with self._lock:
                _log.error("nothing answers until the ledger is sound: %s", error)
                self._views.drop(0 if current is None else current.version + 1)
            raise
        if current is None or current.version != version:
            with self._lock:
                self._take_up(self.model(), version)
        self._views.wait(version, seconds)
        return self._views.oldest(version)


def _cause(error: Exception) -> str:
    """Why something failed, for the log; of what is not ours its kind: a message may name ids."""
    return str(error) if isinstance(error, S3TError) else type(error).__name__

"""What a process serves: the model, the view in force, and its replica lease if it has one.

    looking   an answer looks at the ledger before and after,          library, commands, SQLite
              and holds a lock meanwhile (``readers``)
    leased    it goes by the replica lease; the follower swaps views   replicas on PostgreSQL

Invariant (E6): an answer is given only if, after it was computed, nothing that it came from was
dead as far as the ledger, or the lease, can tell. A deletion is effective only when all answers
that came before have ended, in every process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from s3t.errors import DamagedNodeError, ExhaustedError, IntegrityError, S3TError
from s3t.ledger import Deletion, Receipt
from s3t.plan.blocks import serving_nodes
from s3t.plan.trie import Node
from s3t.run import prove_locks
from s3t.run.deletion import delete
from s3t.run.opened import OpenRun
from s3t.serving.background import BackgroundRefresh, cause_of
from s3t.serving.effective import settle_pending, wait_until_effective
from s3t.serving.file_check import FileCheck
from s3t.serving.readers import Readers
from s3t.serving.replica import ReplicaLease
from s3t.serving.views import ServingView, Views
from s3t.system.progress import Progress
from s3t.types import Draw, NodeKey

if TYPE_CHECKING:
    from s3t.plan import Plan
    from s3t.serving.ensemble.ensemble import Ensemble
    from s3t.serving.ensemble.mixture import Mixture
    from s3t.serving.fitting import WeightFitter, WeightState
    from s3t.serving.generation.completion import Completion
    from s3t.serving.predictor import Evaluation, Predictor, Tally
    from s3t.store import Stamp

__all__ = ["Serving"]

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Serving:
    """The serving side of a run, shared by threads. The model is loaded when first needed.

    Attributes:
        lease: the replica lease by which this process answers; None if it looks at the ledger for
            each answer.
    """

    def __init__(self, opened: OpenRun) -> None:
        self._opened = opened
        self._lock = threading.RLock()  # who builds views; deletions hold it too
        self._files = FileCheck(opened)
        self._readers = Readers.of(opened.ledger)
        self._views = Views(self._readers)
        self._model: Predictor | None = None
        self._has_served = False
        self._catching = BackgroundRefresh(self.refresh)
        self._fitter: WeightFitter | None = None
        self.lease: ReplicaLease | None = None

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

                opened = self._opened
                opened.prove_ledger()
                self._model = Predictor(opened.run, opened.config, opened.plan)
                self._fitter = self._fitter_of(self._model)
            return self._model

    # ── as a replica ─────────────────────────────────────────────────────────────────────────

    def join(self, name: str, lease: float | None) -> None:
        """Put a view in force, and answer by a lease from now on, if one is given.

        Args:
            name: what people call this replica.
            lease: seconds.

        Raises:
            InputError: the ledger is a file, and locks do not hold where it or the run lies.
            S3TError: see ``S3T.join``.
        """
        if self._readers is not None:
            for folder in {self._opened.run.root.resolve(), self._readers.path.parent}:
                prove_locks(folder)
        model = self.model()
        with self._lock:
            self._swap(model)
        ledger, tell = self._opened.ledger, self._opened.notifier.tell
        if lease is not None and self.lease is None:
            self.lease = ReplicaLease(ledger, name, lease, self._follow, self._readers, tell)
            self._views.unlock()  # it has left all that was before its lease
        elif self._readers is not None:
            settle_pending(ledger, self._readers, tell)

    def leave(self) -> None:
        """Give the replica lease back, if there is one."""
        if self.lease is not None:
            self.lease.close()
        self._catching.join()
        if self._fitter is not None:
            self._fitter.wait()

    @property
    def lease_left(self) -> float | None:
        """Seconds for which this replica may answer without the ledger; None without a lease."""
        return None if self.lease is None else self.lease.left

    def readiness(self) -> str | None:
        """Why no answer can be given now; None if it can, as far as this process knows.

        Builds nothing itself. Where the ledger has another view, a thread takes that up: a service
        that is asked nothing until it is ready would else never be ready.
        """
        current = self._views.current
        if current is None:
            if self._model is not None and self.lease is None:
                self._catching.start()
            return "loading"
        if self.lease is not None and not self.lease.holds():
            return "the lease has run out: the ledger cannot be reached"
        try:
            with self._files.logged():
                behind = self.lease is None and current.view != self._opened.ledger.view()
            if behind:
                self._catching.start()
            else:
                self._files.holds(current.files, current.view)
        except S3TError:
            return "files of the run were replaced or removed under the service, its log says which"
        if behind and self._catching.failed:
            return "another view cannot be taken up, the log says why"
        return "exhausted" if current.ensemble is None else None

    def reload(self) -> None:
        """Read plan and nodes again, prove what serves once more, and go on with that.

        Raises:
            S3TError: the ledger or the plan cannot be read; what served goes on.
        """
        self._opened.reload()
        self.refresh(again=True)

    # ── deletions ────────────────────────────────────────────────────────────────────────────

    def delete(self, deletion: Deletion) -> Receipt:
        """Make a deletion: commit it, take its view up, tell the store, wait until it is effective.

        Raises:
            S3TError: see ``S3T.deactivate``.
        """
        started = time.perf_counter()
        with self._lock:
            receipt = delete(self._opened, deletion)
            if not receipt.dry_run and self._model is not None:
                self._take_up(self._model, receipt.view)
        if not receipt.dry_run:
            untold = self._opened.notifier.tell()
            self._views.wait(receipt.view)
            effective_at = wait_until_effective(
                self._opened.ledger,
                receipt,
                self._readers,
                patience=self._opened.config.serve.timeout,
                own="" if self.lease is None else self.lease.replica,
                told=untold is None,
            )
            receipt = replace(receipt, untold=untold, effective_at=effective_at)
        return replace(receipt, seconds=round(time.perf_counter() - started, 6))

    def settle_pending(self) -> None:
        """Settle deletions that the store could not be told of when they were made."""
        opened = self._opened
        if opened.run.store.depot is not None:
            settle_pending(opened.ledger, self._readers, opened.notifier.tell)

    def refresh(self, again: bool = False) -> None:
        """Put the ledger's view in force, if anything is served; drop tensors of what is dead.

        Args:
            again: read and prove every node once more.
        """
        with self._lock:
            if self._model is None:
                return
            if again:
                self._model.keep_only(lambda _: False)
            self._swap(self._model, again)

    # ── weights ──────────────────────────────────────────────────────────────────────────────────

    def settle_weights(self) -> None:
        """If weights are to be fitted, put the ledger's view in force, and wait until it has them,
        or until they were given up. Answers do not wait for that.

        Raises:
            S3TError: no view can be put in force.
        """
        model = self.model()
        if self._fitter is not None:
            self._views.unpin(self._pin(model))
            self._fitter.wait()

    @property
    def weights(self) -> WeightState | None:
        """How fitted weights are in this process; None if none are to be fitted, or nothing has
        been answered yet."""
        return None if self._fitter is None else self._fitter.state(self._views.current)

    def evaluation(self, ends: Callable[[], bool] | None = None) -> Evaluation | None:
        """How the view in force does on the public test rows, once its weights are fitted.

        The rows are answered in parts, so that a deletion waits for one part; if another view or
        other weights come meanwhile, all begins again.

        Args:
            ends: asked before each part; if it says so, there is no evaluation.

        Raises:
            ExhaustedError, IntegrityError, UnavailableError: as ``answer``.
        """
        model = self.model()
        while True:
            self.settle_weights()
            tallies: list[Tally] = []
            views: list[ServingView] = []
            with Progress("evaluating", len(model.test_parts), ends is None) as progress:
                for part in model.test_parts:
                    if ends is not None and ends():
                        return None
                    tally, pinned = self._answered(partial(_tallied, model, part))
                    tallies.append(tally)
                    views.append(pinned)
                    progress.update(1)
                    if pinned is not views[0]:
                        break
                else:
                    found = model.evaluation_of(tallies, views[0].view)
                    return replace(found, base=model.base_value(), validation=views[0].mixture)

    def record_evaluation(self, found: Evaluation) -> None:
        """Have status tell an evaluation of the view in force, until the next deletion, and the
        page its figures until the next purge."""
        current = self._views.current
        if current is None or current.view != found.view:
            return
        nodes = [node.key for node in current.nodes if node is not None]
        fitted = None if found.validation is None else found.validation.to_dict()
        values = {name: getattr(found, name) for name in ("metric", "value", "base", "samples")}
        try:
            of = {"nodes": nodes, "weights": fitted}
            self._opened.ledger.served.record_evaluation(found.view, of, values)
        except S3TError as error:
            _log.warning("the evaluation is not recorded: %s", error)

    def _fitter_of(self, model: Predictor) -> WeightFitter | None:
        """What fits the weights of views; None if the config asks for others."""
        if self._opened.config.aggregation.weights != "public":
            return None
        from s3t.serving.fitting import WeightFitter
        from s3t.serving.weights import PublicWeights

        public = PublicWeights(self._opened, model)

        def put(served: ServingView, mixture: Mixture) -> None:
            with self._lock:
                self._put_weighted(model, served, mixture)

        def fit(served: ServingView) -> Mixture | None:
            assert served.unweighted is not None  # a view without an ensemble is not fitted
            return public.of(served.view, served.nodes, served.unweighted, served.mixture)

        return WeightFitter(
            fit,
            lambda served: self._views.current is served,
            put,
        )

    def _put_weighted(self, model: Predictor, served: ServingView, mixture: Mixture) -> None:
        """Put a view in force again with its weights, unless another one is. Needs ``_lock``."""
        if self._views.current is not served or served.mixture == mixture:
            return
        uniform = served.unweighted
        assert uniform is not None  # else nothing was fitted
        new = replace(
            served,
            ensemble=model.weighted(uniform, mixture),
            mixture=mixture,
            uniform=uniform,
            readers=0,
        )
        self._views.put(new, self._opened.is_alive)

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def answer(self, compute: Callable[[Ensemble, int], Result]) -> Result:
        """Compute on the view in force, and again if a deletion has hit that view meanwhile.

        Ends, because each lost round has lost nodes for good.

        Args:
            compute: takes what answers, and the number of the view.

        Raises:
            ExhaustedError: no shard has a prefix left, and the config names no fallback.
            IntegrityError: a block that should serve is damaged.
            UnavailableError: the ledger cannot be reached, or the lease has run out.
        """
        return self._answered(lambda ensemble, pinned: compute(ensemble, pinned.view))

    def completions(self, prompts: Sequence[Sequence[int]], draw: Draw) -> list[Completion]:
        """Continue token ids on one view; begun again if it is hit. Raises as ``answer``."""
        generator = self.model().text_generator
        return self._answered(
            lambda ensemble, pinned: generator.completions(
                ensemble, prompts, draw, pinned.view, lambda: not self._still_serves(pinned)
            )
        )

    def _answered(self, compute: Callable[[Ensemble, ServingView], Result]) -> Result:
        from s3t.serving.generation.completion import ViewOutdated

        model = self.model()
        while True:
            pinned = self._pin(model)
            try:
                if pinned.ensemble is None:
                    self._opened.prove_exhausted()
                    raise ExhaustedError(
                        f"{self._opened.run.root}: no shard has a surviving prefix; train a "
                        "new run, or set aggregation.on_exhausted=base to answer with the base"
                    )
                answer = compute(pinned.ensemble, pinned)
                if self._still_serves(pinned):
                    return answer
            except ViewOutdated:
                continue
            finally:
                self._views.unpin(pinned)

    @contextmanager
    def hold(self, view: int) -> Iterator[bool]:
        """To be held while an answer of ``view`` is sent: deletions wait until it is left.

        False, without waiting, if something that served at that view has died, or the lease has run
        out: then the answer must be asked for again.

        Raises:
            UnavailableError: the ledger cannot be looked at.
        """
        pinned = self._views.pin()
        if pinned is None:
            yield False
            return
        try:
            if self.lease is not None:
                good = self.lease.holds()
            else:
                good = self._opened.ledger.view() == pinned.view
            yield good and not self._views.is_hit(view)
        finally:
            self._views.unpin(pinned)

    def is_sound(self, view: int) -> bool:
        """Whether everything that served at a view lives still, as the ledger, or the lease, has it
        now: what was answered then would be given again. A view too old to be remembered is not.

        Raises:
            IntegrityError, UnavailableError: as ``answer``.
        """
        pinned = self._pin(self.model())  # the ledger's, so that what is hit is known here
        try:
            return not self._views.is_hit(view)
        finally:
            self._views.unpin(pinned)

    # ── views ────────────────────────────────────────────────────────────────────────────────

    def _pin(self, model: Predictor) -> ServingView:
        """The view in force, with this reader counted on it; without a lease, the ledger's."""
        while True:
            pinned = self._views.pin()
            if pinned is not None:
                try:
                    # pinned first, looked up after: a deletion that the look misses sees the pin
                    if self._is_in_force(pinned):
                        return pinned
                except BaseException:
                    self._views.unpin(pinned)
                    raise
                self._views.unpin(pinned)
            with self._lock:
                self._swap(model)

    def _is_in_force(self, pinned: ServingView) -> bool:
        if self.lease is None:
            is_newest = pinned.view == self._opened.ledger.view()
            return is_newest and self._files.holds(pinned.files, pinned.view)
        self.lease.refuse_if_ended()
        return self._files.holds(pinned.files, pinned.view)  # the follower has put it in force

    def _still_serves(self, pinned: ServingView) -> bool:
        if self.lease is not None:
            self.lease.refuse_if_ended()
            return not self._views.is_hit(pinned.view)
        if self._opened.ledger.view() == pinned.view:
            return True
        self._opened.catch_up()
        return all(node is None or self._opened.is_alive(node.key) for node in pinned.nodes)

    def _swap(self, model: Predictor, again: bool = False) -> None:
        """Put the ledger's view in force. Needs ``_lock``."""
        view, nodes, plan = self._opened.catch_up()
        current = self._views.current
        if current is not None and current.view == view and not again:
            return
        if current is not None and current.nodes == nodes and not again:
            new = replace(current, view=view, readers=0)  # its weights are of the same nodes
        else:
            known = {} if current is None or again else current.files
            new = ServingView(view, *self._build(model, nodes, plan, known))
        self._views.put(new, self._opened.is_alive)
        self._has_served = True
        if self._fitter is not None and any(new.nodes):
            self._fitter.begin(new)
        model.keep_only(self._opened.is_alive)
        if left := self._opened.forget_copies():
            _log.error("copies of dead nodes cannot be removed: %s", ", ".join(left))

    def _build(
        self,
        model: Predictor,
        nodes: tuple[Node | None, ...],
        plan: Plan,
        known: Mapping[NodeKey, Stamp | None],
    ) -> tuple[tuple[Node | None, ...], Ensemble | None, dict[NodeKey, Stamp | None]]:
        """The ensemble of the nodes, and the stamps of their files.

        A damaged block is an error when a run is first served; later its shard falls back to a
        shorter prefix, so that no deletion fails for it.
        """
        isolation = self._opened.config.stage.isolation
        if not self._has_served:
            self._opened.prove()
        while True:
            try:
                if all(node is None for node in nodes):
                    self._opened.prove_exhausted()
                keys = [
                    one.key
                    for last in nodes
                    if last is not None
                    for one in serving_nodes(isolation, plan.forest.lineage(last.key))
                ]
                files = self._opened.run.store.stamps(keys)
                files.update((key, known[key]) for key in files if key in known)
                return nodes, model.ensemble(nodes, plan), files
            except DamagedNodeError as error:
                if not self._has_served:
                    raise
                if all(node is None for node in nodes):
                    return nodes, None, {}  # no fallback either: who asks is told why
                _log.error("%s; serving a shorter prefix", error)
                self._opened.lose(NodeKey(error.key))
                _, nodes, plan = self._opened.catch_up()

    def _take_up(self, model: Predictor, view: int) -> None:
        """Swap to the ledger's view; if that fails, nothing older than ``view`` answers."""
        try:
            self._swap(model)
        except Exception as error:  # such as no memory left: whatever it is, the old view must go
            _log.error("nothing answers until there is a new view: %s", cause_of(error))
            self._views.drop(view)

    def _follow(self, seconds: float) -> int:
        """Bring this replica to the ledger's view; see ``replica.Follower``."""
        current = self._views.current
        try:
            view = self._opened.ledger.view()
        except IntegrityError as error:
            with self._lock:
                _log.error("nothing answers until the ledger is sound: %s", error)
                self._views.drop(0 if current is None else current.view + 1)
            raise
        if current is None or current.view != view:
            with self._lock:
                self._take_up(self.model(), view)
        self._views.wait(view, seconds)
        return self._views.oldest(view)


def _tallied(
    model: Predictor, part: slice, ensemble: Ensemble, pinned: ServingView
) -> tuple[Tally, ServingView]:
    return model.tally(part, ensemble), pinned

"""The live object: predict, forget, report. Here training's results and deletions meet.

    predict:     pin the view ─► is it the ledger's? ─► compute ─► still? ─► answer
                                      └─ no: build the new view, swap it in, begin again
    deactivate:  commit to the ledger ─► swap the view ─► wait for whoever is on the old one

Invariant (E6): once ``deactivate`` has returned, in any process, no answer comes from a node whose
lineage holds a deleted sample. Within the process this follows from the wait; across processes from
looking at the ledger before and after each answer. A view is immutable, so nobody sees half of one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from s3t.errors import DamagedNodeError, ExhaustedError
from s3t.forgetting import Forgetting, Receipt, Status
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.types import Draw, NodeKey

if TYPE_CHECKING:
    from s3t.answering import Answering, Completion, Evaluation, Prediction
    from s3t.ensemble import Ensemble
    from s3t.plan import Plan
    from s3t.plan.forecast import Forecast
    from s3t.purging import Purge

__all__ = ["S3T"]

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass
class _View:
    """What is served at one version; ``readers`` counts the answers under way on it."""

    version: int
    nodes: tuple[Node | None, ...]
    ensemble: Ensemble | None
    readers: int = 0


class S3T:
    """A run that answers and forgets. Open it with ``S3T.load``; share it between threads.

    The model is loaded at the first answer, so forgetting and status stay light.
    """

    def __init__(self, forgetting: Forgetting) -> None:
        self._forgetting = forgetting
        self._lock = threading.RLock()  # who builds views; deletions hold it too
        self._gate = threading.Condition()  # guards _current and the readers' counts
        self._current: _View | None = None
        self._leaving: list[_View] = []  # views out of force that still have readers
        self._model: Answering | None = None

    @classmethod
    def load(cls, run: str | Path) -> S3T:
        """Open a run directory.

        Raises:
            InputError: it is none.
            IntegrityError: its plan or ledger is damaged.
        """
        return cls(Forgetting(RunDir.existing(run)))

    def close(self) -> None:
        """Close the ledger; the object cannot be used afterwards."""
        self._forgetting.close()

    def __enter__(self) -> S3T:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ── forgetting ───────────────────────────────────────────────────────────────────────────

    def deactivate(
        self,
        sample_ids: Iterable[str] = (),
        subjects: Iterable[str] = (),
        *,
        request_id: str | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """Forget samples, and all samples of subjects: all of them or, on an error, none.

        When this returns the deletion is durable, and no answer given from now on, in any process
        that has the run open, comes from a block that has seen one of them.

        Args:
            sample_ids: ids to delete; ones deleted before are accepted and reported.
            subjects: persons to delete, each with all their samples.
            request_id: makes the call idempotent.
            dry_run: the same computation, nothing committed.

        Raises:
            UnknownSampleError: an id or a subject that the run does not hold.
            RequestConflictError: the request id stands for another deletion.
            InputError: nothing to delete.
        """
        started = time.perf_counter()
        with self._lock:
            receipt = self._forgetting.delete(sample_ids, subjects, request_id, dry_run)
            if not dry_run and self._model is not None:
                self._swap(self._model)
        if not dry_run:
            self._wait_for_readers(receipt.view)
            self._forgetting.ledger.effective(receipt.request_id)
        return replace(receipt, seconds=round(time.perf_counter() - started, 6))

    def repair(self, launch: Sequence[str] = ()) -> dict[str, Any]:
        """Plan the run again on what is left, train what is missing, purge what is dead.

        In a process of its own; this one goes on answering, and takes new nodes up as they come.

        Args:
            launch: options of ``accelerate launch``, such as ``("--num_processes", "2")``.

        Returns:
            the report of the training, as ``s3t repair --json`` prints it.

        Raises:
            S3TError: what the repair ended with; the run serves what it did.
        """
        from s3t.repairing import repair_apart

        return repair_apart(self._forgetting.run.root, launch)

    def purge(self, *, dry_run: bool = False) -> Purge:
        """Remove what is dead from the disk, and say what could not be reached.

        Raises:
            S3TError: see ``purging.purge``.
        """
        from s3t.purging import purge

        found = purge(self._forgetting.run, dry_run=dry_run)
        if self._model is not None and not dry_run:
            with self._lock:
                self._swap(self._model)  # tensors of what is dead leave the memory too
        return found

    def receipt(self, request_id: str) -> dict[str, Any]:
        """The receipt of a deletion as the log holds it, as JSON values.

        Raises:
            InputError: no such request.
        """
        return self._forgetting.ledger.receipt(request_id)

    def status(self) -> Status:
        """Shards, prefixes and what is left, at the ledger's present view."""
        return self._forgetting.status()

    def forecast(
        self, *, now: datetime | None = None, trials: int | None = None, seed: int = 0
    ) -> Forecast:
        """How many requests, and days, are left until the first shard dies and until exhaustion.

        Args:
            now: with a time zone, by default this moment; the observed rate is counted until then.
            trials: simulated streams, where risk rates make them necessary.
            seed: of the simulation.

        Raises:
            InputError: no trials, or a negative seed.
        """
        from s3t.forecasting import run_forecast  # numpy and scipy take their time

        now = now or datetime.now(UTC)
        return run_forecast(self._forgetting, now=now, trials=trials, seed=seed)

    # ── answering ────────────────────────────────────────────────────────────────────────────

    def predict(self, batch: Sequence[Any]) -> list[Prediction]:
        """Classify rows.

        Args:
            batch: texts, or images as arrays [height, width(, channels)] (0–255 integers or
                0–1 floats) or paths; or mappings with the config's input column.

        Raises:
            ExhaustedError: no shard has a prefix left, and the config names no fallback.
            InputError: a row that cannot be read, or a run of another task.
            IntegrityError: a block that should serve is damaged.
        """
        model = self._loaded()
        rows = model.encode(batch)
        return self._answer(model, lambda ensemble, view: model.predictions(ensemble, rows, view))

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Completion]:
        """Continue texts with the mixture of the shards' next-token distributions.

        Args:
            prompts: texts, or mappings with the config's text column.
            max_new_tokens: at most so many; prompt and answer fit ``data.max_length`` together.
            temperature: 0 takes the likeliest token, above it tokens are drawn.
            seed: of the draws.

        Raises:
            ExhaustedError, InputError, IntegrityError: as ``predict``.
        """
        model = self._loaded()
        draw = Draw(max_new_tokens, temperature, seed)
        tokens = model.prompts(prompts, draw)
        return self._answer(
            model, lambda ensemble, view: model.completions(ensemble, tokens, draw, view)
        )

    def evaluate(self) -> Evaluation:
        """Accuracy, or perplexity for a language model, on the public test data.

        Raises:
            ExhaustedError, IntegrityError: as ``predict``.
        """
        model = self._loaded()
        return self._answer(model, model.evaluation)

    # ── views ────────────────────────────────────────────────────────────────────────────────

    def _loaded(self) -> Answering:
        """The model, loaded once."""
        with self._lock:
            if self._model is None:
                from s3t.answering import Answering

                self._model = Answering(
                    self._forgetting.run, self._forgetting.config, self._forgetting.plan
                )
            return self._model

    def _answer(self, model: Answering, compute: Callable[[Ensemble, int], Answer]) -> Answer:
        """Compute on the ledger's view, and anew if a deletion has hit that view meanwhile.

        Ends, because each lost round has lost nodes for good.
        """
        while True:
            view = self._pin(model)
            try:
                if view.ensemble is None:
                    self._forgetting.prove_exhausted()
                    raise ExhaustedError(
                        f"{self._forgetting.run.root}: no shard has a surviving prefix; train a "
                        "new run, or set aggregation.on_exhausted=base to answer with the base"
                    )
                answer = compute(view.ensemble, view.version)
                if self._still_serves(view):
                    return answer
            finally:
                self._unpin(view)

    def _pin(self, model: Answering) -> _View:
        """The view of the ledger's version, with this reader counted on it."""
        while True:
            with self._gate:
                view = self._current
                if view is not None:
                    view.readers += 1
            # pinned first, looked up after: a deletion that the look misses sees the pin and waits
            if view is not None and view.version == self._forgetting.ledger.view():
                return view
            if view is not None:
                self._unpin(view)
            with self._lock:
                self._swap(model)

    def _unpin(self, view: _View) -> None:
        with self._gate:
            view.readers -= 1
            self._gate.notify_all()

    def _still_serves(self, view: _View) -> bool:
        if self._forgetting.ledger.view() == view.version:
            return True
        self._forgetting.catch_up()
        return all(node is None or self._forgetting.is_alive(node.key) for node in view.nodes)

    def _swap(self, model: Answering) -> None:
        """Put the view of the ledger's version in force. Needs ``_lock``."""
        version, nodes, plan = self._forgetting.catch_up()
        current = self._current
        if current is not None and current.version == version:
            return
        if current is not None and current.nodes == nodes:
            ensemble = current.ensemble
        else:
            nodes, ensemble = self._build(model, nodes, plan, first=current is None)
        with self._gate:
            old, self._current = self._current, _View(version, nodes, ensemble)
            self._leaving = [view for view in (*self._leaving, old) if view and view.readers]
        model.keep_only(self._forgetting.is_alive)

    def _build(
        self, model: Answering, nodes: tuple[Node | None, ...], plan: Plan, first: bool
    ) -> tuple[tuple[Node | None, ...], Ensemble | None]:
        """The ensemble of the nodes. A damaged block is an error when a run is first served;
        later, when a deletion must not fail for it, the shard falls back to a shorter prefix."""
        if first:
            self._forgetting.prove()
        while True:
            try:
                if all(node is None for node in nodes):
                    self._forgetting.prove_exhausted()
                return nodes, model.ensemble(nodes, plan)
            except DamagedNodeError as error:
                if first:
                    raise
                if all(node is None for node in nodes):
                    return nodes, None  # no fallback either: who asks is told why
                _log.error("%s; serving a shorter prefix", error)
                self._forgetting.lose(NodeKey(error.key))
                _, nodes, plan = self._forgetting.catch_up()

    def _wait_for_readers(self, version: int) -> None:
        """Wait for the answers under way on views older than ``version``."""
        with self._gate:
            self._gate.wait_for(
                lambda: not any(v.readers for v in self._leaving if v.version < version)
            )
            self._leaving = [view for view in self._leaving if view.readers]

"""The live object over a trained run: predict, delete, report.

    predict:     pin the view ─► is it the ledger's? ─► compute ─► still? ─► answer
                                      └─ no: build the new view, swap it in, begin again
    deactivate:  commit to the ledger ─► swap the view ─► wait for all answers on the old one, here
                 and in every process

Invariant (E6): once ``deactivate`` has returned, in any process, no answer comes from a node whose
lineage holds a deleted sample. Answers that were under way have ended by then: within the process
``serving/views`` tells, across processes a lock (``serving/readers``) or, for a replica, its lease.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from s3t.commands import Commands
from s3t.data.given import rows_of
from s3t.errors import InputError, S3TError
from s3t.ledger import Deletion, Ledger, Receipt, SampleEntry
from s3t.run import RunDir
from s3t.run.opened import OpenRun
from s3t.run.overview import overview
from s3t.run.status import Status, said_of, status
from s3t.serving.effective import stored_receipt
from s3t.serving.live import Serving
from s3t.types import Draw

if TYPE_CHECKING:
    from s3t.config import Config
    from s3t.export import Export
    from s3t.export.sync import Synchroniser
    from s3t.plan.forecast import Forecast
    from s3t.run.purge import Purge
    from s3t.serving.generation.completion import Completion, Piece
    from s3t.serving.pipelines import Pipeline
    from s3t.serving.predictor import Evaluation, Prediction

__all__ = ["S3T", "pipeline"]


class S3T(Commands):
    """A run that answers and deletes. Open it with ``S3T.load``; share it between threads.

    The model is loaded at the first answer, so deletions and status stay light.

    Attributes:
        serving: what this process serves: readiness, leases, answers that are held while sent.
    """

    def __init__(self, opened: OpenRun) -> None:
        self._opened = opened
        self.serving = Serving(opened)

    @classmethod
    def load(cls, run: str | Path) -> S3T:
        """Open a run directory.

        Raises:
            InputError: it is none.
            IntegrityError: its plan or ledger is damaged.
        """
        return cls(OpenRun(RunDir.existing(run)))

    def join(self, name: str | None = None, lease: float | None = None) -> None:
        """Become a replica: load the model, and answer by a lease instead of looking at the ledger.

        Deletions, in whatever process, are effective once every replica has left the older views.
        One that cannot reach the ledger goes on until its lease has run out, and then refuses.

        Args:
            name: what the replica is called; default: the host's.
            lease: seconds; default: the config's where machines can share the ledger. With SQLite,
                which they cannot, each answer goes on looking at the ledger unless one is given.

        Raises:
            S3TError: the model cannot be loaded, or the ledger not be reached.
        """
        if lease is None and self.ledger.shared:
            lease = self.config.serve.lease
        self.serving.join(name or socket.gethostname(), lease)

    def __repr__(self) -> str:
        try:
            return f"S3T({str(self.root)!r}: {said_of(self.status())})"
        except S3TError as error:
            return f"S3T({str(self.root)!r}: {error})"

    def _repr_html_(self) -> str:
        """The run in a notebook: shards × slices, and what is left."""
        from s3t.run.notebook import notebook_of

        return notebook_of(self.config.name, self.status(), self.forecast())

    def close(self) -> None:
        """Give the replica lease back, if there is one, and close the ledger. The object cannot be
        used again."""
        self.serving.leave()
        self._opened.close()

    def __enter__(self) -> S3T:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def config(self) -> Config:
        """The run's config."""
        return self._opened.config

    @property
    def ledger(self) -> Ledger:
        """The run's ledger: receipts, log, replicas, and the outbox of what is not done yet."""
        return self._opened.ledger

    # ── deletions ────────────────────────────────────────────────────────────────────────────

    def deactivate(
        self,
        sample_ids: Iterable[str] | Deletion = (),
        subjects: Iterable[str] = (),
        *,
        request_id: str | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """Delete samples, and all samples of subjects: all of them or, on an error, none.

        When this returns the deletion is durable. If its receipt has ``effective_at``, no answer
        given from now on, in any process that has the run open, comes from a block that has seen
        one of them; and those that did have ended. It is None if an answer of another process had
        not ended after ``serve.timeout``, or its replica could not be seen, or the store at
        ``store.url`` does not know of it yet (``Receipt.untold`` says why): ``receipt`` tells
        later.

        Args:
            sample_ids: ids to delete; ones deleted before are accepted and reported. Or all that
                is asked for as one ``Deletion``; then nothing else is given.
            subjects: persons to delete, each with all their samples.
            request_id: makes the call idempotent.
            dry_run: the same computation, nothing committed.

        Raises:
            UnknownSampleError: an id or a subject that the run does not hold.
            PublicSampleError: one whose rows are cut aside as public (``data.cut_from``).
            RequestConflictError: the request id stands for another deletion.
            InputError: nothing to delete.
        """
        if not isinstance(sample_ids, Deletion):
            sample_ids = Deletion(sample_ids, subjects, request_id, dry_run)
        return self.serving.delete(sample_ids)

    def purge(self, *, dry_run: bool = False) -> Purge:
        """Remove what is dead from the disk, and say what could not be reached.

        Raises:
            S3TError: see ``run.purge.purge``.
        """
        from s3t.run.purge import purge

        found = purge(self._opened.run, dry_run=dry_run)
        if not dry_run:
            self.serving.refresh()  # tensors of what is dead leave the memory too
        return found

    def export(
        self,
        folder: str | Path,
        *,
        merge: bool = False,
        rank: int | None = None,
        target: str | None = None,
        max_loss: float | None = None,
        prune: bool = False,
    ) -> Export:
        """Write what each shard serves into a folder, as adapters that peft loads.

        What holds deleted data leaves the folder first. Copies are not followed by later deletions
        of themselves: export again, or purge, which knows of the folder.

        Args:
            folder: new, empty, or of earlier exports of this run.
            merge, rank, target, max_loss, prune: see ``s3t.export.ExportOptions``.

        Raises:
            S3TError: see ``s3t.export.Exporter.export``.
        """
        from s3t.export import Exporter, ExportOptions

        options = ExportOptions(merge, rank, target, max_loss, prune)
        return Exporter(self._opened, self.serving.model, folder).export(options)

    def synchroniser(
        self,
        target: str,
        url: str,
        folder: str | Path,
        *,
        merge: bool = False,
        rank: int | None = None,
        max_loss: float | None = None,
        key: str | None = None,
        timeout: float = 60.0,
        seen_at: str | None = None,
    ) -> Synchroniser:
        """What keeps an engine's adapters to those of this run: ``.sync()`` after each deletion.

        Args:
            target, url: ``vllm`` or ``sglang``, and where it is.
            folder: for the adapters; the engine reads it too, there at ``seen_at`` if given.
            merge, rank, max_loss: see ``s3t.export.ExportOptions``.
            key: of the engine's API.
            timeout: seconds for one request.

        Raises:
            InputError: an engine, URL or folder that cannot be used.
        """
        from s3t.export import Exporter, ExportOptions
        from s3t.export.sync import EngineClient, Synchroniser, connect

        engine = connect(target, EngineClient(url, key, timeout))
        exporter = Exporter(self._opened, self.serving.model, folder)
        options = ExportOptions(merge, rank, target, max_loss)
        return Synchroniser(self._opened, exporter, engine, options, seen_at)

    def receipt(self, request_id: str) -> Receipt:
        """The receipt of a deletion as the log holds it, with when it was effective and purged.

        Raises:
            InputError: no such request.
        """
        return stored_receipt(self.ledger, request_id, self._opened.notifier.tell)

    def samples(
        self, subject: str | None = None, *, deleted: bool | None = None
    ) -> Iterator[SampleEntry]:
        """The private samples by id, with person, shard, slice, and whether each is deleted.

        Args:
            subject: only those of this person.
            deleted: only those deleted, or only those not.
        """
        for entry in self.ledger.samples(deleted=deleted):
            if subject is None or entry.subject == subject:
                yield entry

    def status(self) -> Status:
        """Shards, prefixes and what is left, at the ledger's present view.

        The store is told of deletions that it does not know of yet.
        """
        if self.serving.lease is None and self._opened.notifier.tell() is None:
            self.serving.settle_pending()
        found, own = status(self._opened), self.serving.weights
        if found.weights is None or own is None:
            return found
        told = replace(found.weights, reason=own.reason, failures=own.failures)
        return replace(found, weights=told)

    def picture(self) -> dict[str, Any]:
        """Shards × slices and the state of every node, as JSON values; see ``overview``."""
        return overview(self._opened)

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
        from s3t.run.forecast import run_forecast  # numpy and scipy take their time

        now = now or datetime.now(UTC)
        return run_forecast(self._opened, now=now, trials=trials, seed=seed)

    # ── answering ────────────────────────────────────────────────────────────────────────────

    def predict(self, batch: Any) -> list[Prediction]:
        """Classify rows.

        Args:
            batch: texts, or images as arrays [height, width(, channels)] (0–255 integers or
                0–1 floats) or paths; or mappings with the config's input column; or a table with
                it (pandas, polars, pyarrow, datasets). One text or mapping alone is one row.

        Returns:
            one for each row, in order.

        Raises:
            ExhaustedError: no shard has a prefix left, and the config names no fallback.
            InputError: a row that cannot be read, or a run of another task.
            IntegrityError: a block that should serve is damaged.
        """
        model = self.serving.model()
        rows = model.encode(rows_of(batch))
        return self.serving.answer(lambda ensemble, view: model.predictions(ensemble, rows, view))

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[Completion]:
        """Continue texts with the mixture of the shards' next-token distributions.

        Args:
            prompts: texts, or mappings with the config's text column, or a table with it. One
                text, mapping or conversation (a list of messages) alone is one prompt.
            max_new_tokens: at most so many; prompt and answer fit ``data.max_length`` together.
            temperature: 0 takes the likeliest token, above it tokens are drawn.
            seed: of the draws.
            top_k: draw among the likeliest so many alone; 0 for all.
            top_p: draw among the likeliest that are that likely together; 1 for all.

        Raises:
            ExhaustedError, InputError, IntegrityError: as ``predict``.
        """
        draw = Draw(max_new_tokens, temperature, seed, top_k, top_p)
        tokens = self.serving.model().prompts(_prompts(prompts), draw)
        return self.serving.completions(tokens, draw)

    def stream(
        self,
        prompt: Any,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
        begun: Sequence[int] = (),
        strict: bool = False,
    ) -> Iterator[Piece]:
        """Continue one text, a token at a time.

        Each token comes from nodes that live at that moment: a deletion waits for one token, not
        for the text, which goes on with what is left. What goes on reads the tokens before, which
        nodes that have died since may have chosen; ``strict`` does not go on from those.

        Args:
            prompt: a text, or a mapping with the config's text column.
            max_new_tokens, temperature, seed, top_k, top_p: as ``generate``.
            begun: tokens of pieces told before; the text goes on after them.
            strict: end with an error as soon as a node has died that any piece is from. A text
                that ends without one comes, to its last token, from what lives at its end. Not to
                be had with ``begun``, of which it is not known where they came from.

        Returns:
            pieces of text; a piece is empty while a letter is not yet whole.

        Raises:
            ExhaustedError, InputError, IntegrityError: as ``predict``; the first two at once.
            UnavailableError: ``strict``, and a deletion has hit the text (``code`` is
                ``text_hit``): drop its pieces, and ask for it again.
        """
        from s3t.serving.generation.completion import strictly

        if strict and begun:
            raise InputError("strict and begun: where begun tokens came from is not known")
        model = self.serving.model()
        draw = Draw(max_new_tokens, temperature, seed, top_k, top_p)
        (tokens,) = model.prompts([prompt], draw)
        model.check_room([[*tokens, *begun]], draw)
        pieces = model.text_generator.pieces(tokens, draw, self.serving.answer, begun)
        return strictly(pieces, self.serving.is_sound) if strict else pieces

    def pipeline(self, **options: Any) -> Pipeline:
        """transformers' pipeline of the run's task, over the view in force at each call.

        It answers while this is open. Strings are continued as they stand, chats by the run's
        template; by default 32 tokens, the likeliest each.

        Args:
            options: of the pipeline, such as ``batch_size`` or ``top_k``.

        Raises:
            InputError, IntegrityError: the base cannot be loaded, or is not the run's.
        """
        from s3t.serving.pipelines import pipeline_of

        return pipeline_of(self.serving, self.config, self._opened.labels, **options)

    @overload
    def evaluate(self) -> Evaluation: ...
    @overload
    def evaluate(self, ends: Callable[[], bool]) -> Evaluation | None: ...

    def evaluate(self, ends: Callable[[], bool] | None = None) -> Evaluation | None:
        """Accuracy, or perplexity for a language model, on the public test data; the base's too.

        Waits until weights of the view in force are fitted, if they are to be. A deletion waits
        for a part of the rows alone; the evaluation then begins again. It is recorded in the
        ledger, for status and the page.

        Args:
            ends: asked between parts; if it says so, the evaluation is given up.

        Returns:
            the evaluation; None if it was given up.

        Raises:
            ExhaustedError, IntegrityError: as ``predict``.
        """
        found = self.serving.evaluation(ends)
        if found is not None:
            self.serving.record_evaluation(found)
        return found


def _prompts(given: Any) -> list[Any]:
    """What ``generate`` is given, as a list of prompts."""
    rows = rows_of(given)
    turns = [isinstance(row, Mapping) and {*row} >= {"role", "content"} for row in rows]
    return [rows] if rows and all(turns) else rows


def pipeline(run: str | Path, **options: Any) -> Pipeline:
    """transformers' pipeline of a run's task; see ``S3T.pipeline``.

    Deletions by other processes take effect at its next call as well.

    Raises:
        InputError, IntegrityError: as ``S3T.load`` and ``S3T.pipeline``.
    """
    return S3T.load(run).pipeline(**options)

"""Leakage: what attacks learn about deleted samples, before and after their deletion.

    rows.py       members (deleted), strangers (public test), neighbours (left)
    snapshots.py  models: before, after, control, reference, one after another
        └─► scores.py  losses, … ─► membership, extraction ─► report.py: figures and verdicts

The claims look at bytes; this looks at answers, and is statistical. One audit in twenty of a run
that has forgotten exactly finds a difference by chance.

Invariant: nothing is written to the run. The models that are trained to be attacked have seen
deleted samples; they are removed when this returns or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from s3t.audit.audited_run import AuditedRun
from s3t.audit.leakage import membership, snapshots
from s3t.audit.leakage.extraction import Rate, rate
from s3t.audit.leakage.membership import Attack
from s3t.audit.leakage.report import CHANCE, Leakage, ModelLeakage, Moment, Snapshots
from s3t.audit.leakage.rows import SuspectedRows, find_suspected_rows
from s3t.audit.leakage.scores import Answers, answers_of, contrasted, window_of
from s3t.audit.leakage.snapshots import ScratchRun
from s3t.errors import S3TError
from s3t.ledger import Gone, Ledger
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.system.scratch import scratch
from s3t.types import NodeKey

__all__ = ["leakage"]

Floats = npt.NDArray[np.float64]

_ERROR = 0.05
"""Probability of at least one wrong verdict about a model that never saw the samples."""

_REPAIRED = (
    "the run itself, which is repaired: its nodes have the keys of one that never saw the samples "
    "(s3t audit RUN --from-scratch trains that one and compares the bytes)"
)

_ENOUGH = 400
"""With fewer strangers the interval of a TPR covers less than its confidence
(see ``membership.attack``)."""


def leakage(
    run: RunDir,
    *,
    samples: int | None = None,
    on_step: Callable[[str], None] = lambda sentence: None,
) -> Leakage:
    """Attack a run with the samples that were deleted from it.

    Trains two runs in a temporary folder: one on all the data, which copies the nodes that still
    exist, and one without the deleted samples. A repaired run is the second one itself.

    Args:
        run: a prepared run from which something was deleted. Rows of deleted samples must still be
            in the user's own data.
        samples: number of deleted samples to attack with, drawn at random; default: all.
        on_step: called before each step with a sentence that says what is done.

    Raises:
        InputError: nothing was deleted, or too few rows are left to attack with.
        IntegrityError: a part of the run is damaged.
        S3TError: the ledger changed meanwhile, or the temporary folder cannot be removed.
    """
    audited = AuditedRun(run)
    gone = _deleted(audited)
    suspected = find_suspected_rows(audited, gone, samples, seed=0)
    on_step("asking what the run serves now")
    attacker = _Attacker(audited, suspected)
    serving = snapshots.after(audited)
    after = None if serving is None else attacker.ask("after", "what the run serves now", serving)
    with scratch(run.root) as folder:
        on_step("training what was there before the deletions, in a temporary folder")
        old = snapshots.before(audited, folder / "before")
        before = attacker.ask("before", _of_before(old), old.ensemble)
        both = None
        if serving is not None and after is not None:
            together = attacker.extract(old.ensemble, serving)
            both = attacker.compare(before, after, together, snapshots.dead_nodes(audited))
        if after is not None and snapshots.repaired(audited):
            control = replace(after, name="control", what=_REPAIRED)
        else:
            on_step("training a control without the deleted samples, in a temporary folder")
            control = _ask_control(attacker, snapshots.control(audited, gone, folder / "control"))
    shown = attacker.leaks(before)
    return Leakage(
        run=str(run.root),
        view=gone.view,
        deleted=suspected.deleted,
        members=len(suspected.members),
        strangers=len(suspected.strangers),
        window=attacker.window,
        confidence=attacker.confidence,
        before=shown,
        after=None if after is None else attacker.leaks(after),
        control=attacker.leaks(control),
        snapshots=both,
        notes=tuple(_notes(suspected, attacker, shown)),
    )


def _deleted(audited: AuditedRun) -> Gone:
    """Who is deleted, at the view at which the run is audited."""
    with Ledger.open(audited.run.ledger_at, read_only=True) as ledger:
        gone, name = ledger.deleted.all(), ledger.name
    if gone.view != audited.ledger.view:
        raise S3TError(f"{name} was written to while it was read: run s3t audit again")
    return gone


@dataclass(frozen=True, eq=False)
class _Asked:
    """The scores that one model gives all suspected rows."""

    name: Moment
    what: str
    members: Answers
    strangers: Answers
    neighbours: Answers | None


class _Attacker:
    """Asks models for scores of the suspected rows, and computes attacks from them.

    Attributes:
        window: see ``window_of``.
        confidence: of each interval, by Bonferroni over the verdicts.
    """

    def __init__(self, audited: AuditedRun, suspected: SuspectedRows) -> None:
        self._suspected = suspected
        if torch.cuda.is_available():
            audited.loaded.base.to(torch.device("cuda"))
        self.window = window_of(suspected.strangers)
        self._knows: _Asked | None = None
        known = snapshots.reference(audited, suspected)
        if known is not None:
            self._knows = self.ask("control", "the base", known)
        self.confidence = 1 - _ERROR / (len(self._names) + bool(self.window))

    @property
    def refers(self) -> bool:
        """Whether there is a reference to attack with."""
        return self._knows is not None

    @property
    def _names(self) -> tuple[str, ...]:
        """The attacks."""
        more = ("min-k", "min-k++", "extraction strength") if self.window else ()
        return ("loss", *(("reference",) if self.refers else ()), *more)

    def ask(self, name: Moment, what: str, model: Ensemble) -> _Asked:
        """Ask a model for scores of all suspected rows."""
        suspected = self._suspected
        near = suspected.neighbours if len(suspected.neighbours) > 1 else None
        return _Asked(
            name,
            what,
            answers_of(model, suspected.members, self.window),
            answers_of(model, suspected.strangers, self.window),
            None if near is None else answers_of(model, near, self.window),
        )

    def extract(self, before: Ensemble, after: Ensemble) -> Rate | None:
        """Rate of members' texts that two models give away together; None for classifiers."""
        if not self.window:
            return None
        return self._rate(contrasted(before, after, self._suspected.members, self.window))

    def leaks(self, asked: _Asked) -> ModelLeakage:
        """All attacks on one model."""
        inside, outside = asked.members, asked.strangers
        attacks = tuple(self._attack(name, asked) for name in self._names)
        strength = [one.scores.get("extraction strength") for one in (inside, outside)]
        means = [None if one is None else float(one.mean()) for one in strength]
        return ModelLeakage(
            name=asked.name,
            what=asked.what,
            attacks=attacks,
            loss_members=float(inside.losses.mean()),
            loss_strangers=float(outside.losses.mean()),
            verbatim=self._rate(inside.verbatim),
            verbatim_strangers=self._rate(outside.verbatim),
            strength_members=means[0],
            strength_strangers=means[1],
        )

    def compare(
        self, before: _Asked, after: _Asked, together: Rate | None, dead: tuple[NodeKey, ...]
    ) -> Snapshots:
        """The attack by someone who holds the models before and after."""

        def risen(older: Answers, newer: Answers) -> Floats:
            return membership.two_snapshot_scores(older.losses, newer.losses)

        members = risen(before.members, after.members)
        near = None
        if before.neighbours is not None and after.neighbours is not None:
            other = risen(before.neighbours, after.neighbours)
            near = membership.attack("two snapshots", members, other, confidence=self.confidence)
        other = risen(before.strangers, after.strangers)
        return Snapshots(
            membership.attack("two snapshots", members, other, confidence=self.confidence),
            near,
            together,
            dead,
        )

    def _attack(self, name: str, asked: _Asked) -> Attack:
        inside, outside = (self._scores(name, asked, of) for of in ("members", "strangers"))
        return membership.attack(name, inside, outside, confidence=self.confidence)

    def _scores(self, name: str, asked: _Asked, of: Literal["members", "strangers"]) -> Floats:
        answers: Answers = getattr(asked, of)
        if name == "loss":
            return membership.loss_scores(answers.losses)
        if name == "reference":
            return membership.reference_scores(answers.losses, getattr(self._knows, of).losses)
        return answers.scores[name]

    def _rate(self, hits: list[bool]) -> Rate | None:
        return rate(hits, confidence=self.confidence) if hits else None


def _ask_control(attacker: _Attacker, new: ScratchRun) -> _Asked:
    what = f"trained without the deleted samples from the start, {new.report.nodes} nodes"
    return attacker.ask("control", what, new.ensemble)


def _of_before(old: ScratchRun) -> str:
    own, again = old.report.found, old.report.trained
    return f"of all the data: {own} nodes are the run's own, {again} were trained again"


def _notes(suspected: SuspectedRows, attacker: _Attacker, before: ModelLeakage) -> Iterator[str]:
    """What to know about the figures."""
    if suspected.absent:
        yield f"{suspected.absent} deleted samples are no longer in the private data"
    if suspected.known:
        yield (
            f"{suspected.known} deleted samples are left out: living samples or public data hold "
            "their content too, or they are texts of one token"
        )
    if not suspected.persons:
        yield (
            "rows of few persons are taken for independent draws: the intervals are too narrow, "
            "and a difference may be the persons'"
        )
    if len(suspected.strangers) < _ENOUGH:
        yield (
            f"{len(suspected.strangers)} public test rows: from {_ENOUGH} on the intervals of TPR "
            "hold what they say"
        )
    if not attacker.refers:
        yield "no reference: the run has no public head and no data.public.adapt to train one on"
    if all(one.auc_low <= CHANCE for one in before.attacks):
        yield (
            "not even before the deletions did an attack tell members from others, so these "
            "figures cannot show that anything was forgotten"
        )

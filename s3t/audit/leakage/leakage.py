"""Leakage: what attacks still learn about deleted samples, and what they would have learnt.

    suspects ─► rows: members (deleted), strangers (public test), neighbours (left)
    snapshots ─► models: before, after, control, reference      one after another
                   │
    answers ◄──────┘ losses, … ─► membership, extraction ─► exposure: states and verdicts

This is evidence of another kind than the claims: it looks at answers, not at bytes, and it is
statistical. One audit in twenty of a run that has forgotten exactly finds a difference by chance.

Invariant: nothing is written to the run. The models that were trained to be attacked, which have
seen deleted samples, are gone when this returns, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from s3t.audit.evidence import Case
from s3t.audit.leakage import membership, snapshots
from s3t.audit.leakage.extraction import Rate, rate
from s3t.audit.leakage.membership import Attack
from s3t.audit.leakage.report import CHANCE, Leakage, Moment, Snapshots, State
from s3t.audit.leakage.rows import Suspects, find_suspects
from s3t.audit.leakage.scores import Answers, answers_of, contrasted, window_of
from s3t.audit.leakage.snapshots import Trained
from s3t.errors import InputError, S3TError
from s3t.ledger import Ledger
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.system.scratch import scratch
from s3t.types import NodeKey

__all__ = ["leakage"]

Floats = npt.NDArray[np.float64]

_ERROR = 0.05
"""Probability that any of the verdicts about a model that never saw the samples is wrong."""

_REPAIRED = (
    "the run itself, which is repaired: its nodes have the keys of one that never saw the samples "
    "(s3t audit RUN --from-scratch trains that one and compares the bytes)"
)

_ENOUGH = 400
"""Strangers from which on the interval of a TPR holds what it says (see ``membership.attack``)."""


def leakage(
    run: RunDir,
    *,
    samples: int | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda sentence: None,
) -> Leakage:
    """Attack a run with the samples that were deleted from it.

    Trains a run of all the data, of which the nodes that still exist are taken over, and one
    without the deleted samples, unless the run is repaired and so is that one itself.

    Args:
        run: a prepared run from which something was deleted. Rows of deleted samples must still be
            in the user's own data.
        samples: how many deleted samples to attack with, drawn; default: all.
        seed: of the draws.
        on_step: told what is being done, in a sentence.

    Raises:
        InputError: nothing was deleted, or too few rows are left to attack with.
        IntegrityError: a part of the run is damaged.
        S3TError: a deletion came in between; or the temporary folder cannot be removed.
    """
    if samples is not None and samples < 2:
        raise InputError(f"samples {samples}: leakage is measured on at least 2")
    case = Case(run)
    with Ledger.open(run.ledger_at, read_only=True) as ledger:
        gone, name = ledger.deleted.all(), ledger.name
    if gone.view != case.books.view:
        raise S3TError(f"{name} was written to while it was read: run s3t audit again")
    suspects = find_suspects(case, gone, samples, seed)
    if torch.cuda.is_available():
        case.loaded.base.to(torch.device("cuda"))
    on_step("asking what the run serves now")
    attacker = _Attacker(case, suspects)
    serving = snapshots.after(case)
    after = None if serving is None else attacker.ask("after", "what the run serves now", serving)
    with scratch(run.root) as folder:
        on_step("training what was there before the deletions, in a temporary folder")
        old = snapshots.before(case, folder / "before")
        before = attacker.ask("before", _of_before(old), old.ensemble)
        both = None
        if serving is not None and after is not None:
            together = attacker.extract(old.ensemble, serving)
            both = attacker.compare(before, after, together, snapshots.dead_nodes(case))
        if after is not None and snapshots.repaired(case):
            control = replace(after, name="control", what=_REPAIRED)
        else:
            on_step("training a control without the deleted samples, in a temporary folder")
            new = snapshots.control(case, gone, folder / "control")
            what = f"trained without the deleted samples from the start, {new.report.nodes} nodes"
            control = attacker.ask("control", what, new.ensemble)
    shown = attacker.state(before)
    return Leakage(
        run=str(run.root),
        view=gone.view,
        deleted=suspects.deleted,
        members=len(suspects.members),
        strangers=len(suspects.strangers),
        window=attacker.window,
        confidence=attacker.confidence,
        before=shown,
        after=None if after is None else attacker.state(after),
        control=attacker.state(control),
        snapshots=both,
        notes=tuple(_notes(suspects, attacker, shown)),
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """What one model said about all suspects."""

    name: Moment
    what: str
    members: Answers
    strangers: Answers
    neighbours: Answers | None


class _Attacker:
    """Asks models, and makes attacks of what they say.

    Attributes:
        window: see ``window_of``.
        confidence: of each interval, by Bonferroni over the verdicts.
    """

    def __init__(self, case: Case, suspects: Suspects) -> None:
        self._suspects = suspects
        self.window = window_of(suspects.strangers)
        self._knows: _Asked | None = None
        known = snapshots.reference(case, suspects)
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
        """Ask a model about all suspects."""
        suspects = self._suspects
        near = suspects.neighbours if len(suspects.neighbours) > 1 else None
        return _Asked(
            name,
            what,
            answers_of(model, suspects.members, self.window),
            answers_of(model, suspects.strangers, self.window),
            None if near is None else answers_of(model, near, self.window),
        )

    def extract(self, before: Ensemble, after: Ensemble) -> Rate | None:
        """Texts of members that come out of two models together."""
        if not self.window:
            return None
        return self._rate(contrasted(before, after, self._suspects.members, self.window))

    def state(self, asked: _Asked) -> State:
        """All attacks on one model."""
        inside, outside = asked.members, asked.strangers
        attacks = tuple(self._attack(name, asked) for name in self._names)
        strength = [one.scores.get("extraction strength") for one in (inside, outside)]
        means = [None if one is None else float(one.mean()) for one in strength]
        return State(
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
        """The attack of who holds two models."""

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


def _of_before(old: Trained) -> str:
    own, again = old.report.found, old.report.trained
    return f"of all the data: {own} nodes are the run's own, {again} were trained again"


def _notes(suspects: Suspects, attacker: _Attacker, before: State) -> Iterator[str]:
    """What to know about the figures."""
    if suspects.absent:
        yield f"{suspects.absent} deleted samples are no longer in the private data"
    if suspects.known:
        yield (
            f"{suspects.known} deleted samples are left out: living samples or public data hold "
            "their content too, or they are texts of one token"
        )
    if not suspects.persons:
        yield (
            "rows of few persons are taken for independent draws: the intervals are too narrow, "
            "and a difference may be the persons'"
        )
    if len(suspects.strangers) < _ENOUGH:
        yield (
            f"{len(suspects.strangers)} public test rows: from {_ENOUGH} on the intervals of TPR "
            "hold what they say"
        )
    if not attacker.refers:
        yield "no reference: the run has no public head and no data.public.adapt to train one on"
    if all(one.auc_low <= CHANCE for one in before.attacks):
        yield (
            "not even before the deletions did an attack tell members from others, so these "
            "figures cannot show that anything was forgotten"
        )

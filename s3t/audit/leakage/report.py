"""The results of a leakage audit, as values and as lines of text.

    Leakage ─┬─ ModelLeakage  before, after, control ─── Attack …, Rate
             ├─ Snapshots  attacks by someone who holds the models before and after
             └─ Verdict  for each measure: does the model after differ from one that never saw them?

Invariant: a verdict follows from the figures beside it. No verdict says "yes" where nothing was
measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from s3t.types import NodeKey

if TYPE_CHECKING:
    from s3t.audit.leakage.extraction import Rate
    from s3t.audit.leakage.membership import Attack

__all__ = ["CHANCE", "Leakage", "ModelLeakage", "Moment", "Snapshots", "Verdict", "lines"]

Moment = Literal["before", "after", "control"]

CHANCE = 0.5
"""AUC of guessing."""

_NAMED = 5
"""So many dead nodes are named in the text; JSON names all."""


@dataclass(frozen=True, slots=True)
class ModelLeakage:
    """What one model gives away about the deleted samples.

    Attributes:
        name: ``before`` the deletions, ``after`` them, or the ``control`` that never saw them.
        what: which model it is, in a sentence.
        attacks: membership inference, deleted samples against strangers.
        loss_members, loss_strangers: mean losses, in nats.
        verbatim: rate of deleted texts that are reproduced; None for classifiers or if no text is
            long enough.
        verbatim_strangers: the same rate of strangers.
        strength_members, strength_strangers: mean extraction strength, from 0 to 1; None for
            classifiers.
    """

    name: Moment
    what: str
    attacks: tuple[Attack, ...]
    loss_members: float
    loss_strangers: float
    verbatim: Rate | None = None
    verbatim_strangers: Rate | None = None
    strength_members: float | None = None
    strength_strangers: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"attacks": [one.to_dict() for one in self.attacks]}


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What someone learns who holds the models of before and after the deletions.

    Exact deletion does not prevent this attack; only removing the older model does.

    Attributes:
        strangers: the attack on deleted samples against rows that were never trained on.
        neighbours: the same against the samples left in the same slices; None if there are fewer
            than 2.
        verbatim: rate of deleted texts that both models together reproduce; None for classifiers,
            or if no text is long enough.
        dead: keys of dead nodes that are still in the store, or copied beside the run. Without any,
            the attack needs weights that were copied earlier.
    """

    strangers: Attack
    neighbours: Attack | None
    verbatim: Rate | None
    dead: tuple[NodeKey, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        near = None if self.neighbours is None else self.neighbours.to_dict()
        return asdict(self) | {"strangers": self.strangers.to_dict(), "neighbours": near}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure of the model after, compared with a model that never saw the samples.

    Attributes:
        measure: name of the attack, or ``verbatim``.
        expected: value for a model that never saw the samples: an AUC of 0.5 or, if the control's
            interval excludes 0.5, the control's AUC (then strangers and deleted samples differ in
            kind); for ``verbatim`` the control's rate.
        low, high: confidence interval of the model after.
    """

    measure: str
    expected: float
    low: float
    high: float

    @property
    def indistinguishable(self) -> bool:
        """Whether the expected value lies in the interval."""
        return self.low <= self.expected <= self.high

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"indistinguishable": self.indistinguishable}


@dataclass(frozen=True, slots=True)
class Leakage:
    """What attacks learn about deleted samples.

    Attributes:
        run: the run directory.
        view: the ledger's view that was attacked.
        deleted: number of samples deleted by then.
        members, strangers: number of rows of deleted samples, and of public test rows, attacked.
        window: tokens given, and tokens asked for, in verbatim extraction; 0 for classifiers.
        confidence: confidence of each interval, so that all verdicts together hold at 95 %.
        before, after, control: what each model gives away; ``after`` is None if the run is
            exhausted and refuses to answer.
        snapshots: attacks with two models; None if ``after`` is.
        notes: how to read the figures, a sentence each.
    """

    run: str
    view: int
    deleted: int
    members: int
    strangers: int
    window: int
    confidence: float
    before: ModelLeakage
    after: ModelLeakage | None
    control: ModelLeakage
    snapshots: Snapshots | None
    notes: tuple[str, ...]

    @property
    def states(self) -> tuple[ModelLeakage, ...]:
        """Before, after (if the run answers) and control."""
        return tuple(one for one in (self.before, self.after, self.control) if one is not None)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """A verdict for each measure; none if the run refuses to answer."""
        if self.after is None:
            return ()
        found = []
        for ours, theirs in zip(self.after.attacks, self.control.attacks, strict=True):
            at_chance = theirs.auc_low <= CHANCE <= theirs.auc_high
            expected = CHANCE if at_chance else theirs.auc
            found.append(Verdict(ours.name, expected, ours.auc_low, ours.auc_high))
        if self.after.verbatim is not None and self.control.verbatim is not None:
            rate, expected = self.after.verbatim, self.control.verbatim.share
            found.append(Verdict("verbatim", expected, rate.low, rate.high))
        return tuple(found)

    @property
    def indistinguishable(self) -> bool:
        """Whether every verdict is "indistinguishable"; true if the run refuses to answer."""
        return all(verdict.indistinguishable for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "run": self.run,
            "view": self.view,
            "deleted": self.deleted,
            "members": self.members,
            "strangers": self.strangers,
            "window": self.window,
            "confidence": self.confidence,
            **{state.name: state.to_dict() for state in self.states},
            "snapshots": None if self.snapshots is None else self.snapshots.to_dict(),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "indistinguishable": self.indistinguishable,
            "notes": list(self.notes),
        }


def lines(found: Leakage) -> Iterator[str]:
    """All figures and verdicts as lines of text."""
    yield (
        f"leakage of {found.run} at view {found.view}: {found.members} rows of {found.deleted} "
        f"deleted samples against {found.strangers} public test rows"
    )
    for state in found.states:
        yield f"{state.name:9s}{state.what}"
    yield (
        f"{'':21s}{'':9s}{'AUC':22s}  TPR at 1 % FPR (by chance "
        f"{found.before.attacks[0].tpr_by_chance:.3f})"
    )
    for number, attack in enumerate(found.before.attacks):
        for state in found.states:
            name = attack.name if state is found.before else ""
            yield f"{name:21s}{state.name:9s}{_attacked(state.attacks[number])}"
    yield from _extracted(found)
    if found.snapshots is not None:
        yield from _both(found.snapshots)
    if found.after is None:
        yield "after: the run is exhausted and refuses to answer, so nothing comes out of it"
    for verdict in found.verdicts:
        word, lies = ("yes", "lies") if verdict.indistinguishable else ("no", "does not lie")
        yield (
            f"{verdict.measure:21s}indistinguishable: {word} ({verdict.expected:.3f} {lies} in "
            f"[{verdict.low:.3f}, {verdict.high:.3f}] of after)"
        )
    for note in found.notes:
        yield f"note: {note}"


def _attacked(attack: Attack) -> str:
    auc = f"{attack.auc:.3f} [{attack.auc_low:.3f}, {attack.auc_high:.3f}]"
    return f"{auc:22s}  {attack.tpr:.3f} [{attack.tpr_low:.3f}, {attack.tpr_high:.3f}]"


def _extracted(found: Leakage) -> Iterator[str]:
    """The rates of a language model."""
    for state in found.states:
        if state.verbatim is None or state.verbatim_strangers is None:
            continue
        name = f"verbatim, {found.window} tokens" if state is found.before else ""
        never = state.verbatim_strangers
        yield (
            f"{name:21s}{state.name:9s}{_rate(state.verbatim)} of the deleted come out, "
            f"{never.hits} of {never.trials} others"
        )


def _both(found: Snapshots) -> Iterator[str]:
    yield "two snapshots, for someone who kept the weights of before:"
    yield f"{'  from strangers':30s}{_attacked(found.strangers)}"
    if found.neighbours is not None:
        yield f"{'  from slice neighbours':30s}{_attacked(found.neighbours)}"
    if found.verbatim is not None:
        yield f"{'  verbatim':30s}{_rate(found.verbatim)} of the deleted come out"
    if not found.dead:
        yield "  from this store: not possible: no dead node is left in it"
        return
    named = ", ".join(key[:12] for key in found.dead[:_NAMED])
    more = f" and {len(found.dead) - _NAMED} more" if len(found.dead) > _NAMED else ""
    yield (
        f"  from this store: possible: dead nodes that are left in it: {len(found.dead)} "
        f"({named}{more}): run s3t purge"
    )


def _rate(rate: Rate) -> str:
    return f"{rate.hits} of {rate.trials} [{rate.low:.3f}, {rate.high:.3f}]"

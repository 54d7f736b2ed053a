"""The cheapest plan that keeps a wanted fraction of one LoRA's worth.

    each isolation ──► all plans (candidates) ──► worth as a fraction of one LoRA's
                          within the limits  ──► the cheapest that reaches the target: an offer
                                    all offers ──► the cheapest: recommended

One LoRA is trained on all samples together, in as many epochs; nothing can be deleted from it. The
worth of a run is the mean worth of the shards that have a prefix left, since answers leave out the
others; with the probability of exhaustion it is that of no training.

Invariant: a recommended plan that reaches a higher target never costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from s3t.errors import ConfigError, InputError
from s3t.plan.budget.advice import affordable, config_of, too_dear
from s3t.plan.budget.candidates import Candidate, Candidates, candidates
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import KINDS, Stages
from s3t.plan.survival.untouched import Floats

__all__ = ["Insurance", "Offer", "Target", "insure", "worths"]


@dataclass(frozen=True)
class Target:
    """What a plan has to be worth, where one LoRA is worth 1.

    Attributes:
        start: before the first deletion.
        after: after the expected deletions; 0 for no demand.

    Raises:
        ConfigError: lists every value that is no fraction.
    """

    start: float
    after: float = 0.0

    def __post_init__(self) -> None:
        found = []
        if not 0 < self.start <= 1:
            found.append(f"target {self.start:g}: give a fraction over 0, up to 1 (one LoRA)")
        if not 0 <= self.after <= 1:
            found.append(f"target-after {self.after:g}: give a fraction from 0 to 1 (one LoRA)")
        if found:
            raise ConfigError(found, "budget")

    def __str__(self) -> str:
        after = f" and {self.after:g} after the deletions" if self.after else ""
        return f"{self.start:g} of one LoRA at the start{after}"


@dataclass(frozen=True)
class Offer:
    """The cheapest plan of one isolation that reaches the target, or the one that comes nearest.

    Attributes:
        plan: with its costs; utilities are in the units of the curve.
        start: expected worth before the first deletion, where one LoRA is worth 1.
        along: the same as a mean along the deletions, while a shard serves.
        end: the same after the deletions.
        short: by how much a worth is below the target, in thousandths; 0 if it is reached.
        over: the probability of exhaustion, if it is over the risk; else 0.
    """

    plan: Candidate
    start: float
    along: float
    end: float
    short: float
    over: float

    @property
    def reached(self) -> bool:
        """Whether it reaches the target, within the risk."""
        return not self.over and not self.short

    def alike(self, other: Offer) -> bool:
        """Whether both are of the same plan and train the same."""
        numbers = self.plan.cost, self.plan.adapters, self.start, self.along, self.end
        same = other.plan.cost, other.plan.adapters, other.start, other.along, other.end
        return self.plan.sequences == other.plan.sequences and numbers == same

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        worth = {"start": self.start, "along": self.along, "end": self.end}
        return self.plan.to_dict() | {"worth": worth, "short": self.short, "lasts": not self.over}


@dataclass(frozen=True)
class Insurance:
    """The planner's answer to a target.

    Attributes:
        question: what was asked; its ``stages`` are not looked at.
        target: what a plan has to be worth.
        candidates: number of plans that were compared.
        offers: the best plan of each isolation that has one within the limits of cost, the
            recommended one first; one that trains the same as another is left out.
        reason: why it is recommended, in sentences.
    """

    question: Question
    target: Target
    candidates: int
    offers: tuple[Offer, ...]
    reason: str

    @property
    def recommended(self) -> Offer:
        """The cheapest that reaches the target; if none does, the one that comes nearest."""
        return self.offers[0]

    @property
    def config(self) -> str:
        """The lines of a config that ask for the recommended plan, as YAML."""
        plan = self.recommended.plan
        return config_of(plan, replace(self.question, stages=plan.stages), explicit=True)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        question = self.question.to_dict()
        del question["stages"]
        sequences = [list(sequence) for sequence in self.recommended.plan.sequences]
        return {
            "question": question,
            "target": asdict(self.target),
            "candidates": self.candidates,
            "reached": self.recommended.reached,
            "recommended": self.recommended.to_dict() | {"sequences": sequences},
            "offers": [offer.to_dict() for offer in self.offers],
            "reason": self.reason,
            "config": self.config,
        }


def insure(question: Question, target: Target, kinds: Sequence[Stages] = KINDS) -> Insurance:
    """Find the cheapest plan that reaches a target.

    Args:
        question: what is planned for; its ``stages`` are not looked at.
        target: what a plan has to be worth.
        kinds: what stages may train; at equal cost the first is preferred.

    Raises:
        InputError: every plan is over the limits of cost, or the curve gives one LoRA no worth.
    """
    compared = [candidates(replace(question, stages=one), whole=True) for one in kinds]
    offers: list[Offer] = []
    for found in compared:
        if affordable(found).any():
            offer = _offer(found, target)
            if not any(offer.alike(other) for other in offers):
                offers.append(offer)
    if not offers:
        raise too_dear(min(compared, key=lambda found: float(found.adapters.min())))
    offers.sort(key=lambda one: (one.over, one.short, round(one.plan.cost, 9)))
    reason = _reason(question, target, offers)
    return Insurance(question, target, sum(map(len, compared)), tuple(offers), reason)


def _offer(found: Candidates, target: Target) -> Offer:
    """The best plan of one isolation."""
    question = found.question
    exhausted = found.exhausted
    start, along, end = worths(found)
    missing = np.maximum(target.start - start, target.after - end)
    short = np.ceil(np.maximum(missing, 0.0) * 1000 - 1e-6) / 1000 + 0.0
    over = np.where(exhausted <= question.risk, 0.0, exhausted)
    keys = (found.adapters, found.cost, short, over)
    rows = np.flatnonzero(affordable(found))
    row = rows[np.lexsort([key[rows] for key in keys])[0]]
    return Offer(found[row], *(float(of[row]) for of in (start, along, end, short, over)))


def worths(found: Candidates) -> tuple[Floats, Floats, Floats]:
    """Expected worth of plans at the start, along the deletions and after them, where one LoRA on
    all samples is worth 1; each [n].

    Utilities from 0 are scores, and are divided by one LoRA's; of others, such as
    log-likelihoods, the gain over no training is.

    Raises:
        InputError: the curve gives one LoRA no worth.
    """
    question = found.question
    samples = question.samples
    nothing = float(question.curve.utility(0, samples))
    least = min(nothing, 0.0)
    whole = float(question.curve.utility(samples, samples)) - least
    if whole <= 0:
        raise InputError(f"curve {question.curve}: one LoRA on all samples is worth nothing by it")

    def of_living(utility: Floats, living: Floats) -> Floats:
        gain = np.zeros_like(utility)
        return np.divide(utility - nothing, living, out=gain, where=living > 1e-12)

    at_end = of_living(found.utility_at_end, found.living_at_end) * (1 - found.exhausted)
    gains = (found.start - nothing, of_living(found.utility, found.living), at_end)
    start, along, end = ((nothing - least + gain) / whole for gain in gains)
    return start, along, end


def _reason(question: Question, target: Target, offers: Sequence[Offer]) -> str:
    one = offers[0]
    if one.reached:
        opening = f"The cheapest plan that is worth {target}: {_named(one)}."
    elif not one.over:
        opening = (
            f"Nothing that was compared is worth {target}. Nearest comes {_named(one)}, which is "
            f"{one.short:g} short of it. Lower the target, expect fewer deletions before a repair, "
            "or give a curve that was measured on your task."
        )
    else:
        opening = (
            f"No plan lasts {question.deletions:,} deletions within a risk of {question.risk:.3g}: "
            f"the nearest, {_named(one)}, is exhausted with probability {one.plan.exhausted:.3g}. "
            "Give more samples or a smaller min-slice, accept a greater risk, or train again by "
            "then."
        )
    return f"{opening} {_beside_snapshots(offers)}".rstrip()


def _beside_snapshots(offers: Sequence[Offer]) -> str:
    """What SISA's snapshots would be, or that they are the better choice."""
    one = offers[0]
    if one.plan.slices == 1:
        return "With one slice a shard all isolations train the same: it is SISA's plan too."
    others = [offer for offer in offers if offer.plan.stages.isolation != "snapshot"]
    if one.plan.stages.isolation == "snapshot":
        if not others:
            return ""
        return f"SISA's snapshots are the better choice here: next comes {_named(others[0])}."
    sisa = next((offer for offer in offers if offer not in others), None)
    if sisa is None:
        return ""
    reach = "reach it too" if sisa.reached else f"are {sisa.short:g} short of it"
    return f"SISA's snapshots {reach}, with {_named(sisa)}."


def _named(offer: Offer) -> str:
    plan = offer.plan
    return (
        f"{plan.stages} on {plan.shards} × {plan.slices} for {plan.cost:.3g} trainings of one LoRA"
    )

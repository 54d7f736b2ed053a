"""Compares all plans for a question, and recommends one.

    candidates ──► front over training cost, storage, utility, P(exhausted)
                     │   within the limits: risk, training, storage
                     ▼
                   best (greatest utility) ──► recommended: the cheapest that is nearly as good

The rule: take the plans within the limits whose gain in utility over no training is at least
``ENOUGH`` of the best plan's gain; recommend the one with the lowest training cost, and of several
the one with the least storage. The last hundredth of utility costs most, and no curve is known that
precisely. If no plan stays within the risk, the one with the least risk is shown and named as such.

Invariant: the recommended plan lies on the front; if more training is allowed it is never worth
less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.budget.candidates import Candidate, Candidates, candidates
from s3t.plan.budget.pareto import non_dominated
from s3t.plan.budget.question import Question
from s3t.plan.survival.exhaustion import uniform_exhaustion

__all__ = ["Budget", "Cell", "advise", "affordable", "config_of", "stairs", "too_dear"]

ENOUGH = 0.99
"""A plan is good enough with this fraction of the best plan's gain over no training."""

NEGLIGIBLE = 1e-6
"""Probabilities of exhaustion below this count as equal on the front."""

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Cell:
    """A pair of m shards and L slices.

    Attributes:
        shards: m.
        slices: L.
        utility: utility of the best plan within the limits; None if there is none.
    """

    shards: int
    slices: int
    utility: float | None


@dataclass(frozen=True)
class Budget:
    """The planner's answer.

    Attributes:
        question: what was asked.
        candidates: number of plans that were compared.
        cells: all cells, with the utility of the best plan in each.
        front: Pareto front over training cost, storage, utility and risk, by training cost; plans
            over the limits too.
        lasts: whether a plan within the limits of cost stays within the risk.
        recommended: the plan chosen by the rule of the module.
        best: the plan within the limits with the greatest utility; ``recommended`` if none lasts.
        cyclic: the paper's plan with the shards and slices of the recommended one.
        safe: number of deletions up to which the recommended plan stays within the risk.
        reason: why it is recommended, in sentences.
    """

    question: Question
    candidates: int
    cells: tuple[Cell, ...]
    front: tuple[Candidate, ...]
    lasts: bool
    recommended: Candidate
    best: Candidate
    cyclic: Candidate
    safe: int
    reason: str

    def affords(self, candidate: Candidate) -> bool:
        """Whether a plan is within the limits of training and storage."""
        question = self.question
        return (
            candidate.passes <= question.max_passes and (candidate.bytes or 0) <= question.max_bytes
        )

    def within(self, candidate: Candidate) -> bool:
        """Whether a plan is within all limits, the risk included."""
        return self.affords(candidate) and candidate.exhausted <= self.question.risk

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; plans of the front without their sequences."""
        return {
            "question": self.question.to_dict(),
            "candidates": self.candidates,
            "cells": [asdict(cell) for cell in self.cells],
            "front": [one.to_dict() | {"within": self.within(one)} for one in self.front],
            "lasts": self.lasts,
            "recommended": self.recommended.to_dict()
            | {"sequences": [list(sequence) for sequence in self.recommended.sequences]},
            "best": self.best.to_dict(),
            "cyclic": self.cyclic.to_dict(),
            "safe_deletions": self.safe,
            "reason": self.reason,
            "config": config_of(self.recommended, self.question),
        }


def advise(question: Question) -> Budget:
    """Compare every plan and recommend one.

    Raises:
        InputError: every plan is over the limits of cost.
    """
    found = candidates(question)
    allowed = affordable(found)
    if not allowed.any():
        raise too_dear(found)
    risk = np.maximum(found.exhausted, NEGLIGIBLE)
    front = non_dominated(np.stack([found.passes, found.adapters, -found.utility, risk], axis=1))
    front = front[np.argsort(found.passes[front], kind="stable")]
    lasting = found.exhausted <= question.risk
    rows = front[(allowed & lasting)[front]]
    if len(rows):
        best, chosen = _chosen(found, rows)
    else:
        best = chosen = _least_risky(found, front[allowed[front]])
    recommended, cyclic = found[chosen], found[_cyclic_like(found, chosen)]
    first = len({sequence[0] for sequence in recommended.sequences}) * recommended.shards
    slots = recommended.shards * recommended.slices
    safe = int(uniform_exhaustion(slots, first).quantile(question.risk)) - 1
    reason = _Reason(found, allowed, recommended, found[best], cyclic, safe)
    return Budget(
        question,
        len(found),
        tuple(_cells(found, allowed & lasting)),
        tuple(found[row] for row in front),
        bool(len(rows)),
        recommended,
        found[best],
        cyclic,
        safe,
        reason.of_lasting() if len(rows) else reason.of_exhausted(),
    )


def affordable(found: Candidates) -> npt.NDArray[np.bool_]:
    """Whether each plan is within the limits of training and storage, [n]."""
    allowed: npt.NDArray[np.bool_] = found.passes <= found.question.max_passes
    if found.question.layer_bytes is not None:
        allowed &= found.bytes <= found.question.max_bytes
    return allowed


def too_dear(found: Candidates) -> InputError:
    """The error that every plan is over the limits of cost."""
    everything = np.ones(len(found), dtype=np.bool_)
    return InputError(
        f"no plan fits: the cheapest takes {math.ceil(found.passes.min()):,} sample passes and "
        f"the smallest {_storage(found, everything)}; raise max-passes or max-bytes"
    )


def stairs(budget: Budget, limit: int = 15) -> list[Candidate]:
    """Plans of the front to show, by training cost: each is better than all cheaper ones.

    Better means more utility, among the plans within the limits; or less risk, if no plan lasts.
    About ``limit`` plans at even steps are kept, among them the cheapest, the recommended and the
    best one.
    """

    def score(one: Candidate) -> float:
        return one.utility if budget.lasts else -one.exhausted

    kept: list[Candidate] = []
    for one in budget.front:
        shown = budget.within(one) if budget.lasts else budget.affords(one)
        if shown and (not kept or score(one) > score(kept[-1])):
            kept.append(one)
    if len(kept) > limit:
        at = np.linspace(0, len(kept) - 1, limit - 2).round().astype(int)
        kept = [kept[number] for number in np.unique(at)]
    kept += [one for one in {budget.recommended: None, budget.best: None} if one not in kept]
    return sorted(kept, key=lambda one: (one.passes, one.utility))


def config_of(candidate: Candidate, question: Question, explicit: bool = False) -> str:
    """The lines of a config that ask for such a plan, as YAML.

    A run grows its tree again from these lines, with a local search (``strategies.settree``). That
    tree costs no more and is worth as much or a little more, but may be another tree.

    Args:
        candidate: the plan.
        question: what was asked.
        explicit: name a tree's sequences, so that the run has this very tree.
    """
    shape = f"partition: {{shards: {candidate.shards}, slices: {candidate.slices}}}\n"
    section = candidate.stages.section(question.layers, candidate.slices, question.epochs)
    stage = f"stage: {{{section}}}\n"
    if candidate.kind != "tree":
        budget = len(candidate.sequences)
        return f"{shape}sequences: {{strategy: cyclic, budget: {budget}}}\n{stage}"
    if explicit:
        leaves = ", ".join(map(str, map(list, candidate.sequences)))
        return f"{shape}sequences:\n  strategy: explicit\n  explicit: [{leaves}]\n{stage}"
    horizon = question.horizon(candidate.shards, candidate.slices)
    worth = question.worth(candidate.shards, candidate.slices)
    gain = float(worth[-1] - worth[0])
    digits = 4 - math.floor(math.log10(gain)) if gain else 0  # five figures of what is to be gained
    utility = ", ".join(f"{value:.{max(digits, 0)}f}" for value in worth)
    return (
        f"{shape}sequences:\n  strategy: tree\n  unit: slice-passes\n"
        f"  budget: {candidate.slice_passes(question.epochs)}\n  horizon: {horizon:.6g}\n"
        f"  utility: [{utility}]\n{stage}"
    )


def _chosen(found: Candidates, rows: Rows) -> tuple[np.intp, np.intp]:
    """Row numbers of the best and of the recommended plan."""
    best: np.intp = rows[np.argmax(found.utility[rows])]
    nothing = float(found.question.curve.utility(0, found.question.samples))
    goal = nothing + ENOUGH * (found.utility[best] - nothing)
    enough = rows[found.utility[rows] >= goal - 1e-12]
    keys = (found.exhausted, -found.utility, found.adapters, found.passes)
    return best, enough[np.lexsort([key[enough] for key in keys])[0]]


def _least_risky(found: Candidates, rows: Rows) -> np.intp:
    """Row number of the plan with the least risk; of several the most useful, then the cheapest."""
    keys = (found.adapters, found.passes, -found.utility, found.exhausted)
    least: np.intp = rows[np.lexsort([key[rows] for key in keys])[0]]
    return least


def _cyclic_like(found: Candidates, row: int | np.intp) -> np.intp:
    """Row number of the cyclic plan of the same m and L; with L = 1 that is the one sequence."""
    same = (found.shards == found.shards[row]) & (found.slices == found.slices[row])
    kind = found.kinds("cyclic" if found.slices[row] > 1 else "one sequence")
    first: np.intp = np.flatnonzero(same & kind)[0]
    return first


def _cells(found: Candidates, within: npt.NDArray[np.bool_]) -> Iterator[Cell]:
    for slices, shards in found.question.cells.items():
        for m in shards:
            here = within & (found.shards == m) & (found.slices == slices)
            utility = float(found.utility[here].max()) if here.any() else None
            yield Cell(m, slices, utility)


@dataclass(frozen=True, eq=False)
class _Reason:
    """Sentences that say why a plan is recommended; ``affordable``: within the limits of cost,
    [n]."""

    found: Candidates
    affordable: npt.NDArray[np.bool_]
    chosen: Candidate
    best: Candidate
    cyclic: Candidate
    safe: int

    def of_lasting(self) -> str:
        """For a plan that stays within the risk."""
        found, question, one = self.found, self.found.question, self.chosen
        within = self.affordable & (found.exhausted <= question.risk)
        share = f"{ENOUGH:.0%} of its gain over no training"
        chosen = (
            f"none that is cheaper has {share}"
            if one == self.best
            else f"this is the cheapest with {share}: {one.utility:.4f} for {one.passes:,.0f}"
        )
        parts = [
            f"{within.sum():,} of {len(found):,} plans keep to the limits: {_capped(question)}"
            f"exhausted within {question.deletions:,} deletions with a probability of at "
            f"most {question.risk:.3g}. The best of them is worth {self.best.utility:.4f}, on "
            f"average along the deletions, for {self.best.passes:,.0f} sample passes; {chosen}. "
            f"That is as much as {one.cost:.3g} trainings of one LoRA on all data; it "
            f"keeps to the risk for {self.safe:,} deletions."
        ]
        cheaper = np.flatnonzero(within & (found.passes < one.passes))
        if len(cheaper):
            next_ = found[cheaper[found.utility[cheaper].argmax()]]
            parts.append(
                f"The best that is cheaper, {_named(next_)}, is worth {next_.utility:.4f} for "
                f"{next_.passes:,.0f}."
            )
        return " ".join([*parts, self._compared()])

    def of_exhausted(self) -> str:
        """For the plan with the least risk, where none stays within the risk."""
        question = self.found.question
        lasting = self.found.exhausted <= question.risk
        hint = "give more samples, a smaller min-slice or a base with more layers"
        if lasting.any():
            least = math.ceil(self.found.passes[lasting].min())
            hint = f"raise the limits: from {least:,} sample passes and "
            hint += f"{_storage(self.found, lasting)} on there are plans that last"
        return (
            f"No plan lasts: the least risky one is exhausted within "
            f"{question.deletions:,} deletions with probability "
            f"{self.chosen.exhausted:.3g}, over {question.risk:.3g}. It keeps to that for "
            f"{self.safe:,} deletions. Train again by then, accept a greater risk, or {hint}. "
            f"{self._compared()}"
        )

    def _compared(self) -> str:
        if self.chosen == self.cyclic:
            return "It is the cyclic plan itself."
        return (
            f"The cyclic plan of as many shards and slices is worth {self.cyclic.utility:.4f} for "
            f"{self.cyclic.passes:,.0f}, exhausted with probability {self.cyclic.exhausted:.3g}."
        )


def _capped(question: Question) -> str:
    caps = ((question.max_passes, "sample passes"), (question.max_bytes, "bytes"))
    return "".join(f"{value:,.0f} {unit}, " for value, unit in caps if value < math.inf)


def _named(one: Candidate) -> str:
    what = f"tree with {len(one.sequences)} leaves" if one.kind == "tree" else one.kind
    return f"{one.shards} × {one.slices}, {what}"


def _storage(found: Candidates, rows: npt.NDArray[np.bool_]) -> str:
    if found.question.layer_bytes is None:
        return f"{found.adapters[rows].min():,.3g} adapters"
    return f"{found.bytes[rows].min():,.0f} bytes"

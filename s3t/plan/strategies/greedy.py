"""Greedy sequences: each protects most beyond those before it; then local search.

Invariant: marginal gains are exact (``lattice``). A sequence is replaced only by one that is worth
more, so the value never falls.
"""

from __future__ import annotations

from s3t.plan.sequences import Sequences, filled, rotated_bases
from s3t.plan.strategies import scenarios
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.lattice import EXACT, Coverage

__all__ = ["greedy"]

Sequence = tuple[int, ...]
_ROUNDS = 4


def greedy(brief: Brief) -> Sequences:
    """Choose sequences of greatest marginal gain one after another, then replace single ones.

    Coverage is monotone and submodular, so the greedy part reaches at least 1 − 1/e of the optimum,
    and at least 0.97 of it where the optimum is known. Beyond ``lattice.EXACT`` slices the gains
    are estimated over drawn scenarios.

    Source: this project (docs/design.md); Nemhauser, Wolsey and Fisher 1978 for the bound.
    """
    if brief.slices > EXACT:
        return filled(scenarios.grow(brief, whole=True), rotated_bases(brief.slices), brief.budget)
    coverage = Coverage(brief.law, brief.worth)
    found: list[Sequence] = []
    while len(found) < brief.budget:
        chain = coverage.best_chain([0], whole=True)[2]
        found.append(chain)
        coverage.train(_sets(chain))
        if not coverage.gains.any():
            break
    if len(found) > 1:
        found = _improved(coverage, found)
    # if no further set gains anything, rotations fill the budget
    return filled(found, rotated_bases(brief.slices), brief.budget)


def _improved(coverage: Coverage, found: list[Sequence]) -> list[Sequence]:
    """Replace each sequence in turn by the best one, until no replacement gains anything."""
    value = coverage.value
    for _ in range(_ROUNDS):
        before = value
        for at in range(len(found)):
            others = found[:at] + found[at + 1 :]
            coverage.reset({mask for other in others for mask in _sets(other)})
            chain = coverage.best_chain([0], whole=True)[2]
            coverage.train(_sets(chain))
            if coverage.value > value:
                found, value = [*found[:at], chain, *found[at + 1 :]], coverage.value
        if value == before:
            return found
    return found


def _sets(sequence: Sequence) -> list[int]:
    masks, mask = [], 0
    for c in sequence:
        mask |= 1 << c
        masks.append(mask)
    return masks

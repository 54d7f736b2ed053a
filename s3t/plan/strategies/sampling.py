"""Sequences drawn at random: uniformly, or with rarely deleted slices first.

Invariant: sequences follow from the brief and its seed. Drawing always ends: after some repetitions
in a row, missing sequences are added in lexicographic order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations

from s3t.plan.sequences import Sequences, filled
from s3t.plan.strategies.brief import Brief

__all__ = ["conditional", "uniform"]

_REPEATS = 50
"""Drawing ends after so many repetitions in a row."""


def uniform(brief: Brief) -> Sequences:
    """Distinct permutations, all equally likely.

    Source: arXiv 2406.16257, appendix (random sampling, a baseline).
    """
    return _distinct(brief, [1.0] * brief.slices)


def conditional(brief: Brief) -> Sequences:
    """Conditional sampling: the next slice with probability in proportion to 1 − its deletion
    probability, given those drawn before.

    Relative rates are read as probabilities if they are at most 1 and not all 0, else scaled by
    the greatest. Where every slice left has probability 1 they are equally likely; the authors'
    loop does not end there.

    Source: arXiv 2406.16257, section 3 (conditional sampling), and the authors'
    ``sequence_selection.py``.
    """
    rates = brief.rates or (0.0,) * brief.slices
    scale = max(1.0, *rates)
    return _distinct(brief, [1 - rate / scale for rate in rates])


def _distinct(brief: Brief, weights: Sequence[float]) -> Sequences:
    draws = random.Random(brief.seed)
    found: dict[tuple[int, ...], None] = {}
    repeats = 0
    while len(found) < brief.budget and repeats < _REPEATS:
        drawn = _draw(draws, weights)
        repeats = repeats + 1 if drawn in found else 0
        found[drawn] = None
    return filled(found, permutations(range(brief.slices)), brief.budget)


def _draw(draws: random.Random, weights: Sequence[float]) -> tuple[int, ...]:
    left, sequence = list(range(len(weights))), []
    while left:
        total = sum(weights[c] for c in left)
        chances = [weights[c] / total if total > 0 else 1 / len(left) for c in left]
        at, mark = 0, draws.random() - chances[0]
        while mark >= 0 and at < len(left) - 1:
            at += 1
            mark -= chances[at]
        sequence.append(left.pop(at))
    return tuple(sequence)

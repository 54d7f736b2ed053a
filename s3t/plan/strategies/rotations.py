"""Rotations: the strategies that do not look at deletion rates.

    cyclic, L = 4          iterated, from the fifth        even, B = 2
    0 1 2 3                0 3 1 2                         0 1 2 3
    1 2 3 0                1 0 2 3                         2 3 0 1
    2 3 0 1                …
    3 0 1 2

Invariant: sequences are distinct permutations of all slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from s3t.plan import sequences
from s3t.plan.sequences import Sequences, filled, rotated_bases
from s3t.plan.strategies.brief import Brief

__all__ = ["cyclic", "even", "iterated"]


def cyclic(brief: Brief) -> Sequences:
    """The paper's cyclic rotation: sequence b starts at slice b; further bases beyond L.

    Source: arXiv 2406.16257, section 3 (cyclic rotation). The bases beyond the first come in
    lexicographic order among the permutations that begin with slice 0.
    """
    return sequences.cyclic(brief.slices, int(brief.budget))


def iterated(brief: Brief) -> Sequences:
    """The paper's iterated rotation: beyond L sequences the slices behind the first are rotated
    too, then those behind the second, and so on.

    The digits of b in mixed radix (b mod L, b div L mod L − 1, …) say how far sequence b is rotated
    at each depth, to the right as in the authors' code; so all L! permutations come once. For
    L < B ≤ 2L the sets are those of the first L rotations, so they protect nothing more.

    Source: arXiv 2406.16257, section 3 (iterative cyclic rotation), and the authors'
    ``sequence_selection.py``.
    """
    return tuple(_iterated(brief.slices, number) for number in range(int(brief.budget)))


def even(brief: Brief) -> Sequences:
    """Evenly spaced rotations: nearly optimal for B < L under uniform deletions.

    B ≤ L rotations of 0, 1, …, L − 1 start at ⌊b·L/B⌋. Beyond L come the L rotations of sequences
    with steps 2, 3, … (coprime to L and below L/2, since a step and its mirror image give the same
    sets), and then the sequences of ``cyclic``.

    Source: this project (docs/design.md).
    """
    slices, budget = brief.slices, int(brief.budget)
    if budget <= slices:
        base = tuple(range(slices))
        starts = [number * slices // budget for number in range(budget)]
        return tuple(base[start:] + base[:start] for start in starts)
    return filled(islice(_strides(slices), budget), rotated_bases(slices), budget)


def _iterated(slices: int, number: int) -> tuple[int, ...]:
    sequence = list(range(slices))
    for depth in range(slices):
        number, steps = divmod(number, slices - depth)
        # The first level goes to the left, so that sequence b starts at slice b.
        rest = sequence[depth:]
        turn = steps if depth == 0 else (len(rest) - steps) % len(rest)
        sequence[depth:] = rest[turn:] + rest[:turn]
    return tuple(sequence)


def _strides(slices: int) -> Iterator[tuple[int, ...]]:
    for step in range(1, max(slices // 2, 1) + 1):
        if math.gcd(step, slices) == 1 and (step == 1 or 2 * step < slices):
            base = tuple(number * step % slices for number in range(slices))
            for start in range(slices):
                yield base[start:] + base[:start]

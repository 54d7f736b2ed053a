"""Sequences of slices: the paper's cyclic rotation, and sequences that a config lists.

A sequence is an order in which a shard learns its slices, one per stage. Each of its prefixes
becomes a node, and a prefix survives as long as none of its slices is hit. Other ways to choose
sequences are in ``strategies``.

Invariant: the sequences of a shard are distinct, and none holds a slice twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, permutations

from s3t.errors import ConfigError

__all__ = ["Sequences", "cyclic", "explicit", "filled", "rotated_bases"]

Sequences = tuple[tuple[int, ...], ...]
"""The sequences of one shard: tuples of slice numbers from 0; a smaller budget takes the first."""


def cyclic(slices: int, budget: int) -> Sequences:
    """The paper's cyclic rotation, iterated beyond the number of slices.

    Rotation b of a base permutation p is p[b:] + p[:b]. The first base is 0, 1, …, L−1, so
    sequence b < L starts at slice b. For B > L come the rotations of further bases, in
    lexicographic order among the permutations that begin with slice 0. Every permutation is one
    rotation of exactly one such base, hence all sequences are distinct up to B = L!.

    Source: arXiv 2406.16257, section 3 (cyclic rotation, iterative for large budgets).

    Raises:
        ConfigError: fewer than one slice or sequence, or more sequences than permutations.
    """
    if slices < 1 or budget < 1:
        raise ConfigError([f"{slices} slices and budget {budget}: both must be 1 or more"])
    if budget > math.factorial(slices):
        raise ConfigError(
            [
                f"sequences.budget {budget} is over the {math.factorial(slices)} permutations "
                f"of {slices} slices: lower it or add slices"
            ]
        )
    return tuple(islice(rotated_bases(slices), budget))


def explicit(sequences: Sequence[Sequence[int]], slices: int) -> Sequences:
    """Check the sequences that a config lists (``sequences.explicit``).

    Args:
        sequences: slice numbers from 0; a sequence may be shorter than L.
        slices: L.


    Raises:
        ConfigError: with every sequence that is empty, repeated or impossible.
    """
    listed = tuple(tuple(sequence) for sequence in sequences)
    problems = [] if listed else ["sequences.explicit is empty: list at least one sequence"]
    for number, sequence in enumerate(listed):
        name = f"sequences.explicit[{number}] {list(sequence)}"
        if not sequence or len(set(sequence)) < len(sequence):
            problems.append(f"{name} is empty or repeats a slice")
        elif min(sequence) < 0 or max(sequence) >= slices:
            problems.append(f"{name} names a slice outside 0 to {slices - 1}")
        elif sequence in listed[:number]:
            problems.append(f"{name} is listed twice")
    if problems:
        raise ConfigError(problems)
    return listed


def filled(
    found: Iterable[tuple[int, ...]], more: Iterable[tuple[int, ...]], budget: float
) -> Sequences:
    """The distinct sequences of ``found``, then those of ``more``, ``budget`` of them in all."""
    listed = dict.fromkeys(found)
    if len(listed) < budget:
        for sequence in more:
            listed.setdefault(sequence)
            if len(listed) == budget:
                break
    return tuple(listed)


def rotated_bases(slices: int) -> Iterator[tuple[int, ...]]:
    """All L! permutations of the slices, each once: the rotations of 0, 1, …, L − 1 first, then
    those of the next permutation that begins with 0, and so on."""
    for tail in permutations(range(1, slices)):
        base = (0, *tail)
        for start in range(slices):
            yield base[start:] + base[:start]

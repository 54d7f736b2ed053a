"""Which sequences of slices a shard trains: the strategies, and the one way to call them.

A sequence is an order in which the slices of a shard are learnt, one per stage. Only its prefixes
matter: each becomes a node, and a prefix survives as long as none of its slices is hit.

Invariant: a strategy is a function of (slices, budget) alone, so that the same config gives the
same plan everywhere; its sequences are distinct, and each meets a slice once at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice, permutations
from typing import Protocol

from s3t.errors import ConfigError

__all__ = ["STRATEGIES", "Sequences", "Strategy", "cyclic", "explicit", "sequences_for"]

Sequences = tuple[tuple[int, ...], ...]
"""The sequences of one shard, in the order of the budget."""


class Strategy(Protocol):
    """What a strategy is: it names ``budget`` distinct sequences over ``slices`` slices."""

    def __call__(self, slices: int, budget: int) -> Sequences:
        """``budget`` sequences of slice numbers from 0.

        Raises:
            ConfigError: the budget cannot be met.
        """
        ...


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
    return tuple(islice(_rotations(slices), budget))


def explicit(sequences: Sequence[Sequence[int]], slices: int) -> Sequences:
    """The sequences that a config lists. They may be shorter than L: a chain that ends early.

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


STRATEGIES: dict[str, Strategy] = {"cyclic": cyclic}
"""Strategies by their name in the config; ``explicit`` is apart, it computes nothing."""


def sequences_for(
    strategy: str,
    slices: int,
    budget: int,
    listed: Sequence[Sequence[int]] | None = None,
) -> Sequences:
    """Sequences of one shard, as the config's section ``sequences`` asks.

    Args:
        strategy: a name in ``STRATEGIES``, or ``explicit``.
        slices: L, slices per shard.
        budget: B, sequences per shard.
        listed: the sequences themselves, for ``explicit``.

    Raises:
        ConfigError: an unknown strategy, or a budget that cannot be met.
    """
    if strategy == "explicit":
        found = explicit(listed or (), slices)
        if len(found) != budget:
            raise ConfigError(
                [f"sequences.budget {budget} is not the number of explicit ones ({len(found)})"]
            )
        return found
    if strategy not in STRATEGIES:
        known = ", ".join(sorted([*STRATEGIES, "explicit"]))
        raise ConfigError([f"sequences.strategy {strategy!r} is unknown: use one of {known}"])
    return STRATEGIES[strategy](slices, budget)


def _rotations(slices: int) -> Iterator[tuple[int, ...]]:
    for tail in permutations(range(1, slices)):
        base = (0, *tail)
        for start in range(slices):
            yield base[start:] + base[:start]

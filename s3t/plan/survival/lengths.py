"""How long the longest surviving prefix of a shard is, and what that is worth.

    prefixes ──length_table──► longest prefix inside each untouched set [2^L]
                                        │ law over untouched sets (``untouched``)
                                        ▼
                              P(longest = k), k = 0 … L ──► served data, utility

Any tree under any law costs O(L·2^L), to ``untouched.LIMIT`` slices. Without that limit: one
sequence, rotations of one sequence, and all permutations, by the closed forms below.

Invariant: what serves is the prefix of greatest length, as in ``schedule``. Shards look alike and
expectation is linear, so one shard speaks for the system.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from s3t.errors import InputError
from s3t.plan.survival.untouched import LIMIT, Floats, halves

__all__ = [
    "all_permutations",
    "all_permutations_after",
    "expected_utility",
    "length_law",
    "length_table",
    "one_sequence",
    "one_sequence_after",
    "rotations",
    "rotations_after",
    "served",
]


def length_table(prefixes: Iterable[Sequence[int]], slices: int) -> npt.NDArray[np.uint8]:
    """Longest prefix of a tree that lies inside each set of untouched slices. O(L·2^L).

    Args:
        prefixes: every prefix of the tree, or whole sequences: only what is listed counts, so list
            the shorter prefixes too (``plan.prefixes``).
        slices: L.

    Returns:
        [2^L]; index: bit c is set iff slice c is untouched.

    Raises:
        InputError: over ``untouched.LIMIT`` slices, or a slice outside 0 to L − 1.
    """
    if not 1 <= slices <= LIMIT:
        raise InputError(f"{slices} slices: a table over all their sets takes 1 to {LIMIT}")
    table = np.zeros(1 << slices, dtype=np.uint8)
    for prefix in prefixes:
        if any(not 0 <= c < slices for c in prefix):
            raise InputError(f"prefix {list(prefix)} names a slice outside 0 to {slices - 1}")
        mask = sum(1 << c for c in set(prefix))
        table[mask] = max(int(table[mask]), len(prefix))
    for without, with_ in halves(table):
        np.maximum(with_, without, out=with_)
    return table


def length_law(table: npt.NDArray[np.uint8], law: Floats) -> Floats:
    """P(longest surviving prefix = k) for k = 0 … L.

    Args:
        table: [2^L] of ``length_table``.
        law: [2^L] of ``untouched``.
    """
    slices = len(table).bit_length() - 1
    return np.bincount(table, weights=law, minlength=slices + 1).astype(np.float64)


def served(lengths: Floats) -> float:
    """Expected slices in the longest surviving prefix, from P(longest = k)."""
    return float(np.arange(len(lengths)) @ lengths)


def expected_utility(lengths: Floats, utility: Sequence[float]) -> float:
    """Expected value of what serves.

    Args:
        lengths: [L + 1], P(longest = k).
        utility: [L + 1], the worth of a prefix of k slices, from k = 0.
    """
    if len(utility) != len(lengths):
        raise InputError(f"{len(utility)} utilities for lengths 0 to {len(lengths) - 1}")
    return float(np.asarray(utility, dtype=np.float64) @ lengths)


def one_sequence(rates: Sequence[float], time: float) -> Floats:
    """P(longest = k) of one sequence after Poisson time t: P(≥ k) = e^{−t·p(c_1 … c_k)}.

    Args:
        rates: [L], in the order of the sequence.
        time: t ≥ 0.
    """
    return _from_at_least(np.exp(-time * np.cumsum(_finite(rates))))


def one_sequence_after(rates: Sequence[float], requests: int) -> Floats:
    """P(longest = k) of one sequence after r requests: P(≥ k) = (1 − p(c_1 … c_k))^r.

    Args:
        rates: [L], probability that one request hits the slice, in the order of the sequence.
        requests: r ≥ 0.
    """
    return _from_at_least(np.clip(1 - np.cumsum(_finite(rates)), 0, 1) ** requests)


def all_permutations(rates: Sequence[float], time: float) -> Floats:
    """P(longest = k) if every permutation were trained, after Poisson time t.

    Then every untouched set is a prefix, so the longest has as many slices as are untouched: a sum
    of independent indicators (Poisson-binomial), O(L²), any L. No plan can do better.
    """
    lengths = np.ones(1)
    for untouched in np.exp(-time * np.asarray(_finite(rates))):
        lengths = np.append(lengths * (1 - untouched), 0) + np.append(0, lengths * untouched)
    return lengths


def all_permutations_after(slices: int, slots: int, requests: int) -> Floats:
    """P(longest = k) if every permutation were trained, after r requests over N slots alike.

    Occupancy of the shard's L slots as a Markov chain: with h hit, the next request hits a new one
    with probability (L − h)/N. O(r·L), any L, no subtraction.

    Args:
        slices: L.
        slots: N ≥ L.
        requests: r ≥ 0.
    """
    untouched = np.zeros(slices + 1)
    untouched[slices] = 1.0
    fall = np.arange(slices + 1) / slots
    for _ in range(requests):
        falling = untouched * fall
        untouched -= falling
        untouched[:-1] += falling[1:]
    return untouched


def rotations(rates: Sequence[float], starts: Collection[int], time: float) -> Floats:
    """P(longest = k) of rotations of 0, 1, …, L − 1 after Poisson time t, for any L.

    A rotation keeps k slices iff the k slices from its start, around the circle, are untouched:
    runs in a circle of independent slices. O(L⁴) steps of a recursion without subtraction.

    Args:
        rates: [L], requests per unit of time on slice c.
        starts: first slices of the rotations.
        time: t ≥ 0.
    """
    alive = np.exp(-time * np.asarray(_finite(rates)))
    hit = -np.expm1(-time * np.asarray(rates, dtype=np.float64))
    at_least = [
        _windows(alive, hit, sorted(set(starts)), k, counting=False)[0]
        for k in range(1, len(rates) + 1)
    ]
    return _from_at_least(np.array(at_least))


def rotations_after(slices: int, starts: Collection[int], slots: int, requests: int) -> Floats:
    """P(longest = k) of rotations after r requests over N slots alike, for any L.

    Given that j slices are untouched every set of j is as likely, so P = Σ_j occ(j)·w_k(j)/C(L,j)
    with w_k(j) the sets of j slices that hold a window of k. O(L⁵), 2 s at L = 64.

    Args:
        slices: L.
        starts: first slices of the rotations.
        slots: N ≥ L.
        requests: r ≥ 0.
    """
    occupancy = all_permutations_after(slices, slots, requests)
    size = np.arange(slices + 1)
    choices = np.exp(gammaln(slices + 1) - gammaln(size + 1) - gammaln(slices - size + 1))
    ones = np.ones(slices)
    at_least = [
        float((_windows(ones, ones, sorted(set(starts)), k, counting=True) / choices) @ occupancy)
        for k in range(1, slices + 1)
    ]
    return _from_at_least(np.array(at_least))


def _windows(
    alive: Floats, hit: Floats, starts: Sequence[int], length: int, *, counting: bool
) -> Floats:
    """Weight of the circular patterns that hold an untouched window of ``length`` from a start.

    The circle is cut at the first slice that is hit, z: the slices before z are untouched and come
    round again at the end. For all z at once the circle is walked once with the run of untouched
    slices so far, capped at ``length``; what has found a window is kept apart.

    Returns:
        By number of untouched slices, [L + 1], if ``counting``; else the sum, [1].
    """
    slices = len(alive)
    width = slices + 1 if counting else 1
    step = 1 if counting else 0
    found = np.zeros((slices, width))
    runs = np.zeros((slices, length + 1, width))
    first = np.zeros((slices, width))
    before = np.concatenate([[1.0], np.cumprod(alive)[:-1]])
    for z in range(slices):
        # Slices 0 … z−1 are weighed here; at the end of the walk they are certain.
        first[z, z * step] = before[z] * hit[z]
    runs[:, 0] = first
    opens = np.zeros(slices, dtype=bool)
    opens[list(starts)] = True
    numbers = np.arange(slices)
    for offset in range(1, slices):
        at = numbers + offset  # per cut z the slice at this step, ≥ L once it has come round
        certain = at >= slices
        at %= slices
        grown = np.zeros_like(runs)
        grown[:, 1:] = runs[:, :-1]
        grown[:, -1] += runs[:, -1]
        weight = np.where(certain, 1.0, alive[at])[:, None, None]
        lived = grown * weight
        kept = found * weight[:, 0]
        if counting:
            lived = np.where(certain[:, None, None], lived, _shifted(lived))
            kept = np.where(certain[:, None], kept, _shifted(kept))
        fell = np.where(certain, 0.0, hit[at])
        dead = runs.sum(axis=1) * fell[:, None]
        found = kept + found * fell[:, None]
        runs = lived
        runs[:, 0] += dead
        complete = opens[(at - length + 1) % slices]
        found[complete] += runs[complete, -1]
        runs[complete, -1] = 0.0
    total: Floats = found.sum(axis=0)
    total[slices * step] += np.prod(alive)  # nothing is hit
    return total


def _shifted(values: Floats) -> Floats:
    """One more untouched slice: the last axis moved up by one."""
    moved = np.zeros_like(values)
    moved[..., 1:] = values[..., :-1]
    return moved


def _from_at_least(at_least: Floats) -> Floats:
    """P(= k), k = 0 … L, from P(≥ k), k = 1 … L."""
    falling = np.concatenate([[1.0], at_least, [0.0]])
    lengths: Floats = np.maximum(falling[:-1] - falling[1:], 0.0)
    return lengths


def _finite(rates: Sequence[float]) -> Sequence[float]:
    if not len(rates) or not all(0 <= rate < np.inf for rate in rates):
        raise InputError(f"rates {list(rates)}: expected one number from 0 per slice")
    return rates

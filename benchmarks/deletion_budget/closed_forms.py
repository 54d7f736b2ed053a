"""The longest surviving prefix of rotations and of all permutations, for any number of slices.

Requests hit N slots alike, with repeats. The library's tables over sets of slices end at
``untouched.LIMIT`` slices; these closed forms do not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from scipy.special import gammaln

from s3t.plan.survival.untouched import Floats

__all__ = ["all_permutations_after", "rotations_after"]


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
    at_least = [
        float((_windows(slices, sorted(set(starts)), k) / choices) @ occupancy)
        for k in range(1, slices + 1)
    ]
    return _from_at_least(np.array(at_least))


def _windows(slices: int, starts: Sequence[int], length: int) -> Floats:
    """Circular patterns that hold an untouched window of ``length`` slices from a start.

    The circle is cut at the first slice that is hit, z: the slices before z are untouched and come
    round again at the end. For all z at once the circle is walked once with the run of untouched
    slices so far, capped at ``length``; what has found a window is kept apart.

    Returns:
        [L + 1], by number of untouched slices.
    """
    numbers = np.arange(slices)
    found = np.zeros((slices, slices + 1))
    runs = np.zeros((slices, length + 1, slices + 1))
    runs[numbers, 0, numbers] = 1.0
    opens = np.zeros(slices, dtype=bool)
    opens[list(starts)] = True
    for offset in range(1, slices):
        at = numbers + offset  # per cut z the slice at this step, ≥ L once it has come round
        certain = at >= slices
        at %= slices
        grown = np.zeros_like(runs)
        grown[:, 1:] = runs[:, :-1]
        grown[:, -1] += runs[:, -1]
        lived = np.where(certain[:, None, None], grown, _shifted(grown))
        kept = np.where(certain[:, None], found, _shifted(found))
        fell = np.where(certain, 0.0, 1.0)[:, None]
        dead = runs.sum(axis=1) * fell
        found = kept + found * fell
        runs = lived
        runs[:, 0] += dead
        complete = opens[(at - length + 1) % slices]
        found[complete] += runs[complete, -1]
        runs[complete, -1] = 0.0
    total: Floats = found.sum(axis=0)
    total[slices] += 1.0  # nothing is hit
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

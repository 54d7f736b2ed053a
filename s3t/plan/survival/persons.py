"""Deletion requests of persons with different rates, at most one a person.

    person of slice c asks after an exponential time of rate w_c, all independently

By memorylessness this is the same as drawing the next one among those left with probabilities in
proportion to w; with equal weights it is the finite ``stream``. A slot of n persons is first hit
after an exponential time of rate n·w, a shard dies with the last of its living first slices, the
system with the last shard.

Invariant: draws are exact. The first hits of the living first slices are drawn. The number of
requests by then is the number of those hits plus a binomial number of all other persons, whose
times do not depend on them. In a living first slice these are the n − 1 persons left, counted from
its first hit; in every other slot all n, counted from the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s3t.plan.survival.stream import Floats

__all__ = ["Counts", "Mask", "median_requests", "simulate_deaths"]

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CELLS = 1 << 16
"""First slices × trials of a block, whose tables fit in a core's cache."""


def simulate_deaths(
    left: Counts, living: Mask, weights: Floats, trials: int, *, seed: int
) -> Floats:
    """Simulate the number of requests until a living shard dies, and until none lives.

    Args:
        left: [m, L], number of persons left in each slot.
        living: bool [m, L], first slices whose node is alive; at least one.
        weights: [L], rate of a person of each slice.
        trials: number of independent streams.
        seed: seed of the draws, from 0.

    Returns:
        [2, trials], the rows in this order; inf where it never comes.
    """
    slots, draw = _Slots.of(left, living, weights), np.random.default_rng(seed)

    def streams(count: int) -> Floats:
        times = draw.standard_exponential((count, len(slots.persons)))
        with np.errstate(divide="ignore"):
            times /= slots.weights * slots.persons
        deaths = np.maximum.reduceat(times, slots.starts, axis=1)
        last = _requests(draw, slots, times, deaths.max(axis=1))
        if deaths.shape[1] == 1:  # then the two are one
            return np.stack([last, last])
        return np.stack([_requests(draw, slots, times, deaths.min(axis=1)), last])

    size = max(1, _CELLS // len(slots.persons))
    parts = [streams(min(size, trials - start)) for start in range(0, trials, size)]
    return np.concatenate(parts, axis=1)


def median_requests(left: Counts, living: Mask, weights: Floats) -> Floats:
    """Median number of requests until each shard dies, to about one request, [m].

    The median time t is exact: Π (1 − e^{−n·w·t}) = ½ over the shard's living first slices. The
    result is the expected number of requests given that the shard dies at t, which is close to the
    median since the number is spread evenly about it.

    Args:
        left, living, weights: as ``simulate_deaths``.

    Returns:
        [m], whole numbers; inf for a shard with a first slice that is never hit, 0 without any.
    """
    rates = np.where(living, weights * left, np.inf)
    slowest, count = rates.min(axis=1), np.maximum(living.sum(axis=1), 1)
    usual = (slowest > 0) & (slowest < np.inf)
    slowest = np.where(usual, slowest, 1)
    # 1 − K·e^{−slowest·t} ≤ P(dead by t) ≤ 1 − e^{−slowest·t}
    low, high = math.log(2) / slowest, np.log(2 * count) / slowest
    for _ in range(50):
        middle = (low + high) / 2
        late = np.prod(-np.expm1(-rates * middle[:, None]), axis=1) > 0.5
        low, high = np.where(late, low, middle), np.where(late, middle, high)
    expected = _expected_requests(left, living, weights, high)
    found: Floats = np.where(usual, np.maximum(1, np.ceil(expected - 0.5)), np.inf)
    found[~living.any(axis=1)] = 0
    return found


def _expected_requests(left: Counts, living: Mask, weights: Floats, at: Floats) -> Floats:
    """Requests expected until each shard dies, given that this happens at time ``at``, [m].

    The shard's last first slice counts for one request; which one it is, has odds in proportion to
    the hazard f/F of its first hit. Each other one of n persons has been hit by now, and so counts
    for n·(1 − e^{−w·t}) / (1 − e^{−n·w·t}).
    """
    asked = -np.expm1(-weights * at[:, None])
    rates = weights * left
    hit = np.where(living & (rates > 0), -np.expm1(-rates * at[:, None]), 1)
    hazard = np.where(living, rates * (1 - hit) / hit, 0)
    total = hazard.sum(axis=1, keepdims=True)
    last = np.divide(hazard, total, out=np.zeros_like(hazard), where=total > 0)
    of_living = last + (1 - last) * left * asked / hit
    everybody = (left.sum(axis=0) * asked).sum(axis=1)
    found: Floats = everybody + np.where(living, of_living - left * asked, 0).sum(axis=1)
    return found


@dataclass(frozen=True, eq=False)
class _Slots:
    """The living first slices, by shard, and everybody else.

    Attributes:
        persons, weights: [K], of the living first slices.
        starts: where those of each living shard begin.
        others: [L], persons by slice in all slots besides.
        weight_of_others: [L].
    """

    persons: Counts
    weights: Floats
    starts: npt.NDArray[np.intp]
    others: Counts
    weight_of_others: Floats

    @classmethod
    def of(cls, left: Counts, living: Mask, weights: Floats) -> _Slots:
        shard, slice_ = np.nonzero(living)
        return cls(
            persons=left[shard, slice_],
            weights=weights[slice_],
            starts=np.flatnonzero(np.diff(shard, prepend=-1)),
            others=np.where(living, 0, left).sum(axis=0),
            weight_of_others=weights,
        )


def _requests(draw: np.random.Generator, slots: _Slots, times: Floats, at: Floats) -> Floats:
    """Requests until time ``at``, the moment of a first hit, itself included.

    Args:
        times: [n, K], first hits of the living first slices.
        at: [n], inf for never.

    Returns:
        [n], whole numbers or inf.
    """
    time = np.where(at < np.inf, at, 0)[:, None]
    elapsed = time - times
    hit = elapsed >= 0
    elapsed[~hit] = 0
    again = draw.binomial(np.maximum(slots.persons - 1, 0), -np.expm1(-slots.weights * elapsed))
    others = draw.binomial(slots.others, -np.expm1(-slots.weight_of_others * time))
    found = hit.sum(axis=1) + again.sum(axis=1) + others.sum(axis=1)
    return np.where(at < np.inf, found, np.inf)

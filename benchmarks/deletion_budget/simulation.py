"""Monte Carlo from first hits: how many requests plans last.

Every plan meets the same requests in a trial (common random numbers), so differences between plans
are far surer than each of them. Compare with ``exhaustion``, which is exact for one plan at a time;
simulate for joint laws, differences and whatever has no closed form.

Invariant: results depend on stream, plans, trials and seed, never on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from s3t.errors import InputError
from s3t.plan.survival.exhaustion import checked_mask
from s3t.plan.survival.hits import CELLS, Sizes, first_hits, in_chunks, log_uniform
from s3t.plan.survival.stream import Floats, Stream

__all__ = ["Estimate", "estimate", "simulate_exhaustion"]

Counts = npt.NDArray[np.int64]

_UNIFORM_CELLS = 1 << 18
"""Slots × trials of a block where slots are alike and tables are used again."""


@dataclass(frozen=True)
class Estimate:
    """A simulated mean with its 95 % confidence interval, mean ± half_width."""

    mean: float
    half_width: float
    trials: int

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        return abs(value - self.mean) <= self.half_width


def estimate(values: npt.ArrayLike) -> Estimate:
    """Mean of independent trials, with Student's interval (the normal one for many).

    Args:
        values: [trials], at least 2.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise InputError(f"values of shape {sample.shape}: give two trials or more")
    error = float(sample.std(ddof=1)) / len(sample) ** 0.5
    return Estimate(
        float(sample.mean()), float(stdtrit(len(sample) - 1, 0.975)) * error, len(sample)
    )


def simulate_exhaustion(
    stream: Stream,
    plans: Sequence[npt.ArrayLike],
    trials: int,
    *,
    seed: int,
    threads: int = 1,
) -> Counts:
    """Requests until each plan is exhausted, all plans over the same requests.

    Args:
        stream: what the requests hit.
        plans: per plan bool [m, L], the first slices that are still untouched.
        trials: independent repetitions.
        seed: of all draws.
        threads: chunks of trials that are worked on at a time.

    Returns:
        [trials, plans]; 0 for a plan without first slices.

    Raises:
        InputError: masks that do not fit, or a first slice that can never be hit.
    """
    masks = [checked_mask(stream, plan) for plan in plans]
    if not masks:
        raise InputError("no plans: give the first slices of one at least")
    if any(np.any(stream.weights[mask] == 0) for mask in masks):
        raise InputError("a first slice is never hit: that plan is never exhausted, leave it out")
    marks = np.stack([mask.ravel() for mask in masks])

    def task(draw: np.random.Generator, sizes: Sizes) -> Counts:
        if stream.is_uniform:
            return _exhausted_uniform(draw, marks, sizes)
        tables = (_numbers_by_slot(draw, stream, size) for size in sizes)
        ends = [[_latest(numbers[mark]) for mark in marks] for numbers in tables]
        return np.concatenate(ends, axis=1).astype(np.int64)

    cells = _UNIFORM_CELLS if stream.is_uniform else CELLS
    found = list(in_chunks(task, stream.slots, trials, seed, threads, cells))
    return np.concatenate(found, axis=1).T


def _latest(numbers: Floats) -> Floats:
    """The greatest per trial of [slots, trials]; 0 of no slots."""
    latest: Floats = np.max(numbers, axis=0, initial=0)
    return latest


def _numbers_by_slot(draw: np.random.Generator, stream: Stream, trials: int) -> Floats:
    """Request number of each slot's first hit, [N, trials]."""
    order, numbers = first_hits(draw, stream, trials)
    by_slot = np.empty((stream.slots, trials))
    by_slot[order, np.arange(trials)[:, None]] = numbers
    return by_slot


def _exhausted_uniform(
    draw: np.random.Generator, marks: npt.NDArray[np.bool_], sizes: Sizes
) -> Counts:
    """The same for slots that are alike: marks [plans, N] to requests [plans, trials].

    There order and waits are independent, so nothing need be sorted: a plan ends with its last
    first slice, the rank of which is counted, and the waits before that rank are summed. Slots can
    also change places: those that belong to the same plans are put side by side, and looked
    through once for all plans. Tables are [N, block] and used again: to fetch fresh memory would
    take as long as to fill it.
    """
    kinds, members = np.unique(marks, axis=1, return_counts=True)
    edges = np.concatenate([[0], np.cumsum(members)])
    outside = [_runs(~kind, edges) for kind in kinds]
    (plans, slots), block = marks.shape, sizes[0]
    count = np.min_scalar_type(slots)  # sums of small types are many times as fast
    keys, waits = np.empty((slots, block)), np.empty((slots, block))
    after = np.empty((slots, block), dtype=np.bool_)
    latest, last = np.empty((len(members), block)), np.empty(block)
    ranks = np.empty((plans, block), dtype=count)
    place, requests = np.empty((plans, block), dtype=np.intp), np.empty((plans, block))
    scale = 1 / np.log(np.arange(1, slots) / slots)[:, None]
    found = np.zeros((plans, sum(sizes)), dtype=np.int64)
    for number, size in enumerate(sizes):
        draw.random(out=keys)
        log_uniform(draw, waits)  # to become the repeats before each new slot, and their sums
        waits[0] = 0
        waits[1:] *= scale
        np.floor(waits, out=waits)
        for above, row in pairwise(waits):
            np.add(above, row, out=row)
        for row, (start, end) in zip(latest, pairwise(edges), strict=True):
            np.maximum.reduce(keys[start:end], axis=0, out=row)
        for kind, runs, rank in zip(kinds, outside, ranks, strict=True):
            last.fill(0)
            for one in compress(latest, kind):
                np.maximum(last, one, out=last)
            rank.fill(slots)
            for run in runs:
                np.greater(keys[run], last, out=after[run])
                later = np.add.reduce(after[run].view(np.uint8), axis=0, dtype=count)
                np.subtract(rank, later, out=rank)
        np.copyto(place, ranks)
        place *= block
        place += np.arange(block) - block  # the row above the rank: ranks are from 1
        np.take(waits, place, out=requests, mode="clip")
        requests += ranks
        found[:, number * block : number * block + size] = requests[:, :size]
    found[~kinds.any(axis=1)] = 0
    return found


def _runs(chosen: npt.NDArray[np.bool_], edges: npt.NDArray[np.intp]) -> list[slice]:
    """Rows of the chosen kinds, neighbours as one slice; kind k has rows edges[k] to edges[k+1]."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    return [slice(int(edges[start]), int(edges[end])) for start, end in turns.reshape(-1, 2)]

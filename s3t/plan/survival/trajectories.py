"""Monte Carlo of the longest surviving prefixes of all shards after 0, 1, … R requests.

    order of first hits ──► longest prefix after each hit ──► mean and variance after r = 0 … R
                            positions of slices in sequences, and their running minimum along the
                            hits of a shard

Prefixes change only at first hits, so a trial has at most N steps, for any number of requests. Each
step needs its request number. Where all slots are alike that does not depend on the order, and its
exact law (an occupancy) replaces draws, which removes their noise.

Several plans are followed over the same hits.

Invariant: results depend on stream, plans, trials and seed, never on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.hits import Sizes, Slots, first_hits, hit_order, in_chunks
from s3t.plan.survival.stream import Floats, Stream

__all__ = ["Lanes", "Table", "Trajectories", "follow_trials", "serve_by_sequences"]

Table = npt.NDArray[np.uint8]
Lanes = npt.NDArray[Any]
"""Unsigned integers; sums of lengths over the shards."""

_CELLS = 1 << 17
_OCCUPANCY_CELLS = 1 << 22
"""Maximum of slots × requests for which the law of the occupancy is tabulated."""

_ROWS = 512
"""Number of shards whose positions are computed in one block."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Served slices after 0, 1, …, R requests: the sum over shards of the longest surviving prefix.

    Attributes:
        mean: [plans, R + 1].
        variance: [plans, R + 1], of one trial.
        trials: number of independent trials.
    """

    mean: Floats
    variance: Floats
    trials: int

    @property
    def half_width(self) -> Floats:
        """95 % confidence of the means is mean ± half_width, or better: [plans, R + 1]."""
        half: Floats = 1.96 * np.sqrt(self.variance / self.trials)
        return half


def serve_by_sequences(
    stream: Stream,
    plans: Sequence[Sequence[Sequence[int]]],
    requests: int,
    trials: int,
    *,
    seed: int,
    threads: int = 1,
) -> Trajectories:
    """Follow plans given by sequences, each the same for all shards; L and B may be large.

    Args:
        stream: what the requests hit.
        plans: per plan its sequences of slice numbers; they may end early.
        requests: R.
        trials: independent repetitions.
        seed: of all draws.
        threads: chunks of trials that are worked on at a time.

    Raises:
        InputError: no sequences, a slice that does not exist or comes twice, over 255 slices, or
            no requests.
    """
    if not plans or stream.slices > 255:
        raise InputError(f"{len(plans)} plans, {stream.slices} slices: expected plans, up to 255")
    positions = [_positions(plan, stream.slices) for plan in plans]

    def follow(order: Slots) -> Lanes:
        return _sequence_sums(positions, stream, order)

    return follow_trials(stream, len(plans), requests, trials, seed, threads, follow)


def follow_trials(
    stream: Stream,
    plans: int,
    requests: int,
    trials: int,
    seed: int,
    threads: int,
    follow: Callable[[Slots], Lanes],
) -> Trajectories:
    """Moments along the requests, of plans that are all followed over the same hits.

    Args:
        stream: what the requests hit.
        plans: how many.
        requests: R.
        trials, seed, threads: as for ``serve_by_sequences``.
        follow: from an order [trials, N] of hits to sums over the shards, [N + 1, trials, plans].

    Raises:
        InputError: fewer than no requests.
    """
    if requests < 0:
        raise InputError(f"{requests} requests: expected a number from 0")
    by_hits = stream.is_uniform and stream.slots * (requests + 1) <= _OCCUPANCY_CELLS
    length = stream.slots + 1 if by_hits else requests + 1

    def task(draw: np.random.Generator, sizes: Sizes) -> Floats:
        moments = np.zeros((2, plans, length))
        for size in sizes:
            if by_hits:
                _add_by_hits(moments, follow(hit_order(draw, stream, size)[0]))
            else:
                order, numbers = first_hits(draw, stream, size)
                _add_changes(moments, follow(order), numbers.T)
        return moments

    moments = sum(in_chunks(task, stream.slots, trials, seed, threads, _CELLS)) / trials
    if by_hits:
        moments = moments @ _occupancy(stream.slots, requests)
    else:
        moments = np.cumsum(moments, axis=2)
    mean, square = moments
    return Trajectories(mean, np.maximum(square - mean**2, 0), trials)


def _add_by_hits(moments: Floats, sums: Lanes) -> None:
    """Add Σ x and Σ x² after each number of hits: moments [2, plans, N + 1]."""
    exact_in_single = int(sums[0].max()) ** 2 * sums.shape[1] < 1 << 24
    kind: type[np.floating[Any]] = np.float32 if exact_in_single else np.float64
    for plan in range(moments.shape[1]):
        x: npt.NDArray[Any] = sums[:, :, plan].astype(kind)
        moments[0, plan] += x.sum(axis=1)
        moments[1, plan] += np.einsum("kt,kt->k", x, x)


def _add_changes(moments: Floats, sums: Lanes, numbers: Floats) -> None:
    """Add the changes of Σ x and Σ x² at each request: [2, plans, R + 1]; numbers [N, trials]."""
    last = moments.shape[2]
    at = np.minimum(numbers, last).astype(np.intp).ravel()
    for plan in range(moments.shape[1]):
        lane = np.ascontiguousarray(sums[:, :, plan])
        start = lane[0].astype(np.float64)
        moments[:, plan, 0] += start.sum(), (start**2).sum()
        before, after = lane[:-1].ravel(), lane[1:].ravel()
        changed = np.flatnonzero(before != after)
        x, y = before[changed].astype(np.float64), after[changed].astype(np.float64)
        when = at[changed]
        moments[0, plan] += np.bincount(when, y - x, last + 1)[:last]
        moments[1, plan] += np.bincount(when, y**2 - x**2, last + 1)[:last]


def _occupancy(slots: int, requests: int) -> Floats:
    """P(h slots are hit after r requests) for slots that are alike, [N + 1, R + 1]."""
    law = np.zeros((slots + 1, requests + 1))
    law[0, 0] = 1
    again = np.arange(slots + 1) / slots
    for r in range(requests):
        law[:, r + 1] = law[:, r] * again
        law[1:, r + 1] += law[:-1, r] * (1 - again[:-1])
    return law


def _positions(sequences: Sequence[Sequence[int]], slices: int) -> Table:
    """Slices of sequence b before slice c, all of them if it is not in it: [L + 1, B].

    The last row is the sequences' lengths.
    """
    if not sequences:
        raise InputError("a plan without sequences: give one at least")
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.uint8)
    positions = np.tile(lengths, (slices + 1, 1))
    for b, sequence in enumerate(sequences):
        if len(set(sequence)) < len(sequence) or not set(sequence) <= set(range(slices)):
            raise InputError(
                f"sequence {list(sequence)} repeats a slice or names one outside 0 to {slices - 1}"
            )
        positions[list(sequence), b] = np.arange(len(sequence))
    return positions


def _sequence_sums(positions: Sequence[Table], stream: Stream, order: Slots) -> Lanes:
    """Sums after each hit, [N+1, trials, plans]."""
    trials, slots = order.shape
    ranks = np.empty((trials, slots), dtype=np.int32)
    np.put_along_axis(ranks, order, np.arange(slots, dtype=np.int32)[None, :], axis=1)
    ranks = ranks.reshape(-1, stream.slices)  # [trials · m, L], when each slice is hit
    by_shard = np.argsort(ranks, axis=1)
    at = np.take_along_axis(ranks, by_shard, axis=1).reshape(trials, slots) + 1
    sums = np.empty((slots + 1, trials, len(positions)), dtype=np.uint32)
    for plan, table in enumerate(positions):
        lengths = _lengths(table, by_shard)
        lost = (lengths[:, :-1] - lengths[:, 1:]).reshape(trials, slots)
        change = np.zeros((trials, slots + 1), dtype=np.int64)
        np.put_along_axis(change, at.astype(np.intp), lost, axis=1)
        start = stream.shards * int(table[-1].max())
        sums[:, :, plan] = (start - np.cumsum(change, axis=1)).T
    return sums


def _lengths(positions: Table, by_shard: Slots) -> Table:
    """Longest prefix after 0 … L hits of a shard: slices [shards, L] to lengths [shards, L + 1]."""
    shards, slices = by_shard.shape
    lengths = np.zeros((shards, slices + 1), dtype=np.uint8)
    lengths[:, 0] = positions[-1].max()
    for start in range(0, shards, _ROWS):
        rows = slice(start, min(start + _ROWS, shards))
        hits = np.ascontiguousarray(by_shard[rows].T)
        left = np.repeat(positions[-1:], hits.shape[1], axis=0)
        cut = np.empty_like(left)
        for number, c in enumerate(hits, start=1):
            np.take(positions, c, axis=0, out=cut, mode="clip")
            np.minimum(left, cut, out=left)
            lengths[rows, number] = left.max(axis=1)
    return lengths

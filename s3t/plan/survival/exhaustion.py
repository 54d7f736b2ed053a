"""How many requests a plan lasts: the exact laws of its first shard's death and its exhaustion.

A first slice is one that begins a sequence: it has a node of stage 1. A shard has a prefix left iff
one of its first slices is not hit. So a shard dies when all its first slices are hit, and the
system is exhausted when those of all shards are. On the clock of ``stream``, with w_i the weight of
slot i,

    P(all of a set are hit by t)   F(t) = Π (1 − e^{−w_i t})
    P(exhausted by t)              F over all first slices
    P(no shard dead by t)          Π_shards (1 − F_shard(t))

and ``law`` turns time into requests. Only first slices matter, so isolation by layers (S3T) and by
snapshots (SISA) last equally long with the same sequences.

For equal slots there are closed forms, which the tests compare with: R = Σ_{i ≤ K} Geometric(i/N),
with mean N·H(K) and variance Σ N·(N − i)/i² (arXiv 2406.16257, section 4: a coupon collector); and
for K slices of n samples each, deleted without repeats, (M + 1)·(1 − Π_{j ≤ K} j/(j + 1/n)).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import expm1, log1p

from s3t.errors import InputError
from s3t.plan.survival.law import RequestLaw, Times
from s3t.plan.survival.stream import Floats, Stream

__all__ = ["checked_mask", "uniform_exhaustion", "until_exhausted", "until_first_death"]

Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 17
"""Times × weights that are computed in one block: 2 MiB a table."""


def uniform_exhaustion(slots: int, first_slices: int) -> RequestLaw:
    """The law of the number of requests until K of N equally likely slots are hit, with repeats.

    Args:
        slots: N = m · L.
        first_slices: K ≤ N; for rotations m·min(B, L).

    Raises:
        InputError: no slot, or more first slices than slots.
    """
    if not 0 <= first_slices <= slots or not slots:
        raise InputError(f"{first_slices} first slices of {slots} slots: expected 0 to all of them")
    rate = np.array([1 / slots])
    return RequestLaw(_AllHit(rate, np.array([float(first_slices)])), None)


def until_exhausted(stream: Stream, first: npt.ArrayLike) -> RequestLaw:
    """The law of the number of requests until no shard has a surviving prefix.

    Args:
        stream: the stream of requests.
        first: bool [m, L], the first slices that are not hit yet.

    Returns:
        R; 0 if no first slice is left, infinite if one can never be hit.

    Raises:
        InputError: ``first`` is no table of m × L.
    """
    mask = checked_mask(stream, first)
    return RequestLaw(_all_hit(stream.weights[mask]), stream.samples)


def until_first_death(stream: Stream, first: npt.ArrayLike) -> RequestLaw:
    """The law of the number of requests until one of the shards that serve has no prefix left.

    Args:
        stream: the stream of requests.
        first: bool [m, L], the first slices that are not hit yet; a shard without any is dead and
            is left out.

    Returns:
        R; infinite if each shard has a first slice that can never be hit.

    Raises:
        InputError: ``first`` is no table of m × L, or every shard is dead.
    """
    mask = checked_mask(stream, first)
    if not mask.any():
        raise InputError("no shard has a first slice left: all are dead already")
    alike = Counter(
        np.sort(weights[chosen]).tobytes()
        for weights, chosen in zip(stream.weights, mask, strict=True)
        if chosen.any()
    )
    shards = ((_all_hit(np.frombuffer(row)), count) for row, count in alike.items())
    return RequestLaw(_AnyShard(tuple(s for s in shards if s[0].certain)), stream.samples)


def checked_mask(stream: Stream, first: npt.ArrayLike) -> Mask:
    """``first`` as an array of bool, [m, L].

    Raises:
        InputError: another shape or type.
    """
    mask = np.asarray(first)
    if mask.dtype != np.bool_ or mask.shape != stream.weights.shape:
        raise InputError(
            f"first slices of type {mask.dtype} and shape {mask.shape}: "
            f"expected bool of shape {stream.weights.shape}"
        )
    return mask


@dataclass(frozen=True, eq=False)
class _AllHit:
    """The event that all slots of a set are hit. Slots of equal weight form a group.

    Attributes:
        weights: [g], the distinct weights.
        counts: [g], number of slots of each weight.
    """

    weights: Floats
    counts: Floats

    @property
    def certain(self) -> bool:
        return bool(np.all((self.weights > 0) | (self.counts == 0)))

    @cached_property
    def bracket(self) -> tuple[float, float]:
        slots = float(self.counts.sum())
        if not slots:
            return 0.0, 0.0
        slowest = (math.log(slots) + 50) / float(self.weights.min())
        return _narrowed(float(self.weights @ self.counts), slowest, self.pending, self.happened)

    def pending(self, times: Times) -> Times:
        found: Times = -expm1(self.log_happened(times))
        return found

    def happened(self, times: Times) -> Times:
        found: Times = np.exp(self.log_happened(times))
        return found

    def log_happened(self, times: Times) -> Times:
        """log P(T ≤ t) = Σ_g counts_g · log(1 − e^{−weights_g · t}), [n]."""
        total = np.zeros_like(times)
        width = max(1, _BLOCK // max(1, len(times)))
        for start in range(0, len(self.weights), width):
            weights, counts = (
                self.weights[start : start + width],
                self.counts[start : start + width],
            )
            terms = log1p(-np.exp(-np.multiply.outer(times, weights)))
            total += np.einsum("tg,g->t", terms, counts)
        return total


@dataclass(frozen=True, eq=False)
class _AnyShard:
    """The event that at least one shard has all its first slices hit.

    Attributes:
        shards: distinct shards, with the number of those that are alike; all certain.
    """

    shards: tuple[tuple[_AllHit, int], ...]

    @property
    def certain(self) -> bool:
        return bool(self.shards)

    @cached_property
    def bracket(self) -> tuple[float, float]:
        fastest = sum(float(one.weights @ one.counts) * count for one, count in self.shards)
        slowest = min(one.bracket[1] for one, _ in self.shards)
        return _narrowed(fastest, slowest, self.pending, self.happened)

    def pending(self, times: Times) -> Times:
        total = np.zeros_like(times)
        for one, count in self.shards:
            dead = one.happened(times)
            # e^{−10,000} is 0, where the logarithm of 0 would make complex products undefined.
            total += count * np.where(dead == 1, -1e4, log1p(-dead))
        found: Times = np.exp(total)
        return found

    def happened(self, times: Times) -> Times:
        return 1 - self.pending(times)


def _all_hit(weights: Floats) -> _AllHit:
    distinct, counts = np.unique(weights, return_counts=True)
    return _AllHit(distinct, counts.astype(np.float64))


def _narrowed(
    total: float,
    latest: float,
    pending: Callable[[Times], Times],
    happened: Callable[[Times], Times],
) -> tuple[float, float]:
    """The bracket of an event, bisected from Σw, with which 1e-19/Σw is early, and a late time."""
    first, last = math.log(1e-19 / total), math.log(latest)

    def bisected(is_late: Callable[[Times], bool]) -> tuple[float, float]:
        early, late = first, last
        while late - early > 0.05:
            middle = (early + late) / 2
            early, late = (early, middle) if is_late(np.exp([middle])) else (middle, late)
        return early, late

    start, _ = bisected(lambda time: bool(happened(time)[0] > 1e-18))
    _, end = bisected(lambda time: bool(pending(time)[0] < 1e-20))
    return math.exp(start), math.exp(end)

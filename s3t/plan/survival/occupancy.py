"""The number of a shard's slices that are not hit, if all slots are hit with equal probability.

    P(a given set of s slices is untouched after r requests) = (1 − s/N)^r
    P(exactly j are) = C(L, j)·Σ_i (−1)^i·C(L − j, i)·P(a given j + i are)

Given the number, every set of untouched slices is equally likely, so the law of the number is
enough. The mean along a horizon is a geometric series, so it costs the same for any length.

Invariant: requests are counted, with repeats; nothing is simulated. Rounding is below 1e-9 up to
``SLICES`` slices; beyond, the alternating sum loses too much.
"""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.untouched import Floats

__all__ = ["SLICES", "occupancy", "occupancy_along"]

SLICES = 14
"""Most slices: the coefficients of one j sum to C(L, j)·2^(L − j), at most a million."""


def occupancy(slices: int, slots: npt.ArrayLike, requests: int) -> Floats:
    """P(j of a shard's slices are untouched after r requests), j = 0 … L.

    Args:
        slices: L, at most ``SLICES``.
        slots: [n], numbers of slots N = m·L that a request may hit, of n systems.
        requests: r ≥ 0.

    Returns:
        [n, L + 1].

    Raises:
        InputError: too many slices, fewer slots than slices, or negative requests.
    """
    log_kept = _log_kept(slices, slots, requests)
    with np.errstate(invalid="ignore"):
        return _exactly(np.where(requests == 0, 1.0, np.exp(requests * log_kept)))


def occupancy_along(slices: int, slots: npt.ArrayLike, requests: int) -> Floats:
    """The mean of ``occupancy`` after 0, 1, …, r requests: shape and errors as there."""
    log_kept = _log_kept(slices, slots, requests)
    lost = -np.expm1(log_kept)
    with np.errstate(invalid="ignore"):
        sums = -np.expm1((requests + 1) * log_kept) / (lost * (requests + 1))
    return _exactly(np.where(lost == 0, 1.0, sums))


def _log_kept(slices: int, slots: npt.ArrayLike, requests: int) -> Floats:
    """log of 1 − s/N for s = 0 … L: [n, L + 1]."""
    systems = np.atleast_1d(np.asarray(slots, dtype=np.float64))
    if not 1 <= slices <= SLICES or (systems < slices).any() or requests < 0:
        raise InputError(
            f"{slices} slices among {systems.tolist()} slots, {requests} requests: expected 1 to "
            f"{SLICES} slices, no fewer slots, and requests from 0"
        )
    with np.errstate(divide="ignore"):
        return np.log1p(-np.arange(slices + 1) / systems[:, None])


def _exactly(untouched: Floats) -> Floats:
    """P(exactly j) from P(a given set of s), along the last axis."""
    slices = untouched.shape[-1] - 1
    signed = np.zeros((slices + 1, slices + 1))
    for j in range(slices + 1):
        for more in range(slices - j + 1):
            signed[j + more, j] = (-1) ** more * comb(slices, j) * comb(slices - j, more)
    return np.maximum(untouched @ signed, 0.0)

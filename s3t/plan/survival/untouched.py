"""Which slices of one shard are still untouched: laws over all 2^L sets of them.

    rates, horizon ──► law: float64 [2^L]      index: bit c is set iff slice c is untouched
                        │
                        ├── contained   P(U ⊇ S) for every S     superset sums (zeta)
                        └── exactly     P(U = S) from P(U ⊇ S)   superset Möbius

A prefix survives iff its *set* of slices is untouched, so a law over sets says everything about
survival, for any sequences and trees.

Invariant: a law is non-negative and sums to 1 up to rounding. Exact for up to ``LIMIT`` slices;
what needs more is simulated (``trajectories``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError

__all__ = [
    "LIMIT",
    "after_requests",
    "after_time",
    "along_time",
    "contained",
    "exactly",
    "halves",
    "set_sizes",
    "set_sums",
]

Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)

LIMIT = 20
"""Most slices for which a law over sets is built: 2^20 numbers, 8 MiB."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
"""Gauss–Legendre on [−1, 1]: exact to rounding for e^{−x} over horizons of some tens."""


def set_sums(values: Sequence[float]) -> Floats:
    """Σ_{c ∈ S} values[c] for every set S.

    Args:
        values: [L].

    Returns:
        [2^L], by bit mask.

    Raises:
        InputError: more than ``LIMIT`` values.
    """
    if len(values) > LIMIT:
        raise InputError(
            f"{len(values)} slices are over the {LIMIT} for which every set of slices is looked "
            "at: use fewer slices, or simulate"
        )
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def set_sizes(slices: int) -> npt.NDArray[np.uint8]:
    """|S| for every set S: [2^L]."""
    return np.bitwise_count(np.arange(1 << slices, dtype=np.uint32)).astype(np.uint8)


def contained(law: Floats) -> Floats:
    """Superset sums: Σ_{U ⊇ S} law(U) for every S. O(L·2^L).

    Args:
        law: [..., 2^L]; leading axes are transformed one by one.
    """
    sums = np.array(law)
    for low, high in halves(sums):
        np.add(low, high, out=low)
    return sums


def exactly(containing: Floats) -> Floats:
    """Superset Möbius: the law whose superset sums these are, rounding below 0 cut off.

    Args:
        containing: [2^L], P(S untouched) by mask.
    """
    law = np.array(containing)
    for low, high in halves(law):
        np.subtract(low, high, out=low)
    return np.maximum(law, 0.0)


def after_requests(rates: Sequence[float], requests: int) -> Floats:
    """After r requests, each of which hits slice c with probability rates[c], with repeats.

    P(S untouched) = (1 − p(S))^r, then Möbius. A request may miss the shard: the rates of a shard
    sum to at most 1.

    Args:
        rates: [L], probability that one request hits the slice.
        requests: r ≥ 0.

    Raises:
        InputError: rates that are no probabilities, or too many slices.
    """
    mass = _checked(rates, requests, "requests")
    if mass[-1] > 1 + 1e-9:
        raise InputError(f"rates of a shard sum to {mass[-1]:g}: they are shares of all requests")
    return exactly(np.power(np.clip(1 - mass, 0, 1), requests))


def after_time(rates: Sequence[float], time: float) -> Floats:
    """After time t of Poisson arrivals, slice c at rates[c]: P(c untouched) = e^{−rates[c]·t}.

    Slices are independent, so the law is a product and nothing is subtracted.

    Args:
        rates: [L], requests per unit of time; 0 for a slice that is never hit.
        time: t ≥ 0.

    Raises:
        InputError: negative or infinite values, or too many slices.
    """
    _checked(rates, time, "time")
    law = np.ones(1)
    for rate in rates:
        law = np.concatenate([law * -np.expm1(-rate * time), law * np.exp(-rate * time)])
    return law


def along_time(rates: Sequence[float], horizon: float) -> Floats:
    """The mean of ``after_time`` over all moments from 0 to ``horizon``.

    Expected values under it are averages along the horizon. Gauss–Legendre with 48 nodes over the
    product law, so that no term is negative.
    """
    _checked(rates, horizon, "horizon")
    law = np.zeros(1 << len(rates))
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        law += weight / 2 * after_time(rates, horizon * (node + 1) / 2)
    return law


def halves(array: npt.NDArray[Number]) -> list[tuple[npt.NDArray[Number], npt.NDArray[Number]]]:
    """Per slice two views of [..., 2^L]: the sets without it, and the same sets with it."""
    slices = array.shape[-1].bit_length() - 1
    pairs = []
    for c in range(slices):
        cut = array.reshape(*array.shape[:-1], -1, 2, 1 << c)
        pairs.append((cut[..., 0, :], cut[..., 1, :]))
    return pairs


def _checked(values: Sequence[float], amount: float, name: str) -> Floats:
    if not len(values) or not all(0 <= value < np.inf for value in values):
        raise InputError(f"rates or sizes {list(values)}: expected one number from 0 per slice")
    if not 0 <= amount < np.inf:
        raise InputError(f"{name} {amount}: expected a number from 0")
    return set_sums(values)

"""The longest surviving prefix by Monte Carlo: any number of slices, any tree, any rates.

For trees of more than ``untouched.LIMIT`` slices. Up to there ``lengths`` is exact, and the tests
compare the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.untouched import Floats

__all__ = ["lengths_after_requests", "lengths_after_time"]

Hit = npt.NDArray[np.bool_]
_Z = 1.959964


def lengths_after_time(
    sequences: Iterable[Sequence[int]],
    rates: Sequence[float],
    time: float,
    trials: int,
    *,
    seed: int,
) -> tuple[Floats, Floats]:
    """P(longest surviving prefix = k) after Poisson time t, with its 95 % half-width.

    Args:
        sequences: of one shard; they may end early.
        rates: [L], requests per unit of time on slice c.
        time: t ≥ 0.
        trials: independent draws.
        seed: of the draws.

    Returns:
        ([L + 1], [L + 1]): the law, and half the width of each value's interval.

    Raises:
        InputError: rates or time that are negative or no numbers, a slice that does not exist.
    """
    chances = -np.expm1(-_checked(rates, time, "time") * time)
    draw = np.random.default_rng(seed)
    return _law(sequences, draw.random((trials, len(chances))) < chances)


def lengths_after_requests(
    sequences: Iterable[Sequence[int]],
    rates: Sequence[float],
    requests: int,
    trials: int,
    *,
    seed: int,
) -> tuple[Floats, Floats]:
    """P(longest surviving prefix = k) after r requests, with its 95 % half-width.

    Args:
        sequences: of one shard; they may end early.
        rates: [L], probability that one request hits the slice; what is left misses the shard.
        requests: r ≥ 0.
        trials: independent draws.
        seed: of the draws.

    Returns:
        As ``lengths_after_time``.

    Raises:
        InputError: as there, and rates that sum to more than 1.
    """
    shares = _checked(rates, requests, "requests")
    missed = 1 - shares.sum()
    if missed < -1e-9:
        raise InputError(f"rates sum to {shares.sum():g}: they are shares of all requests")
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(requests, [*shares, max(missed, 0.0)], size=trials)
    return _law(sequences, counts[:, :-1] > 0)


def _law(sequences: Iterable[Sequence[int]], hit: Hit) -> tuple[Floats, Floats]:
    trials, slices = hit.shape
    longest = np.zeros(trials, dtype=np.int64)
    for sequence in sequences:
        if any(not 0 <= c < slices for c in sequence):
            raise InputError(f"sequence {list(sequence)} names a slice outside 0 to {slices - 1}")
        along = hit[:, list(sequence)]
        kept = np.where(along.any(axis=1), along.argmax(axis=1), len(sequence))
        np.maximum(longest, kept, out=longest)
    law = np.bincount(longest, minlength=slices + 1) / trials
    return law, _Z * np.sqrt(law * (1 - law) / trials)


def _checked(rates: Sequence[float], amount: float, name: str) -> Floats:
    found = np.asarray(rates, dtype=np.float64)
    if not len(found) or not ((found >= 0) & (found < np.inf)).all():
        raise InputError(f"rates {list(rates)}: expected one number from 0 per slice")
    if not 0 <= amount < np.inf:
        raise InputError(f"{name} {amount}: expected a number from 0")
    return found

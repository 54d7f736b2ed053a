"""The stream of deletion requests: what each request hits, with or without repeats.

    endless   requests without end; each hits a slot with a fixed probability, again and again
    finite    each request deletes a sample that is still there, uniformly among those left

Both are counted exactly by giving them a clock. Let every slot be hit for the first time after an
exponential time of rate w_i, independently of the others:

    endless   w_i = rate of slot i: requests come as a Poisson process of rate 1
    finite    w_i = samples in slot i: every sample is deleted after an exponential time of rate 1

The clock does not change which request hits what, so whatever is asked of the requests can be asked
of independent times first (``law``, ``hits``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError

__all__ = ["Stream", "endless", "finite", "uniform"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stream:
    """Requests over the slots of m shards × L slices. Made by ``uniform``, ``endless``, ``finite``.

    Attributes:
        weights: [m, L], rate of each slot's first hit on the clock: its share of the requests, or
            its number of samples; 0 for a slot that is never hit.
        samples: M, samples in all slots; None for an endless stream.
    """

    weights: Floats
    samples: int | None

    @property
    def shards(self) -> int:
        """m."""
        return int(self.weights.shape[0])

    @property
    def slices(self) -> int:
        """L."""
        return int(self.weights.shape[1])

    @property
    def slots(self) -> int:
        """N = m · L."""
        return int(self.weights.size)

    @property
    def is_uniform(self) -> bool:
        """Whether the stream is endless and every slot is as likely."""
        return self.samples is None and bool(np.all(self.weights == self.weights[0, 0]))


def uniform(shards: int, slices: int) -> Stream:
    """An endless stream in which every slot is as likely: the setting of the paper.

    Raises:
        InputError: fewer than one shard or slice.
    """
    if shards < 1 or slices < 1:
        raise InputError(f"{shards} shards × {slices} slices: both must be 1 or more")
    return Stream(np.full((shards, slices), 1 / (shards * slices)), None)


def endless(rates: Sequence[Sequence[float]] | npt.ArrayLike) -> Stream:
    """An endless stream: a request hits slot i with probability rates[i] / Σ rates.

    Args:
        rates: [m, L], relative; 0 for a slice that is never asked for.

    Raises:
        InputError: no table of m × L, a rate that is negative or no number, or all of them 0.
    """
    table = _table(rates, "rates")
    return Stream(table / table.sum(), None)


def finite(sizes: Sequence[Sequence[int]] | npt.ArrayLike) -> Stream:
    """A stream without repeats: it deletes all samples, one by one, in random order.

    Args:
        sizes: [m, L], samples that are still there; 0 for a slice that holds none.

    Raises:
        InputError: no table of m × L, a size that is negative or not whole, or all of them 0.
    """
    table = _table(sizes, "sizes")
    if np.any(table != np.floor(table)):
        wrong = float(table[table != np.floor(table)][0])
        raise InputError(f"sizes has {wrong}: samples are counted in whole numbers")
    return Stream(table, int(table.sum()))


def _table(values: Sequence[Sequence[float]] | npt.ArrayLike, name: str) -> Floats:
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is no table of numbers: give m rows of L") from None
    if table.ndim != 2 or not table.size:
        raise InputError(f"{name} has shape {table.shape}: give m rows of L numbers")
    wrong = table[~((table >= 0) & (table < np.inf))]
    if len(wrong):
        raise InputError(f"{name} has {float(wrong[0])}: expected finite numbers from 0")
    if not table.any():
        raise InputError(f"{name} are all 0: at least one slice must be hit now and then")
    return table

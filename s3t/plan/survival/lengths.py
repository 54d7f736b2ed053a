"""How long the longest surviving prefix of a shard is, and what that is worth.

    prefixes ──length_table──► longest prefix inside each untouched set [2^L]
                                        │ law over untouched sets (``untouched``)
                                        ▼
                              P(longest = k), k = 0 … L ──► served data, utility

Any tree under any law costs O(L·2^L), to ``untouched.LIMIT`` slices.

Invariant: what serves is the prefix of greatest length, as in ``schedule``. Shards look alike and
expectation is linear, so one shard speaks for the system.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.untouched import LIMIT, Floats, halves

__all__ = [
    "expected_utility",
    "length_law",
    "length_table",
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

"""The expected number of deletions until a plan is exhausted.

Invariant: closed forms only, each with its assumptions and source.
"""

from __future__ import annotations

import math

__all__ = ["expected_deletions"]


def expected_deletions(slots: int, first_slices: int) -> float:
    """Expected deletion requests until no shard has a surviving prefix: N · H(K).

    A shard has a prefix left iff one of its first slices is untouched, so the plan ends when all
    K first slices are hit. With i of them left the next request hits one with probability i/N,
    which takes N/i requests on average; H(K) = 1 + 1/2 + … + 1/K sums those waits.

    Assumes that each request falls into one of the N slots uniformly and independently, that is
    with replacement. Source: arXiv 2406.16257, section 4 (deletion rate, a coupon collector).

    Args:
        slots: N = shards × slices.
        first_slices: K, distinct (shard, first slice) over all sequences; m·min(B, L) for cyclic.

    Returns:
        Requests; 0 when there is no first slice.
    """
    return slots * math.fsum(1 / left for left in range(1, first_slices + 1))

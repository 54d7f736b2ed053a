"""What a plan serves along a horizon of deletions: expected slices, and whether anything is left.

Exact, by the laws of ``survival``: requests are counted, each hits a slice with its rate, with
repeats. Over ``untouched.LIMIT`` slices what is served is simulated; the risk of exhaustion is
exact for any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s3t.errors import InputError
from s3t.plan.sequences import Sequences
from s3t.plan.survival.exhaustion import until_exhausted
from s3t.plan.survival.lengths import length_law, length_table, served
from s3t.plan.survival.stream import endless
from s3t.plan.survival.trajectories import serve_by_sequences
from s3t.plan.survival.untouched import LIMIT, after_requests
from s3t.plan.trie import prefixes

__all__ = ["Along", "Moment", "along"]

TRIALS = 2000
"""Of a simulation: within half a percent of all slices."""


@dataclass(frozen=True)
class Moment:
    """What is expected after some deletions.

    Attributes:
        requests: r, deletions so far.
        slices_served: per shard, the longest surviving prefix.
        data_served: the same as a share of all slices.
        exhausted: P(no shard has a prefix left).
    """

    requests: int
    slices_served: float
    data_served: float
    exhausted: float


@dataclass(frozen=True)
class Along:
    """A plan along a horizon.

    Attributes:
        moments: as asked for.
        trials: of the simulation of what is served, None where it is exact.
    """

    moments: tuple[Moment, ...]
    trials: int | None


def along(
    shards: int, rates: Sequence[float], sequences: Sequences, requests: Sequence[int]
) -> Along:
    """Expectations after r deletions, for each r that is asked for.

    Args:
        shards: m, all alike.
        rates: [L], relative, how often a slice of each shard is hit.
        sequences: of each shard; they may end early.
        requests: r ≥ 0, ascending.

    Raises:
        InputError: rates or requests that are none.
    """
    if not requests or min(requests) < 0:
        raise InputError(f"requests {list(requests)}: expected numbers from 0")
    slices = len(rates)
    stream = endless([list(rates)] * shards)
    first = np.zeros((shards, slices), dtype=np.bool_)
    first[:, sorted({sequence[0] for sequence in sequences})] = True
    left = until_exhausted(stream, first).survival(np.array(requests))
    if slices <= LIMIT:
        table = length_table(prefixes(sequences), slices)
        per_request = stream.weights[0].tolist()
        found = [served(length_law(table, after_requests(per_request, r))) for r in requests]
    else:
        followed = serve_by_sequences(stream, [sequences], max(requests), TRIALS, seed=0)
        found = (followed.mean[0, list(requests)] / shards).tolist()
    gone = np.where(left < 1 - 1e-12, 1 - left, 0.0).tolist()  # rounding is not taken for a risk
    moments = tuple(
        Moment(r, length, length / slices, risk)
        for r, length, risk in zip(requests, found, gone, strict=True)
    )
    return Along(moments, TRIALS if slices > LIMIT else None)

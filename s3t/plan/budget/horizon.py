"""What a plan serves after r deletions: the expected length of prefixes, and P(exhausted).

Each request hits a slice with a probability in proportion to its rate, with repeats. Lengths are
exact up to ``untouched.LIMIT`` slices and simulated beyond; P(exhausted) is always exact.
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
"""Number of simulated streams; the error is below half a percent of all slices."""


@dataclass(frozen=True)
class Moment:
    """Expectations after some deletions.

    Attributes:
        requests: r, number of deletions.
        slices_served: expected length of a shard's longest surviving prefix, in slices.
        data_served: the same as a fraction of all slices.
        exhausted: probability that no shard has a prefix left.
    """

    requests: int
    slices_served: float
    data_served: float
    exhausted: float


@dataclass(frozen=True)
class Along:
    """Expectations of one plan after several numbers of deletions.

    Attributes:
        moments: one for each number of deletions asked for.
        trials: number of simulated streams; None where lengths are exact.
    """

    moments: tuple[Moment, ...]
    trials: int | None


def along(
    shards: int, rates: Sequence[float], sequences: Sequences, requests: Sequence[int]
) -> Along:
    """Expectations after each of some numbers of deletions.

    Args:
        shards: m, all with the same sequences.
        rates: [L], relative rate at which each slice of a shard is hit.
        sequences: sequences of each shard; they may be shorter than L.
        requests: numbers of deletions, from 0, ascending.

    Raises:
        InputError: impossible rates or numbers of deletions.
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

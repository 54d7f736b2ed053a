"""Trajectories of plans that are given by tables: any tree of up to 16 slices, by untouched set.

Sums of several plans are lanes of one 64-bit word: eight plans to a word while m · L ≤ 255, four
beyond. ``s3t`` itself follows sequences; this is what they are held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.hits import Slots
from s3t.plan.survival.stream import Stream
from s3t.plan.survival.trajectories import Lanes, Table, Trajectories, follow_trials

__all__ = ["serve_by_tables"]

TABLE_LIMIT = 16
"""Maximum number of slices for tables; larger ones do not fit in the cache."""


def serve_by_tables(
    stream: Stream,
    tables: Sequence[Table],
    requests: int,
    trials: int,
    *,
    seed: int,
    threads: int = 1,
) -> Trajectories:
    """Follow plans given by tables, each the same for all shards.

    Args:
        stream: what the requests hit.
        tables: per plan [2^L] of ``lengths.length_table``. Any other count by untouched set will
            do: ``np.minimum(table, 1)`` follows the number of shards that serve.
        requests: R.
        trials: independent repetitions.
        seed: of all draws.
        threads: chunks of trials that are worked on at a time.

    Raises:
        InputError: tables that do not fit, over 16 slices, or no requests.
    """
    size = 1 << stream.slices
    if stream.slices > TABLE_LIMIT:
        raise InputError(f"{stream.slices} slices: tables are for {TABLE_LIMIT}, give sequences")
    if not tables or any(table.shape != (size,) or table.dtype != np.uint8 for table in tables):
        raise InputError(f"tables must be uint8 of {size} entries, one per set of slices")
    words, lane = _packed(tables, stream.shards)

    def follow(order: Slots) -> Lanes:
        sums: Lanes = _table_sums(words, stream, order).view(lane)
        return sums

    return follow_trials(stream, len(tables), requests, trials, seed, threads, follow)


def _packed(tables: Sequence[Table], shards: int) -> tuple[npt.NDArray[np.uint64], np.dtype[Any]]:
    """Tables as lanes of words, [words, 2^L], and the lanes' type: it holds the sum over shards."""
    lane = np.min_scalar_type(shards * int(max(table.max() for table in tables)))
    lanes = 8 // lane.itemsize
    words = -(-len(tables) // lanes)
    packed = np.zeros((words, len(tables[0]), lanes), dtype=lane)
    for plan, table in enumerate(tables):
        packed[plan // lanes, :, plan % lanes] = table
    return packed.view(np.uint64)[..., 0], lane


def _table_sums(words: npt.NDArray[np.uint64], stream: Stream, order: Slots) -> Lanes:
    """Words of sums after each hit, [N+1, trials, words]: one shard changes per hit."""
    trials, slots = order.shape
    untouched = np.full(stream.shards * trials, (1 << stream.slices) - 1, dtype=np.intp)
    shard, c = np.divmod(np.arange(slots), stream.slices)
    row, keep = shard * trials, ~(1 << c)
    sums = np.empty((slots + 1, trials, len(words)), dtype=np.uint64)
    sums[0] = words[:, -1] * np.uint64(stream.shards)
    lane = np.arange(trials)
    for hit, slot in enumerate(np.ascontiguousarray(order.T)):
        at = row.take(slot)
        at += lane
        before = untouched.take(at)
        after = before & keep.take(slot)
        untouched[at] = after
        for number, word in enumerate(words):
            lost = word.take(before)
            lost -= word.take(after)
            np.subtract(sums[hit, :, number], lost, out=sums[hit + 1, :, number])
    return sums

"""The simulation as one would write it first, request by request: what ``speed`` measures against.

Two references for each question. ``plain`` keeps lists of sequences and cuts them, as the paper
tells it and as its authors' script does; ``masks`` is the same loop after an afternoon of tuning:
no lists, one integer per shard or system, and all plans in one pass over the same requests.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = [
    "masked_exhaustion",
    "masked_prefixes",
    "plain_exhaustion",
    "plain_prefixes",
]

Plan = Sequence[Sequence[int]]


def plain_exhaustion(shards: int, slices: int, plan: Plan, draw: random.Random) -> int:
    """Requests until no shard has a sequence left."""
    models = {shard: [list(sequence) for sequence in plan] for shard in range(shards)}
    requests = 0
    while _serving(models):
        slot = draw.randint(0, shards * slices - 1)
        shard, c = slot // slices, slot % slices
        models[shard] = _cut(models[shard], c)
        requests += 1
    return requests


def plain_prefixes(
    shards: int, slices: int, plan: Plan, requests: int, draw: random.Random
) -> list[int]:
    """Slices that all shards serve after 0, 1, …, R requests."""
    models = {shard: [list(sequence) for sequence in plan] for shard in range(shards)}
    served = [_served(models)]
    for _ in range(requests):
        slot = draw.randint(0, shards * slices - 1)
        shard, c = slot // slices, slot % slices
        models[shard] = _cut(models[shard], c)
        served.append(_served(models))
    return served


def _cut(sequences: list[list[int]], c: int) -> list[list[int]]:
    """What is left of each sequence before slice c."""
    left = []
    for sequence in sequences:
        prefix = sequence[: sequence.index(c)] if c in sequence else sequence
        if prefix:
            left.append(prefix)
    return left


def _serving(models: dict[int, list[list[int]]]) -> bool:
    for sequences in models.values():  # noqa: SIM110 – as any() of a generator it takes twice as long
        if sequences:
            return True
    return False


def _served(models: dict[int, list[list[int]]]) -> int:
    return sum(max((len(s) for s in sequences), default=0) for sequences in models.values())


def masked_exhaustion(slots: int, firsts: Sequence[int], draw: random.Random) -> list[int]:
    """Requests until each plan is exhausted; firsts: its first slices as bits of one integer."""
    ends = [0] * len(firsts)
    uniform = draw.random
    hit = requests = 0
    waiting = set(range(len(firsts)))
    while waiting:
        hit |= 1 << int(uniform() * slots)
        requests += 1
        for plan in [p for p in waiting if not firsts[p] & ~hit]:
            ends[plan] = requests
            waiting.discard(plan)
    return ends


def masked_prefixes(
    shards: int, slices: int, tables: Sequence[bytes], requests: int, draw: random.Random
) -> list[list[int]]:
    """Slices served per plan after 0 … R requests, by tables of 2^L lengths; [R + 1][plans]."""
    slots, uniform = shards * slices, draw.random
    untouched = [(1 << slices) - 1] * shards
    sums = [table[-1] * shards for table in tables]
    served = [sums]
    for _ in range(requests):
        shard, c = divmod(int(uniform() * slots), slices)
        before = untouched[shard]
        if before >> c & 1:
            after = untouched[shard] = before ^ 1 << c
            sums = [s - t[before] + t[after] for s, t in zip(sums, tables, strict=True)]
        served.append(sums)
    return served

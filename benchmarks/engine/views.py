"""What the next view costs, in milliseconds, when one shard of many loses its lowest block."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.engine.ways import Shards
from benchmarks.reports import spread
from s3t.serving.ensemble.ensemble import Ensemble, Member

__all__ = ["next_view"]

_STACKED_ONCE = 3
"""Rounds that also answer many rows, for which merged weights are made."""

_MANY = 16


def next_view(shards: Shards, rounds: int) -> dict[str, Any]:
    """Time until the ensemble of the next view is there, and of its first answers.

    Args:
        shards: with full prefixes; one of them loses the lowest quarter of its layers.
        rounds: how often a view is made from nothing and a next one from it.
    """
    clock, after = _Clock(), _one_shorter(shards)
    one, many = shards.rows(1), shards.rows(_MANY)
    for number in range(rounds):
        heavy = number < _STACKED_ONCE
        first = clock("from nothing", partial(_view, shards, shards.members))
        first.probabilities(one)
        if heavy:
            first.probabilities(many)
        second = clock("from the view before", partial(_view, shards, after, before=first))
        clock("first answer to one row", partial(second.probabilities, one))
        clock("second answer to one row", partial(second.probabilities, one))
        if heavy:
            clock(f"first answer to {_MANY} rows", partial(second.probabilities, many))
            clock(f"second answer to {_MANY} rows", partial(second.probabilities, many))
        clock("one adapter averaged", partial(_view, shards, after, method="mean-adapters"))
    found = {name: spread(values) for name, values in clock.found.items()}
    return {"shards": len(shards.members), "milliseconds": found}


class _Clock:
    """Milliseconds of calls, by name."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = call()
        self.found.setdefault(name, []).append(1000 * (time.perf_counter() - started))
        return value


def _view(
    shards: Shards,
    members: Sequence[Member],
    method: str = "mean-probabilities",
    before: Ensemble | None = None,
) -> Ensemble:
    return Ensemble(shards.base, members, shards.scale, method, "uniform", before)


def _one_shorter(shards: Shards) -> list[Member]:
    """The members, the middle one without the lowest quarter of its layers."""
    middle = len(shards.members) // 2
    hit = shards.members[middle]
    lowest = shards.base.depth // 4
    lost = {
        name
        for target in shards.base.targets
        for name in (target.a, target.b)
        if target.layer < lowest
    }
    held = {name: tensor for name, tensor in hit.tensors.items() if name not in lost}
    shorter = Member(hit.shard, lowest, held, 1)
    return [*shards.members[:middle], shorter, *shards.members[middle + 1 :]]

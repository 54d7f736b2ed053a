"""What simulations are compared with: every course that the requests can take, and its chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from s3t.plan.survival.stream import Stream

__all__ = ["Courses", "courses"]

Courses = Iterator[tuple[float, tuple[int, ...]]]


def courses(stream: Stream, horizon: int) -> Courses:
    """Chance and slots hit, for every course of so many requests."""
    weights = stream.weights.ravel().tolist()
    if stream.samples is None:
        for slots in product(range(len(weights)), repeat=horizon):
            chance = 1.0
            for slot in slots:
                chance *= weights[slot]
            yield chance, slots
        return
    left = Counter({slot: int(size) for slot, size in enumerate(weights)})

    def going_on(chance: float, slots: tuple[int, ...]) -> Courses:
        if len(slots) == min(horizon, stream.samples or 0):
            yield chance, slots
            return
        total = left.total()
        for slot, count in list(left.items()):
            if count:
                left[slot] -= 1
                yield from going_on(chance * count / total, (*slots, slot))
                left[slot] += 1

    yield from going_on(1.0, ())

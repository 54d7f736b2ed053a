"""The front: nothing on it is beaten, and nothing that is not beaten is missing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from s3t.plan.budget.pareto import non_dominated

points = st.integers(1, 4).flatmap(
    lambda size: st.lists(st.tuples(*[st.integers(0, 4)] * size), min_size=1, max_size=40)
)


def beats(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@given(points)
def test_exactly_the_points_that_none_beats(rows: list[tuple[int, ...]]) -> None:
    expected = [
        number
        for number, row in enumerate(rows)
        if not any(beats(other, row) for other in rows) and row not in rows[:number]
    ]
    assert non_dominated(rows).tolist() == expected


def test_no_points() -> None:
    assert non_dominated(np.zeros((0, 4))).tolist() == []


def test_infinite_costs_are_beaten() -> None:
    assert non_dominated([[1, np.inf], [1, 2], [0, np.inf]]).tolist() == [1, 2]

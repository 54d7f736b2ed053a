"""Sequences: the paper's rotation, the bases beyond it, and what is refused."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import ConfigError
from s3t.plan import cyclic, explicit


def test_rotation_starts_at_its_own_number() -> None:
    assert cyclic(4, 4) == ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))


def test_beyond_the_slices_the_next_base_is_rotated() -> None:
    assert cyclic(3, 6)[3:] == ((0, 2, 1), (2, 1, 0), (1, 0, 2))
    assert cyclic(4, 6)[4:] == ((0, 1, 3, 2), (1, 3, 2, 0))


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5])
def test_the_full_budget_is_every_permutation_once(slices: int) -> None:
    found = cyclic(slices, math.factorial(slices))
    assert sorted(found) == sorted(permutations(range(slices)))


@given(slices=st.integers(1, 30), data=st.data())
@settings(max_examples=50)
def test_a_smaller_budget_is_a_prefix_of_a_greater(slices: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, min(math.factorial(slices), 60)))
    found = cyclic(slices, budget)
    assert len(set(found)) == budget
    assert found[: budget - 1] == (cyclic(slices, budget - 1) if budget > 1 else ())
    assert all(sorted(sequence) == list(range(slices)) for sequence in found)
    assert len({sequence[0] for sequence in found}) == min(slices, budget)


@pytest.mark.parametrize(("slices", "budget"), [(3, 7), (1, 2), (0, 1), (2, 0), (2, -1)])
def test_an_impossible_budget_is_refused(slices: int, budget: int) -> None:
    with pytest.raises(ConfigError, match=str(budget)):
        cyclic(slices, budget)


def test_explicit_may_end_early() -> None:
    assert explicit([[2, 0], [1]], 3) == ((2, 0), (1,))


def test_explicit_names_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        explicit([[], [0, 0], [3], [-1], [1], [1]], 3)
    assert len(caught.value.problems) == 5
    with pytest.raises(ConfigError, match="is empty"):
        explicit([], 3)

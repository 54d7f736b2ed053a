"""Numbers of untouched slices: against exact fractions, and at the ends."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan.survival.occupancy import SLICES, occupancy, occupancy_along


def counted(slices: int, slots: int, requests: int) -> list[Fraction]:
    """By looking at every sequence of requests."""
    found = [Fraction(0)] * (slices + 1)
    for hits in product(range(slots), repeat=requests):
        untouched = slices - len({hit for hit in hits if hit < slices})
        found[untouched] += Fraction(1, slots**requests)
    return found


def chain(slices: int, slots: int, requests: int) -> np.ndarray:
    """As a Markov chain: with h of L hit, a request hits a new one with probability (L − h)/N."""
    untouched = np.eye(slices + 1)[slices]
    fall = np.arange(slices + 1) / slots
    for _ in range(requests):
        falling = untouched * fall
        untouched = untouched - falling + np.append(falling[1:], 0)
    return untouched


@pytest.mark.parametrize(("slices", "slots"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 3), (3, 6)])
def test_against_all_sequences_of_requests(slices: int, slots: int) -> None:
    exact = [[float(p) for p in counted(slices, slots, r)] for r in range(5)]
    for r in range(5):
        assert occupancy(slices, [slots], r)[0] == pytest.approx(exact[r], abs=1e-14)
        mean = np.mean(exact[: r + 1], axis=0)
        assert occupancy_along(slices, [slots], r)[0] == pytest.approx(mean, abs=1e-14)


@given(
    st.integers(1, SLICES),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
    st.integers(0, 300),
)
def test_against_the_chain_and_its_mean(slices: int, shards: list[int], requests: int) -> None:
    slots = [m * slices for m in shards]
    found, mean = occupancy(slices, slots, requests), occupancy_along(slices, slots, requests)
    assert found.shape == mean.shape == (len(shards), slices + 1)
    for row, count in zip(found, slots, strict=True):
        assert row == pytest.approx(chain(slices, count, requests), abs=1e-10)
    assert mean.sum(axis=1) == pytest.approx(1, abs=1e-9)
    steps = [occupancy(slices, slots, r) for r in range(0, requests + 1)]
    assert mean == pytest.approx(np.mean(steps, axis=0), abs=1e-9)


def test_very_many_requests() -> None:
    assert occupancy(12, [24], 10**9)[0, 0] == 1
    along = occupancy_along(3, [3, 10**10], 10**9)
    assert along[0, 0] == pytest.approx(1, abs=1e-8)
    assert along[1] @ np.arange(4) == pytest.approx(3 * (1 - np.exp(-0.1)) / 0.1, rel=1e-6)


@pytest.mark.parametrize(
    ("slices", "slots", "requests"), [(0, [1], 1), (SLICES + 1, [99], 1), (3, [2], 1), (2, [4], -1)]
)
def test_what_is_no_system(slices: int, slots: list[int], requests: int) -> None:
    for law in (occupancy, occupancy_along):
        with pytest.raises(InputError, match="expected 1 to 14 slices"):
            law(slices, slots, requests)

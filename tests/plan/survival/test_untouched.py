"""Laws over untouched sets: against enumeration of every stream of requests, and each other."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import simpson

from s3t.errors import InputError
from s3t.plan.survival.untouched import (
    LIMIT,
    after_requests,
    after_time,
    along_time,
    contained,
    exactly,
    set_sizes,
    set_sums,
)

rates_lists = st.lists(st.floats(0, 0.3), min_size=1, max_size=6).filter(lambda r: sum(r) <= 1)


def enumerated(rates: list[Fraction], requests: int) -> list[float]:
    """P(U = S) by every stream of requests; the last outcome misses the shard."""
    outcomes = [*enumerate(rates), (None, 1 - sum(rates))]
    law = [Fraction(0)] * (1 << len(rates))
    for stream in product(outcomes, repeat=requests):
        mask = (1 << len(rates)) - 1
        for c, _ in stream:
            if c is not None:
                mask &= ~(1 << c)
        law[mask] += math.prod((p for _, p in stream), start=Fraction(1))
    return [float(p) for p in law]


@pytest.mark.parametrize(
    "rates",
    [
        [Fraction(1, 12)] * 3,
        [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)],
        [Fraction(0), Fraction(1, 5)],
        [Fraction(1)],
    ],
)
@pytest.mark.parametrize("requests", [0, 1, 2, 4])
def test_after_requests_is_enumeration(rates: list[Fraction], requests: int) -> None:
    found = after_requests([float(rate) for rate in rates], requests)
    np.testing.assert_allclose(found, enumerated(rates, requests), atol=1e-14)


@given(rates_lists, st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_laws_are_laws(rates: list[float], requests: int) -> None:
    for law in (
        after_requests(rates, requests),
        after_time(rates, requests / 3),
        along_time(rates, requests / 3 + 0.1),
    ):
        assert law.min() >= 0
        assert law.sum() == pytest.approx(1, abs=1e-9)


@given(rates_lists, st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_containing_sets_have_the_closed_form(rates: list[float], time: float) -> None:
    containing = contained(after_time(rates, time))
    np.testing.assert_allclose(containing, np.exp(-time * set_sums(rates)), atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_moebius_undoes_the_superset_sums(values: list[float]) -> None:
    law = np.array(values)
    np.testing.assert_allclose(exactly(contained(law)), law, atol=1e-12)


def test_superset_sums_of_several_laws_at_once() -> None:
    laws = np.arange(16.0).reshape(2, 8)
    np.testing.assert_array_equal(contained(laws), [contained(laws[0]), contained(laws[1])])


@given(rates_lists)
@settings(max_examples=30, deadline=None)
def test_mean_along_the_horizon_is_the_integral(rates: list[float]) -> None:
    horizon = 9.0
    moments = np.linspace(0, horizon, 201)
    mean = simpson([after_time(rates, moment) for moment in moments], x=moments, axis=0) / horizon
    np.testing.assert_allclose(along_time(rates, horizon), mean, atol=1e-5)


def test_many_requests_are_nearly_poisson() -> None:
    by_requests = after_requests([2e-6, 1e-6], 10**6)
    np.testing.assert_allclose(by_requests, after_time([2e-6, 1e-6], 1e6), atol=1e-5)


def test_sizes_and_sums_by_mask() -> None:
    assert set_sizes(3).tolist() == [0, 1, 1, 2, 1, 2, 2, 3]
    assert set_sums([1, 2, 4]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=f"{LIMIT + 1} slices are over the {LIMIT}"):
        after_time([0.1] * (LIMIT + 1), 1)
    with pytest.raises(InputError, match="rates or sizes"):
        after_time([-0.1], 1)
    with pytest.raises(InputError, match="rates or sizes"):
        after_time([math.nan], 1)
    with pytest.raises(InputError, match=r"sum to 1\.2"):
        after_requests([0.6, 0.6], 1)
    with pytest.raises(InputError, match="requests -1"):
        after_requests([0.6], -1)

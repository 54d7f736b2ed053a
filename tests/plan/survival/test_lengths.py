"""Longest surviving prefix: tables, closed forms and enumeration say the same."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.survival.lengths import (
    all_permutations,
    all_permutations_after,
    expected_utility,
    length_law,
    length_table,
    one_sequence,
    one_sequence_after,
    rotations,
    rotations_after,
    served,
)
from s3t.plan.survival.untouched import LIMIT, after_requests, after_time, set_sizes

RATES = [0.3, 0.1, 0.7, 0.2, 0.05, 0.4]


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, list[tuple[int, ...]]]:
    slices = draw(st.integers(1, 5))
    order = st.permutations(range(slices)).map(tuple)
    listed = draw(st.lists(st.tuples(order, st.integers(1, slices)), max_size=6))
    return slices, prefixes(sequence[:length] for sequence, length in listed)


@given(trees())
@settings(max_examples=80, deadline=None)
def test_table_is_the_longest_prefix_inside(tree: tuple[int, list[tuple[int, ...]]]) -> None:
    slices, listed = tree
    table = length_table(listed, slices)
    for mask in range(1 << slices):
        inside = [len(p) for p in listed if all(mask >> c & 1 for c in p)]
        assert table[mask] == max(inside, default=0)


def test_table_counts_only_what_is_listed() -> None:
    assert length_table([(0, 1)], 2).tolist() == [0, 0, 0, 2]
    assert length_table(prefixes([(0, 1)]), 2).tolist() == [0, 1, 0, 2]


def test_one_sequence_is_the_table_of_one_sequence() -> None:
    table = length_table(prefixes([range(6)]), 6)
    by_time = length_law(table, after_time(RATES, 1.3))
    np.testing.assert_allclose(one_sequence(RATES, 1.3), by_time, atol=1e-14)
    shares = [rate / 4 for rate in RATES]
    by_requests = length_law(table, after_requests(shares, 5))
    np.testing.assert_allclose(one_sequence_after(shares, 5), by_requests, atol=1e-14)


@pytest.mark.parametrize("starts", [[0], [0, 1, 2], [5], [0, 3], [1, 2, 4], list(range(6))])
def test_rotations_are_the_table_of_the_rotations(starts: list[int]) -> None:
    table = length_table(prefixes(cyclic(6, 6)[start] for start in starts), 6)
    by_time = length_law(table, after_time(RATES, 0.9))
    np.testing.assert_allclose(rotations(RATES, starts, 0.9), by_time, atol=1e-14)
    for requests in (0, 1, 7, 60):
        by_requests = length_law(table, after_requests([1 / 30] * 6, requests))
        found = rotations_after(6, starts, 30, requests)
        np.testing.assert_allclose(found, by_requests, atol=1e-13)


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_rotations_of_few_slices(slices: int) -> None:
    table = length_table(prefixes(cyclic(slices, slices)), slices)
    law = length_law(table, after_time([0.4] * slices, 1.0))
    np.testing.assert_allclose(rotations([0.4] * slices, range(slices), 1.0), law, atol=1e-14)


def test_all_permutations_are_the_table_of_all() -> None:
    table = length_table(prefixes(permutations(range(5))), 5)
    np.testing.assert_array_equal(table, set_sizes(5))
    by_time = length_law(table, after_time(RATES[:5], 2.0))
    np.testing.assert_allclose(all_permutations(RATES[:5], 2.0), by_time, atol=1e-14)
    by_requests = length_law(table, after_requests([1 / 20] * 5, 13))
    np.testing.assert_allclose(all_permutations_after(5, 20, 13), by_requests, atol=1e-13)


@given(st.integers(1, 7), st.data())
@settings(max_examples=60, deadline=None)
def test_more_sequences_serve_no_less_and_never_more_than_all(
    slices: int, data: st.DataObject
) -> None:
    rates = data.draw(st.lists(st.floats(0, 2), min_size=slices, max_size=slices))
    time = data.draw(st.floats(0, 5))
    by_budget = [served(rotations(rates, range(budget), time)) for budget in range(1, slices + 1)]
    ordered = [served(one_sequence(rates, time)), *by_budget[1:]]
    ordered.append(served(all_permutations(rates, time)))
    assert by_budget[0] == pytest.approx(ordered[0], abs=1e-12)
    assert all(low <= high + 1e-12 for low, high in pairwise(ordered))


def test_closed_forms_have_no_limit_on_slices() -> None:
    rates = [1.0 + c % 3 for c in range(64)]
    some = rotations(rates, range(0, 64, 4), 0.02)
    assert some.sum() == pytest.approx(1)
    assert served(one_sequence(rates, 0.02)) < served(some) < served(all_permutations(rates, 0.02))


def test_slices_that_are_never_hit_always_serve() -> None:
    assert served(one_sequence([0.0, 0.0, 5.0], 1e6)) == 2
    assert served(rotations([0.0, 0.0, 5.0], [0], 1e6)) == pytest.approx(2)
    assert served(all_permutations([0.0] * 3, 1e6)) == 3


def test_expected_utility() -> None:
    lengths = np.array([0.5, 0.25, 0.25])
    assert expected_utility(lengths, [0.1, 0.6, 0.8]) == pytest.approx(0.4)
    with pytest.raises(InputError, match="2 utilities for lengths 0 to 2"):
        expected_utility(lengths, [0.1, 0.6])


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=f"takes 1 to {LIMIT}"):
        length_table([(0,)], LIMIT + 1)
    with pytest.raises(InputError, match=r"prefix \[0, 3\] names a slice outside 0 to 2"):
        length_table([(0, 3)], 3)
    with pytest.raises(InputError, match="rates"):
        one_sequence([-1.0], 1)

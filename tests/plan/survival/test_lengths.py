"""Longest surviving prefix: tables against enumeration and closed forms."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan import prefixes
from s3t.plan.survival.lengths import expected_utility, length_law, length_table, served
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


def test_one_sequence_has_its_closed_form() -> None:
    """P(the first k slices are untouched) = e^{−t·p(c_1 … c_k)}."""
    lengths = length_law(length_table(prefixes([range(6)]), 6), after_time(RATES, 1.3))
    at_least = np.exp(-1.3 * np.cumsum(RATES))
    np.testing.assert_allclose(np.cumsum(lengths[::-1])[::-1][1:], at_least, atol=1e-14)
    assert served(lengths) == pytest.approx(at_least.sum())


def test_all_permutations_serve_whatever_is_untouched() -> None:
    table = length_table(prefixes(permutations(range(5))), 5)
    np.testing.assert_array_equal(table, set_sizes(5))
    by_requests = served(length_law(table, after_requests([1 / 20] * 5, 13)))
    assert by_requests == pytest.approx(5 * (1 - 1 / 20) ** 13)


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

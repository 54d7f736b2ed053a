"""Rotations: where they start, and which sets they bring."""

from __future__ import annotations

import pytest

from s3t.plan import cyclic, prefixes
from s3t.plan.sequences import Sequences
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.rotations import even, iterated


def sets(sequences: Sequences) -> set[frozenset[int]]:
    return {frozenset(prefix) for prefix in prefixes(sequences)}


@pytest.mark.parametrize("slices", [3, 4, 6, 7])
def test_iterated_begins_with_the_rotations(slices: int) -> None:
    assert iterated(Brief(slices, slices)) == cyclic(slices, slices)


@pytest.mark.parametrize("slices", [3, 4, 6, 8])
def test_iterated_brings_no_new_set_up_to_twice_the_slices(slices: int) -> None:
    """A fact of the paper's iterated rotation: it pays for twice as many and protects the same."""
    budget = min(2 * slices, 6)
    if budget > slices:
        assert sets(iterated(Brief(slices, budget))) == sets(cyclic(slices, slices))


def test_iterated_turns_the_rest_behind_the_first_slice() -> None:
    assert iterated(Brief(4, 8))[4:] == ((0, 3, 1, 2), (1, 0, 2, 3), (2, 1, 3, 0), (3, 2, 0, 1))


def test_even_rotations_are_spaced_evenly() -> None:
    assert [sequence[0] for sequence in even(Brief(8, 4))] == [0, 2, 4, 6]
    assert [sequence[0] for sequence in even(Brief(7, 3))] == [0, 2, 4]
    assert even(Brief(5, 5)) == cyclic(5, 5)


def test_even_goes_on_with_other_strides() -> None:
    found = even(Brief(7, 21))
    assert found[7] == (0, 2, 4, 6, 1, 3, 5)
    assert found[14] == (0, 3, 6, 2, 5, 1, 4)
    assert len(sets(found)) > len(sets(cyclic(7, 21)))


def test_even_ends_with_every_permutation() -> None:
    assert len(set(even(Brief(4, 24)))) == 24

"""Monte Carlo of the longest prefix, against the exact law and the closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.survival.drawn import lengths_after_requests, lengths_after_time
from s3t.plan.survival.lengths import length_law, length_table, rotations, rotations_after
from s3t.plan.survival.untouched import after_requests, after_time

RATES = [0.3, 0.1, 0.7, 0.2, 0.05, 0.4]
TREES = {
    "one": [(2, 0, 4)],
    "rotations": list(cyclic(6, 6)),
    "tree": [(4, 1, 3), (4, 1, 0, 5), (3,), (1, 5)],
}
TRIALS = 40_000


def near(drawn: tuple[np.ndarray, np.ndarray], exact: np.ndarray) -> bool:
    """Within 2.5 half-widths (4.9 standard errors), so that a right law does not fail by chance."""
    law, half = drawn
    return bool((np.abs(law - exact) <= 2.5 * half + 5 / TRIALS).all())


@pytest.mark.parametrize("name", TREES)
def test_draws_agree_with_the_exact_law(name: str) -> None:
    table = length_table(prefixes(TREES[name]), 6)
    by_time = lengths_after_time(TREES[name], RATES, 1.1, TRIALS, seed=1)
    assert near(by_time, length_law(table, after_time(RATES, 1.1)))
    shares = [rate / 5 for rate in RATES]
    by_requests = lengths_after_requests(TREES[name], shares, 9, TRIALS, seed=2)
    assert near(by_requests, length_law(table, after_requests(shares, 9)))
    assert not near(by_requests, length_law(table, after_requests(shares, 14)))


def test_more_slices_than_sets_can_be_listed() -> None:
    sequences = cyclic(40, 40)[::5]
    starts = range(0, 40, 5)
    drawn = lengths_after_time(sequences, [1.0] * 40, 0.05, TRIALS, seed=3)
    assert near(drawn, rotations([1.0] * 40, starts, 0.05))
    drawn = lengths_after_requests(sequences, [1 / 200] * 40, 12, TRIALS, seed=4)
    assert near(drawn, rotations_after(40, starts, 200, 12))


def test_the_seed_decides() -> None:
    one, two, other = (
        lengths_after_time(TREES["tree"], RATES, 1.0, 500, seed=seed)[0] for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"sequence \[0, 7\] names a slice outside 0 to 5"):
        lengths_after_time([(0, 7)], RATES, 1.0, 10, seed=0)
    with pytest.raises(InputError, match=r"sum to 1\.75"):
        lengths_after_requests([(0,)], RATES, 1, 10, seed=0)
    with pytest.raises(InputError, match="time -1"):
        lengths_after_time([(0,)], RATES, -1, 10, seed=0)

"""What a plan serves along a horizon: against all streams, at the ends, and beyond exact tables."""

from __future__ import annotations

from itertools import product

import pytest

from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.budget.horizon import TRIALS, along

SEQUENCES = ((0, 1, 2), (1, 2), (2,))


@pytest.mark.parametrize("rates", [(1, 1, 1), (3, 1, 0.5)])
def test_against_all_streams(rates: tuple[float, ...]) -> None:
    found = along(2, rates, SEQUENCES, [0, 1, 4])
    assert found.trials is None
    chance = [rate / sum(rates) / 2 for rate in rates] * 2
    for moment, r in zip(found.moments, (0, 1, 4), strict=True):
        slices = exhausted = 0.0
        for hits in product(range(6), repeat=r):
            p = 1.0
            for hit in hits:
                p *= chance[hit]
            longest = [
                max(
                    (len(n) for n in prefixes(SEQUENCES) if not {3 * m + c for c in n} & {*hits}),
                    default=0,
                )
                for m in range(2)
            ]
            slices += p * sum(longest) / 2
            exhausted += p * (not any(longest))
        assert moment.requests == r
        assert moment.slices_served == pytest.approx(slices, abs=1e-12)
        assert moment.data_served == pytest.approx(slices / 3, abs=1e-12)
        assert moment.exhausted == pytest.approx(exhausted, abs=1e-12)


def test_a_slice_that_is_never_hit_lasts() -> None:
    (moment,) = along(3, (1, 0), ((1, 0), (0, 1)), [10**6]).moments
    assert (moment.slices_served, moment.exhausted) == (pytest.approx(1), 0)


def test_beyond_exact_tables_it_is_simulated() -> None:
    found = along(2, [1] * 24, cyclic(24, 1), [0, 10, 40])
    assert found.trials == TRIALS
    for moment in found.moments:
        exact = sum((1 - k / 48) ** moment.requests for k in range(1, 25))
        assert moment.slices_served == pytest.approx(exact, abs=0.25)
    assert found == along(2, [1] * 24, cyclic(24, 1), [0, 10, 40])


@pytest.mark.parametrize("requests", [[], [-1, 3]])
def test_what_is_no_horizon(requests: list[int]) -> None:
    with pytest.raises(InputError, match="expected numbers from 0"):
        along(1, [1], ((0,),), requests)

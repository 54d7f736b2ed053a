"""What a strategy can be asked, and what is refused, all problems together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from s3t.errors import ConfigError
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.survival.untouched import along_time


def test_defaults_are_uniform_rates_and_the_share_of_data() -> None:
    brief = Brief(4, 2)
    assert brief.scaled_rates == (1, 1, 1, 1)
    assert brief.worth == (0, 0.25, 0.5, 0.75, 1)
    assert brief.node_costs == (1, 2, 3, 4)
    np.testing.assert_array_equal(brief.law, along_time([1] * 4, 1.0))


def test_rates_are_relative() -> None:
    assert Brief(3, 1, rates=(1, 2, 3)).scaled_rates == (0.5, 1, 1.5)
    assert Brief(3, 1, rates=(1e300, 2e300, 3e300)).scaled_rates == pytest.approx((0.5, 1, 1.5))
    assert Brief(2, 1, rates=(0, 0)).scaled_rates == (0, 0)
    assert Brief(2, 1, rates=(0, 0)).law.tolist() == pytest.approx([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slices": 0, "budget": 1}, "0 slices"),
        ({"slices": 3, "budget": 0}, "budget 0"),
        ({"slices": 3, "budget": 1.5}, "budget 1.5"),
        ({"slices": 3, "budget": 7}, "budget 7 is over the 6 permutations of 3 slices"),
        ({"slices": 3, "budget": 1, "rates": (1.0, 2.0)}, "2 rates for 3 slices: give 3"),
        ({"slices": 3, "budget": 1, "utility": (0.0, 1.0)}, "2 utility for 3 slices: give 4"),
        ({"slices": 2, "budget": 1, "utility": (0.0, 1.0, 0.5)}, "falls"),
        ({"slices": 2, "budget": 1, "utility": (0.0, 1.0, math.nan)}, "each must be a number"),
        ({"slices": 2, "budget": 1, "rates": (1.0, -1.0)}, "number from 0"),
        ({"slices": 2, "budget": 1, "rates": (1.0, math.inf)}, "number from 0"),
        ({"slices": 2, "budget": 1, "horizon": 0}, "horizon 0"),
        ({"slices": 2, "budget": 1, "horizon": math.inf}, "horizon inf"),
        ({"slices": 2, "budget": 9, "costs": (1.0, 0.0)}, "each must be a number over 0"),
        ({"slices": 2, "budget": 0.5, "costs": (1.0, 2.0)}, "0.5 does not pay for one node"),
        ({"slices": 2, "budget": math.nan, "costs": (1.0, 2.0)}, "does not pay"),
    ],
)
def test_what_cannot_be_met_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Brief(**arguments)


def test_problems_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Brief(3, 7, rates=(1.0,), utility=(0.0, 1.0), horizon=-1)
    assert len(caught.value.problems) == 4


def test_shared_prefixes_are_spent_once() -> None:
    assert spent([(0, 1, 2), (0, 1), (0, 2)], [1, 2, 3]) == 1 + 2 + 3 + 2

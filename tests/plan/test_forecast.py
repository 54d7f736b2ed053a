"""The forecast against every order in which the persons of tiny systems can ask."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan.forecast import (
    Observed,
    Outlook,
    RunningSystem,
    forecast,
    observed_rate,
    person_weights,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

SYSTEMS: dict[str, tuple[list[list[int]], list[list[int]]]] = {
    "2 × 2 × 2": ([[2, 2], [2, 2]], [[1, 1], [1, 1]]),
    "sizes differ": ([[1, 3], [2, 2]], [[1, 1], [0, 1]]),
    "a dead shard": ([[1, 2], [1, 1], [2, 1]], [[0, 0], [1, 0], [1, 1]]),
    "one first slice of many": ([[2, 2, 3]], [[0, 1, 0]]),
    "one person in each": ([[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 0, 1]]),
    "one person in all": ([[1]], [[1]]),
}


def state(left: Any, living: Any, **more: Any) -> RunningSystem:
    return RunningSystem(7, np.array(left), np.array(living, dtype=bool), **more)


def enumerated(system: RunningSystem) -> list[dict[int, Fraction]]:
    """Laws of the requests until the first living shard dies, until none lives, until each dies."""
    m, slices = system.left.shape
    slots = [(s, c) for s in range(m) for c in range(slices) for _ in range(system.left[s, c])]
    lives = [[(s, c) for c in range(slices) if system.living[s, c]] for s in range(m)]
    counts: list[Counter[int]] = [Counter() for _ in range(2 + m)]
    orders = 0
    for order in permutations(slots):
        orders += 1
        dies = [max((order.index(slot) + 1 for slot in slot_of), default=0) for slot_of in lives]
        alive = [number for number in dies if number]
        for count, number in zip(counts, (min(alive), max(alive), *dies), strict=True):
            count[number] += 1
    return [{n: Fraction(k, orders) for n, k in count.items()} for count in counts]


def is_quantile(law: dict[int, Fraction], share: float, number: float) -> bool:
    """Whether it is the smallest r with P(R ≤ r) ≥ share, or next to it in a tie."""
    upto = float(sum(chance for r, chance in law.items() if r <= number))
    below = float(sum(chance for r, chance in law.items() if r < number))
    return upto >= share - 1e-9 and below <= share + 1e-9


@pytest.mark.parametrize("name", SYSTEMS)
def test_as_every_order_of_requests(name: str) -> None:
    system = state(*SYSTEMS[name])
    found = forecast(system)
    first, last, *shards = enumerated(system)
    for law, outlook in ((first, found.first_death), (last, found.exhaustion)):
        assert outlook is not None
        assert outlook.mean == pytest.approx(float(sum(r * chance for r, chance in law.items())))
        for share, number in ((0.05, outlook.p5), (0.5, outlook.p50), (0.95, outlook.p95)):
            assert is_quantile(law, share, number)
    assert (found.trials, found.seed) == (None, None)
    assert found.first_slices_left == system.living.sum()
    assert found.persons_left == system.left.sum()
    for law, shard in zip(shards, found.shards, strict=True):
        if shard.first_slices:
            assert shard.median_requests is not None
            assert any(is_quantile(law, 0.5, shard.median_requests + by) for by in (-1, 0, 1))
        else:
            assert shard.median_requests is None and law == {0: 1}


def test_persons_of_equal_weight_are_simulated_to_the_same() -> None:
    draw = np.random.default_rng(0)
    sizes, living = draw.integers(30, 60, (4, 4)), draw.random((4, 4)) < 0.7
    exact, drawn = (
        forecast(state(sizes, living, weights=weights)) for weights in (None, np.full(4, 2.5))
    )
    assert (drawn.trials, drawn.seed, drawn.shards) == (20_000, 0, exact.shards)
    for one, other in (
        (exact.first_death, drawn.first_death),
        (exact.exhaustion, drawn.exhaustion),
    ):
        assert one is not None and other is not None
        assert other.mean == pytest.approx(one.mean, rel=0.02)
        assert [other.p5, other.p50, other.p95] == pytest.approx(
            [one.p5, one.p50, one.p95], rel=0.05, abs=1
        )


def test_trials_and_seed() -> None:
    system = state(*SYSTEMS["2 × 2 × 2"], weights=np.array([1.0, 3.0]))
    found = forecast(system, trials=300, seed=5)
    assert (found.trials, found.seed) == (300, 5)
    again = forecast(system, trials=300, seed=5)
    assert found == again
    assert forecast(system, trials=300, seed=6).exhaustion != found.exhaustion
    for wrong in ({"trials": 0}, {"seed": -1}):
        with pytest.raises(InputError):
            forecast(system, **wrong)


def test_fewer_trials_where_they_would_take_long() -> None:
    system = state(np.full((200, 10), 3), np.ones((200, 10)), weights=np.arange(1.0, 11.0))
    assert forecast(system).trials == 2097


def test_who_never_asks() -> None:
    system = state([[2, 2], [2, 2]], [[1, 0], [0, 1]], weights=np.array([1.0, 0.0]))
    found = forecast(system, trials=100)
    assert found.first_death is not None and found.exhaustion is not None
    assert found.first_death.p95 <= 3
    assert found.exhaustion == Outlook(math.inf, math.inf, math.inf, math.inf)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["exhaustion"]["requests"] == dict.fromkeys(("p5", "p50", "p95", "mean"))
    assert [shard["median_requests"] for shard in told["shards"]] == [2, None]
    assert [shard["first_slices"] for shard in told["shards"]] == [[0], [1]]


def test_exhausted() -> None:
    system = state([[2, 1], [0, 2]], [[0, 0], [0, 0]], missing=1, weights=np.array([1.0, 2.0]))
    found = forecast(system, observed=Observed(3, 1.5))
    assert found.exhausted and not found.first_slices_left
    assert found.to_dict() == {
        "view": 7,
        "persons_left": 5,
        "first_slices_left": 0,
        "first_slices_missing": 1,
        "exhausted": True,
        "first_death": None,
        "exhaustion": None,
        "observed": {"persons": 3, "days": 1.5, "per_day": 2.0},
        "trials": None,
        "seed": None,
        "shards": [
            {"shard": 0, "first_slices": (), "persons_left": 3, "median_requests": None},
            {"shard": 1, "first_slices": (), "persons_left": 2, "median_requests": None},
        ],
    }


def test_days_are_requests_at_the_observed_rate() -> None:
    system = state(*SYSTEMS["sizes differ"])
    told = forecast(system, observed=Observed(10, 4)).to_dict()
    for event in ("first_death", "exhaustion"):
        requests, days = told[event]["requests"], told[event]["days"]
        assert days == {name: pytest.approx(number / 2.5) for name, number in requests.items()}
    assert forecast(system).to_dict()["exhaustion"]["days"] is None


@given(st.data())
def test_a_deletion_never_puts_exhaustion_off(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    cells = shape[0] * shape[1]
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=cells, max_size=cells))
    marks = data.draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    left, living = np.array(sizes).reshape(shape), np.array(marks).reshape(shape)
    slot = np.unravel_index(data.draw(st.integers(0, cells - 1)), shape)
    before = forecast(state(left, living)).exhaustion
    left[slot] -= 1
    living[slot] = False
    after = forecast(state(left, living)).exhaustion
    if before is None:
        assert after is None
    elif after is not None:
        assert after.p5 <= before.p5 and after.p50 <= before.p50 and after.p95 <= before.p95
        assert after.mean <= before.mean + 1e-9


# ── weights and rates ────────────────────────────────────────────────────────────────────────


def test_weights_make_slices_as_likely_as_their_rates() -> None:
    registered = np.array([[10, 12, 3, 1], [8, 14, 2, 0]])
    weights = person_weights(registered, (3, 1), (1.0, 4.0))
    assert weights[0] == weights[1] == weights[2]
    by_tier = [(registered * weights)[:, part].sum() for part in (slice(0, 3), slice(3, 4))]
    assert by_tier == pytest.approx([2 * 3 * 1.0, 2 * 1 * 4.0])


def test_no_rate_before_two_deletions() -> None:
    assert observed_rate([], NOW) is None
    assert observed_rate([(NOW - timedelta(days=3), 5)], NOW) is None
    moment = NOW - timedelta(days=3)
    assert observed_rate([(NOW, 1), (NOW, 1)], NOW) is None
    two = observed_rate([(moment, 5), (moment, 2)], NOW)
    assert two == Observed(2, 3.0)


def test_the_rate_counts_persons_since_the_first_request() -> None:
    history = [(NOW - timedelta(days=days), persons) for days, persons in ((8, 9), (5, 1), (2, 3))]
    found = observed_rate(history, NOW)
    assert found == Observed(4, 8.0)
    assert found.per_day == 0.5
    assert observed_rate(history[::-1], NOW) == found
    late = NOW - timedelta(days=30)  # a clock that was put back: until the last deletion
    assert observed_rate(history, late) == Observed(4, 6.0)


def test_the_rate_is_that_of_the_stream() -> None:
    draw = np.random.default_rng(0)
    rates = []
    for _ in range(3000):
        moments = np.cumsum(draw.exponential(1.0, 40))
        history = [(NOW + timedelta(days=day), 1) for day in moments if day < 6]
        found = observed_rate(history, NOW + timedelta(days=6))
        rates.append(0 if found is None else found.per_day)
    assert np.mean(rates) == pytest.approx(1, abs=0.06)


def test_a_moment_without_time_zone() -> None:
    with pytest.raises(InputError, match="time zone"):
        observed_rate([], datetime(2026, 3, 1))

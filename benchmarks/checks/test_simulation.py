"""Simulated exhaustion against the exact laws, and joint laws against every course of requests."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from benchmarks.deletion_budget.simulation import Estimate, estimate, simulate_exhaustion
from s3t.errors import InputError
from s3t.plan.survival.exhaustion import until_exhausted
from s3t.plan.survival.stream import endless, finite, uniform
from tests.harness.courses import courses

RATES = np.random.default_rng(2).random((5, 6)) + 0.2
STREAMS = {
    "uniform": uniform(5, 6),
    "rates": endless(RATES),
    "sizes": finite(np.ceil(RATES * 10)),
}
ROTATIONS = [np.tile(np.arange(6) < budget, (5, 1)) for budget in (1, 2, 6)]
TRIALS = 20_000


@pytest.mark.parametrize("name", STREAMS)
def test_exhaustion_has_the_exact_law(name: str) -> None:
    stream = STREAMS[name]
    found = simulate_exhaustion(stream, ROTATIONS, TRIALS, seed=3)
    assert found.shape == (TRIALS, 3)
    assert np.all(np.diff(found, axis=1) >= 0)  # the same requests: more first slices last longer
    for plan, first in enumerate(ROTATIONS):
        law = until_exhausted(stream, first)
        values, counts = np.unique(found[:, plan], return_counts=True)
        distance = np.abs(1 - np.cumsum(counts) / TRIALS - law.survival(values)).max()
        assert distance < 1.95 / TRIALS**0.5  # Kolmogorov and Smirnov, 0.1 %
        assert abs(found[:, plan].mean() - law.mean) < 4 * (law.variance / TRIALS) ** 0.5
        assert found[:, plan].var() == pytest.approx(law.variance, rel=0.06)


TINY = {
    "uniform": uniform(2, 2),
    "rates": endless([[4, 1], [2, 3]]),
    "sizes": finite([[2, 1], [3, 2]]),
}


@pytest.mark.parametrize("name", TINY)
def test_plans_meet_the_same_requests(name: str) -> None:
    """The joint law of two plans, by every course of 8 requests."""
    stream, horizon, trials = TINY[name], 8, 60_000
    plans = [np.array([[True, False], [False, True]]), np.array([[True, True], [False, False]])]
    exact: dict[tuple[int, ...], float] = defaultdict(float)
    for chance, slots in courses(stream, horizon):
        when = {slot: number for number, slot in reversed(list(enumerate(slots, start=1)))}
        hits = [when.get(slot, horizon + 1) for slot in range(4)]
        exact[max(hits[0], hits[3]), max(hits[:2])] += chance
    ends = simulate_exhaustion(stream, plans, trials, seed=6)
    clipped = np.minimum(ends, horizon + 1)
    for (one, two), chance in exact.items():
        found = np.mean((clipped[:, 0] == one) & (clipped[:, 1] == two))
        assert abs(found - chance) < 4 * (chance / trials) ** 0.5 + 1e-9


@pytest.mark.parametrize("name", STREAMS)
def test_threads_change_nothing(name: str) -> None:
    trials = 90_001 if name == "uniform" else 10_001  # three chunks, the last of them short

    def simulated(seed: int, threads: int) -> Any:
        return simulate_exhaustion(STREAMS[name], ROTATIONS, trials, seed=seed, threads=threads)

    one = simulated(seed=1, threads=1)
    assert np.array_equal(one, simulated(seed=1, threads=3))
    assert not np.array_equal(one, simulated(seed=2, threads=1))
    assert one[:50].tobytes() not in one[50:].tobytes()  # chunks do not repeat each other


def test_many_slots() -> None:
    law = until_exhausted(uniform(100, 64), np.ones((100, 64), dtype=bool))
    found = simulate_exhaustion(uniform(100, 64), [np.ones((100, 64), dtype=bool)], 400, seed=0)
    assert estimate(found[:, 0]).holds(law.mean)


def test_a_plan_without_first_slices_and_a_single_slot() -> None:
    none, one = np.zeros((1, 1), dtype=bool), np.ones((1, 1), dtype=bool)
    for stream in (uniform(1, 1), finite([[3]]), endless([[2.0]])):
        found = simulate_exhaustion(stream, [none, one], 50, seed=0)
        assert np.array_equal(found, np.tile([0, 1], (50, 1)))


def test_what_is_never_hit_never_ends() -> None:
    stream = endless([[1, 0], [2, 1]])
    with pytest.raises(InputError, match="never hit"):
        simulate_exhaustion(stream, [np.ones((2, 2), dtype=bool)], 50, seed=0)
    ends = simulate_exhaustion(stream, [np.array([[True, False], [True, True]])], 50, seed=0)
    assert ends.min() >= 3


def test_estimate_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found == Estimate(2.0, pytest.approx(4.302653 / 3**0.5), 3)
    assert found.holds(4.4) and not found.holds(4.5)
    with pytest.raises(InputError, match="two trials"):
        estimate([1.0])


def test_the_interval_holds_as_often_as_it_says() -> None:
    mean = until_exhausted(uniform(2, 3), np.ones((2, 3), dtype=bool)).mean
    found = simulate_exhaustion(uniform(2, 3), [np.ones((2, 3), dtype=bool)], 40_000, seed=9)
    held = sum(estimate(part).holds(mean) for part in found[:, 0].reshape(400, 100))
    assert 365 <= held <= 395  # 380 ± 3.4 deviations


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"plans": []}, "no plans"),
        ({"plans": [np.ones((2, 3))]}, "float64"),
        ({"trials": 0}, "0 trials"),
        ({"threads": 0}, "0 threads"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"plans": [np.ones((2, 3), dtype=bool)], "trials": 5, "seed": 0}
    with pytest.raises(InputError, match=match):
        simulate_exhaustion(uniform(2, 3), **{**arguments, **changes})

"""What serves along the requests: against exact laws and every course."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.survival.lengths import length_law, length_table, served
from s3t.plan.survival.stream import Stream, endless, finite, uniform
from s3t.plan.survival.trajectories import Trajectories, serve_by_sequences
from s3t.plan.survival.untouched import after_requests

Plan = Sequence[Sequence[int]]


def table(sequences: Plan, slices: int) -> Any:
    return length_table(prefixes(sequences), slices)


def longest(sequences: Plan, hit: set[int]) -> int:
    """Longest prefix without a slice that was hit, by the definition."""
    return max(next((stage for stage, c in enumerate(s) if c in hit), len(s)) for s in sequences)


ROTATIONS = [cyclic(6, budget) for budget in range(1, 7)]


@pytest.mark.parametrize(
    "stream", [uniform(5, 6), endless(1 + 0.1 * np.arange(30).reshape(5, 6))], ids=["even", "rates"]
)
def test_means_are_exact(stream: Stream) -> None:
    tables = [table(plan, 6) for plan in ROTATIONS]
    found = serve_by_sequences(stream, ROTATIONS, 120, 8_000, seed=5)
    for requests in (0, 1, 7, 30, 75, 120):
        laws = [after_requests(rates, requests) for rates in stream.weights.tolist()]
        exact = [sum(served(length_law(t, law)) for law in laws) for t in tables]
        error = np.abs(found.mean[:, requests] - exact)
        assert np.all(error <= 2 * found.half_width[:, requests] + 1e-9), requests


PLANS: list[Plan] = [[(0, 1)], [(0, 1), (1, 0)], [(1,)], [(0, 1), (1,)]]


@pytest.mark.parametrize(
    "stream",
    [uniform(2, 2), endless([[4, 1], [2, 3]]), finite([[2, 1], [3, 2]]), endless([[1, 0], [2, 3]])],
    ids=["even", "rates", "sizes", "never"],
)
def test_moments_by_every_course(stream: Stream, courses: Callable[..., Any]) -> None:
    horizon, trials = 5, 20_000
    mean, square = np.zeros((2, len(PLANS), horizon + 1))
    for chance, slots in courses(stream, horizon):
        for requests in range(horizon + 1):
            hit = [{s % 2 for s in slots[:requests] if s // 2 == shard} for shard in range(2)]
            sums = np.array([sum(longest(plan, h) for h in hit) for plan in PLANS])
            mean[:, requests] += chance * sums
            square[:, requests] += chance * sums**2
    found = _followed(stream, PLANS, horizon, trials)
    assert found.mean == pytest.approx(mean, abs=0.04)  # 1 at most, 4 deviations
    assert found.variance == pytest.approx(square - mean**2, abs=0.04)
    assert found.mean[:, 0].tolist() == [4, 4, 2, 4]


def _followed(
    stream: Stream, plans: Sequence[Plan], requests: int, trials: int, **options: int
) -> Trajectories:
    return serve_by_sequences(stream, plans, requests, trials, seed=8, **options)


def test_counted_or_drawn_waits_agree() -> None:
    """Where slots are alike, the exact occupancy in place of drawn request numbers."""
    almost = endless(1 + 1e-9 * np.arange(30).reshape(5, 6))
    exact, drawn = (_followed(s, ROTATIONS, 90, 8_000) for s in (uniform(5, 6), almost))
    half = np.hypot(exact.half_width, drawn.half_width)
    assert np.all(np.abs(exact.mean - drawn.mean) <= 2.2 * half + 1e-9)
    assert exact.variance[:, 5:60] == pytest.approx(drawn.variance[:, 5:60], rel=0.15)


def test_many_slices_and_sequences() -> None:
    """L = 40, B = 120: with a sequence that starts at each slice, and never above the bound."""
    plan = cyclic(40, 120)
    found = serve_by_sequences(uniform(20, 40), [plan, plan[:1]], 4_000, 24, seed=2)
    assert found.mean[:, 0].tolist() == [800, 800]
    for requests in (100, 1_000, 3_000):
        few, chain = found.mean[:, requests]
        bound = 800 * (1 - 1 / 800) ** requests  # every permutation: whatever is untouched
        assert chain < few <= bound + 2 * found.half_width[0, requests]
        exact = 20 * sum((1 - k / 800) ** requests for k in range(1, 41))
        assert abs(chain - exact) <= 2 * found.half_width[1, requests]


@pytest.mark.parametrize("stream", [uniform(3, 4), endless([[1, 2, 3, 4]] * 3)])
def test_threads_change_nothing(stream: Stream) -> None:
    one, three = (
        _followed(stream, [cyclic(4, 2)], 30, 60_000, threads=threads) for threads in (1, 3)
    )
    assert np.array_equal(one.mean, three.mean)
    assert np.array_equal(one.variance, three.variance)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: serve_by_sequences(uniform(1, 2), [], 1, 1, seed=0), "0 plans"),
        (lambda: serve_by_sequences(uniform(1, 2), [[]], 1, 1, seed=0), "without sequences"),
        (lambda: serve_by_sequences(uniform(1, 2), [[(0, 0)]], 1, 1, seed=0), "repeats"),
        (lambda: serve_by_sequences(uniform(1, 2), [[(2,)]], 1, 1, seed=0), "outside 0 to 1"),
        (lambda: serve_by_sequences(uniform(1, 2), [[(-1,)]], 1, 1, seed=0), "outside 0 to 1"),
        (lambda: serve_by_sequences(uniform(1, 2), [[(0,)]], -1, 1, seed=0), "-1 requests"),
        (lambda: serve_by_sequences(uniform(1, 256), [[(0,)]], 1, 1, seed=0), "256 slices"),
    ],
)
def test_what_is_refused(call: Callable[[], Trajectories], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()

"""What serves along the requests: against exact laws, every course, and one engine by the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.survival.lengths import length_law, length_table, served
from s3t.plan.survival.stream import Stream, endless, finite, uniform
from s3t.plan.survival.trajectories import Trajectories, serve_by_sequences, serve_by_tables
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
    found = serve_by_tables(stream, tables, 120, 8_000, seed=5)
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
    horizon, trials = 6, 20_000
    mean, square = np.zeros((2, len(PLANS), horizon + 1))
    for chance, slots in courses(stream, horizon):
        for requests in range(horizon + 1):
            hit = [{s % 2 for s in slots[:requests] if s // 2 == shard} for shard in range(2)]
            sums = np.array([sum(longest(plan, h) for h in hit) for plan in PLANS])
            mean[:, requests] += chance * sums
            square[:, requests] += chance * sums**2
    for engine in ("tables", "sequences"):
        found = _followed(engine, stream, PLANS, horizon, trials)
        # 1 at most, 4 deviations
        assert found.mean == pytest.approx(mean, abs=0.04), engine
        assert found.variance == pytest.approx(square - mean**2, abs=0.04), engine
        assert found.mean[:, 0].tolist() == [4, 4, 2, 4], engine


def _followed(
    engine: str, stream: Stream, plans: Sequence[Plan], requests: int, trials: int, **options: int
) -> Trajectories:
    if engine == "sequences":
        return serve_by_sequences(stream, plans, requests, trials, seed=8, **options)
    tables = [table(plan, stream.slices) for plan in plans]
    return serve_by_tables(stream, tables, requests, trials, seed=8, **options)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, list[Plan]]:
    slices = draw(st.integers(1, 6))
    chain = st.permutations(range(slices)).flatmap(
        lambda order: st.integers(1, len(order)).map(lambda end: tuple(order[:end]))
    )
    return slices, draw(st.lists(st.lists(chain, min_size=1, max_size=5), min_size=1, max_size=11))


@given(plans(), st.sampled_from([2, 60]), st.sampled_from(["even", "rates", "sizes"]))
@settings(max_examples=30)
def test_both_engines_follow_the_same_hits(
    plan: tuple[int, list[Plan]], shards: int, kind: str
) -> None:
    """Up to 11 plans, sums up to 360: several words, and lanes of 8 and of 16 bits."""
    slices, listed = plan
    sizes = 1 + np.arange(shards * slices).reshape(shards, slices) % 3
    streams = {"even": uniform(shards, slices), "rates": endless(sizes), "sizes": finite(sizes)}
    one, other = (_followed(e, streams[kind], listed, 40, 40) for e in ("tables", "sequences"))
    assert one.mean == pytest.approx(other.mean, abs=1e-9)
    assert one.variance == pytest.approx(other.variance, abs=1e-6)


def test_counted_or_drawn_waits_agree() -> None:
    """Where slots are alike, the exact occupancy in place of drawn request numbers."""
    almost = endless(1 + 1e-9 * np.arange(30).reshape(5, 6))
    exact, drawn = (_followed("tables", s, ROTATIONS, 90, 8_000) for s in (uniform(5, 6), almost))
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


def test_shards_that_serve_are_a_table_too() -> None:
    alive = np.minimum(table(cyclic(4, 2), 4), 1)
    found = serve_by_tables(uniform(3, 4), [alive], 60, 20_000, seed=1)
    requests = np.arange(61)
    exact = 3 * (2 * (1 - 1 / 12) ** requests - (1 - 2 / 12) ** requests)
    assert np.all(np.abs(found.mean[0] - exact) <= 2 * found.half_width[0] + 1e-9)


@pytest.mark.parametrize("engine", ["tables", "sequences"])
@pytest.mark.parametrize("stream", [uniform(3, 4), endless([[1, 2, 3, 4]] * 3)])
def test_threads_change_nothing(stream: Stream, engine: str) -> None:
    one, three = (
        _followed(engine, stream, [cyclic(4, 2)], 30, 60_000, threads=threads) for threads in (1, 3)
    )
    assert np.array_equal(one.mean, three.mean)
    assert np.array_equal(one.variance, three.variance)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: serve_by_tables(uniform(1, 17), [np.zeros(2, np.uint8)], 1, 1, seed=0), "17 sl"),
        (lambda: serve_by_tables(uniform(1, 2), [np.zeros(8, np.uint8)], 1, 1, seed=0), "4 entr"),
        (lambda: serve_by_tables(uniform(1, 2), [np.zeros(4)], 1, 1, seed=0), "uint8"),
        (lambda: serve_by_tables(uniform(1, 2), [], 1, 1, seed=0), "tables"),
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

"""Exact laws against recursions, exact fractions, and every order in which samples can go."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan import expected_deletions
from s3t.plan.survival.exhaustion import uniform_exhaustion, until_exhausted, until_first_death
from s3t.plan.survival.law import RequestLaw
from s3t.plan.survival.stream import Stream, endless, finite, uniform

Until = Callable[[Stream, npt.ArrayLike], RequestLaw]
UNTIL: list[Until] = [until_exhausted, until_first_death]
TIGHT = 1e-12


def coupons_step_by_step(slots: int, left: int, requests: int) -> npt.NDArray[np.float64]:
    """P(R > r) for r = 0 … R, one request after another: no subtraction, no approximation."""
    chance = np.zeros(left + 1)
    chance[left] = 1.0
    hit = np.arange(left + 1) / slots
    pending = [chance[1:].sum()]
    for _ in range(requests):
        falling = chance * hit
        chance -= falling
        chance[:-1] += falling[1:]
        pending.append(chance[1:].sum())
    return np.array(pending)


def done(first: npt.NDArray[np.bool_], hit: npt.NDArray[np.bool_], until: Until) -> bool:
    """Whether the event has happened once the slots ``hit`` were hit; both [m, L]."""
    serving = first.any(axis=1)
    dead = ~(first & ~hit).any(axis=1)
    return bool(dead[serving].all() if until is until_exhausted else dead[serving].any())


def hit_sets(first: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Every set of first slices that may be hit, as [m, L], by bit mask."""
    where = np.argwhere(first)
    sets = []
    for mask in range(1 << len(where)):
        hit = np.zeros_like(first)
        for bit, (shard, c) in enumerate(where):
            hit[shard, c] = mask >> bit & 1
        sets.append(hit)
    return sets


# ── slots that are alike ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("slots", "first", "horizon"),
    [
        (1, 1, 9),
        (2, 1, 90),
        (2, 2, 90),
        (3, 3, 90),
        (30, 5, 900),
        (30, 30, 900),
        (900, 700, 12_000),
    ],
)
def test_coupons(slots: int, first: int, horizon: int) -> None:
    law = uniform_exhaustion(slots, first)
    exact = coupons_step_by_step(slots, first, horizon)
    assert np.abs(law.survival(np.arange(horizon + 1)) - exact).max() < TIGHT
    assert law.mean == pytest.approx(expected_deletions(slots, first), rel=TIGHT)
    waits = [slots * (slots - i) / i**2 for i in range(1, first + 1)]
    assert law.variance == pytest.approx(math.fsum(waits), rel=1e-10, abs=1e-10)


def test_a_large_system() -> None:
    slots = 64_000  # m = 1,000, L = 64
    law = uniform_exhaustion(slots, slots)
    assert law.mean == pytest.approx(expected_deletions(slots, slots), rel=TIGHT)
    i = np.arange(1, slots + 1)
    assert law.variance == pytest.approx((slots * (slots - i) / i**2).sum(), rel=1e-10)
    # Erdős and Rényi: P(R ≤ N·log N + cN) → exp(−e^{−c}), here to 1/N and some
    c = np.array([-1.0, 0.0, 1.0, 3.0, 8.0])
    near = law.survival(np.rint(slots * (math.log(slots) + c)).astype(int))
    assert np.abs(near - (1 - np.exp(-np.exp(-c)))).max() < 1e-4
    far = law.survival(np.array([2_000_000]))
    assert far[0] == pytest.approx(slots * (1 - 1 / slots) ** 2_000_000, rel=1e-6)  # union bound


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    "law",
    [
        uniform_exhaustion(30, 20),
        until_exhausted(finite([[9, 1], [4, 7]]), np.ones((2, 2), dtype=bool)),
    ],
)
def test_quantiles_are_where_the_law_says(law: RequestLaw, probability: float) -> None:
    at = int(law.quantile(probability))
    assert law.survival(at) <= 1 - probability < law.survival(at - 1)


def test_quantiles_where_the_law_meets_the_share() -> None:
    law = until_exhausted(finite([[1, 1, 1, 1, 1]]), np.array([[True, *[False] * 4]]))
    assert [law.quantile(r / 5) for r in range(1, 5)] == [1, 2, 3, 4]  # R is uniform on 1 … 5


def test_before_the_first_request_and_after_the_last() -> None:
    law = until_exhausted(finite([[2, 3]]), np.array([[True, False]]))
    assert law.survival(np.array([-1, 0, 1, 5, 6])) == pytest.approx([1, 1, 0.6, 0, 0])
    assert law.survival(np.array([[0], [5]])).shape == (2, 1)
    assert law.survival(3) == pytest.approx(1 / 10)  # the two are the last of five


# ── any rates and sizes ──────────────────────────────────────────────────────────────────────


def along_requests(stream: Stream, first: Any, until: Until, horizon: int) -> list[float]:
    """P(R > r) of an endless stream by the Markov chain over sets of hit first slices."""
    sets = hit_sets(first)
    rates = stream.weights[first]
    pending = np.array([not done(first, hit, until) for hit in sets])
    chance = np.zeros(len(sets))
    chance[0] = 1.0
    found = []
    for _ in range(horizon + 1):
        found.append(float(chance[pending].sum()))
        after = chance * max(0.0, 1 - rates.sum())
        for bit, rate in enumerate(rates):
            np.add.at(after, np.arange(len(sets)) | 1 << bit, chance * rate)
        chance = after
    return found


def along_removals(stream: Stream, first: Any, until: Until) -> list[float]:
    """P(R > r) of a finite stream by exact inclusion–exclusion over sets of untouched slices."""
    sets = hit_sets(first)
    sizes = [int(size) for size in stream.weights[first]]
    total, every = int(stream.weights.sum()), len(sets) - 1
    found = []
    for r in range(total + 1):
        inside = [
            sum(n for bit, n in enumerate(sizes) if mask >> bit & 1) for mask in range(every + 1)
        ]
        law = [Fraction(math.comb(total - n, r), math.comb(total, r)) for n in inside]
        for bit in range(len(sizes)):
            for mask in range(every + 1):
                if not mask >> bit & 1:
                    law[mask] -= law[mask | 1 << bit]
        pending = [mask for mask in range(every + 1) if not done(first, sets[every ^ mask], until)]
        found.append(float(sum(law[mask] for mask in pending)))
    return found


@st.composite
def systems(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> tuple[list[list[Any]], Any]:
    """Rates or sizes [m, L] and first slices, 1 to 6 of them."""
    m, slices = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    table = draw(
        st.lists(st.lists(values, min_size=slices, max_size=slices), min_size=m, max_size=m)
    )
    cells = st.lists(st.integers(0, m * slices - 1), min_size=1, max_size=6)
    first = np.zeros(m * slices, dtype=bool)
    first[draw(cells)] = True
    return table, first.reshape(m, slices)


@given(systems(st.floats(1e-4, 1)), st.sampled_from(UNTIL))
@settings(max_examples=40)
def test_any_rates(system: tuple[Any, Any], until: Until) -> None:
    rates, first = system
    stream = endless(rates)
    exact = along_requests(stream, first, until, 60)
    assert until(stream, first).survival(np.arange(61)) == pytest.approx(exact, abs=TIGHT)


@given(systems(st.integers(1, 30)), st.sampled_from(UNTIL))
@example(([[24, 3], [4, 2]], np.ones((2, 2), dtype=bool)), until_first_death)
@settings(max_examples=40)
def test_any_sizes(system: tuple[Any, Any], until: Until) -> None:
    sizes, first = system
    stream = finite(sizes)
    law = until(stream, first)
    exact = np.array(along_removals(stream, first, until))
    steps = np.arange(len(exact))
    assert law.survival(steps) == pytest.approx(exact, abs=TIGHT)
    assert law.mean == pytest.approx(exact.sum(), rel=1e-10)
    square = (exact * (2 * steps + 1)).sum()
    assert law.variance == pytest.approx(square - exact.sum() ** 2, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("until", UNTIL)
def test_every_order_of_six_samples(until: Until) -> None:
    sizes, first = [[2, 1], [1, 2]], np.array([[True, False], [True, True]])
    slots = [slot for slot, size in enumerate(np.ravel(sizes)) for _ in range(size)]
    counts = np.zeros(7)
    for order in permutations(slots):
        hit = np.zeros(4, dtype=bool)
        for r, slot in enumerate(order):
            counts[r] += 1  # pending after r requests
            hit[slot] = True
            if done(first, hit.reshape(2, 2), until):
                break
    assert until(finite(sizes), first).survival(np.arange(7)) == pytest.approx(counts / 720)


def test_skewed_rates() -> None:
    rates = np.array([[1.0, 1e-3, 1e-6], [1e-2, 1e-8, 1e-4]])
    law = until_exhausted(endless(rates), np.ones((2, 3), dtype=bool))
    slowest = rates.sum() / 1e-8
    assert law.mean == pytest.approx(slowest * (1 + (1e-2 - 1e-2 / 1.01)), rel=1e-3)
    assert law.quantile(0.5) == pytest.approx(slowest * math.log(2), rel=1e-2)


def test_the_mean_is_that_of_the_law() -> None:
    rates = np.random.default_rng(5).random((4, 5)) + 0.1
    first = np.arange(20).reshape(4, 5) % 5 < 3
    law = until_exhausted(endless(rates), first)
    pending = law.survival(np.arange(4_000))
    assert law.mean == pytest.approx(pending.sum(), rel=1e-10)
    square = (pending * (2 * np.arange(4_000) + 1)).sum()
    assert law.variance == pytest.approx(square - law.mean**2, rel=1e-9)


@pytest.mark.parametrize(
    ("shards", "slices", "samples", "first"),
    [(5, 6, 20, 30), (5, 6, 20, 10), (10, 10, 1, 100), (1_000, 64, 15, 64_000)],
)
def test_equal_sizes_have_a_closed_form(shards: int, slices: int, samples: int, first: int) -> None:
    chosen = (np.arange(shards * slices) < first).reshape(shards, slices)
    law = until_exhausted(finite(np.full((shards, slices), samples)), chosen)
    total, j = shards * slices * samples, np.arange(1, first + 1)
    left, square = (math.exp(-np.log1p(power / samples / j).sum()) for power in (1, 2))
    assert law.mean == pytest.approx((total + 1) * (1 - left), rel=TIGHT)
    variance = (total + 1) * (total + 2) * square - ((total + 1) * left) ** 2 - (total + 1) * left
    assert law.variance == pytest.approx(variance, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("first", "samples", "others"),
    [(50, 2, 0), (100, 1, 0), (100, 1, 1), (30, 5, 20), (300, 3, 99)],
)
def test_many_slices_of_few_samples(first: int, samples: int, others: int) -> None:
    total = first * samples + others
    sizes = [[samples] * first + [others]]
    law = until_exhausted(finite(sizes), np.array([[True] * first + [False]]))
    steps = sorted({1, 2, total // 7, total // 2, total - others - 1, total - 2, total - 1})
    exact = [
        1
        - sum(
            Fraction((-1) ** j * math.comb(first, j) * math.comb(total - j * samples, r))
            for j in range(first + 1)
        )
        / math.comb(total, r)
        for r in steps
    ]
    assert law.survival(np.array(steps)) == pytest.approx([float(p) for p in exact], abs=TIGHT)


def test_repeats_do_not_matter_where_slices_are_large() -> None:
    first = np.tile([True, True, False], (4, 1))
    many = until_exhausted(finite(np.full((4, 3), 10**7)), first)
    assert many.mean == pytest.approx(until_exhausted(uniform(4, 3), first).mean, rel=1e-5)


def test_shards_that_are_alike_count_each() -> None:
    first = np.tile([True, True, False], (6, 1))
    alike = until_first_death(uniform(6, 3), first).survival(np.arange(50))
    jitter = 1 + 1e-13 * np.arange(18).reshape(6, 3)
    assert until_first_death(endless(jitter), first).survival(np.arange(50)) == pytest.approx(alike)


# ── the ends of the range ────────────────────────────────────────────────────────────────────


def test_a_first_slice_that_is_never_hit() -> None:
    first = np.array([[True, True], [True, False]])
    stream = endless([[1, 0], [2, 1]])
    never = until_exhausted(stream, first)
    assert (never.mean, never.variance, never.quantile(0.01)) == (math.inf, math.inf, math.inf)
    assert never.survival(10**9) == 1
    assert until_first_death(stream, first).mean == pytest.approx(2)  # the other shard
    assert until_first_death(stream, np.array([[True, True], [False, False]])).mean == math.inf
    assert until_exhausted(finite([[1, 0], [2, 1]]), first).survival(4) == 1


def test_nothing_left() -> None:
    none = np.zeros((2, 2), dtype=bool)
    law = until_exhausted(uniform(2, 2), none)
    assert (law.mean, law.variance, law.quantile(0.5), law.survival(0)) == (0, 0, 0, 0)
    with pytest.raises(InputError, match="dead already"):
        until_first_death(uniform(2, 2), none)


@pytest.mark.parametrize("make", [endless, finite])
@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([[1, -2]], "-2.0"),
        ([[1, math.nan]], "nan"),
        ([[1, math.inf]], "inf"),
        ([[0, 0]], "all 0"),
        ([1, 2], r"shape \(2,\)"),
        ([[]], "shape"),
        ([[1, 2], [3]], "no table"),
        ([["a"]], "no table"),
    ],
)
def test_streams_that_cannot_be(make: Callable[[Any], Stream], values: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make(values)


def test_what_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"1\.5"):
        finite([[1.5, 2]])
    with pytest.raises(InputError, match="0 shards"):
        uniform(0, 3)
    with pytest.raises(InputError, match="4 first slices of 3"):
        uniform_exhaustion(3, 4)
    with pytest.raises(InputError, match=r"shape \(3, 2\)"):
        until_exhausted(uniform(2, 3), np.ones((3, 2), dtype=bool))
    with pytest.raises(InputError, match="int64"):
        until_exhausted(uniform(1, 2), np.array([[0, 1]]))
    with pytest.raises(InputError, match="whole numbers"):
        uniform_exhaustion(3, 3).survival(1.5)
    for share in (0, 1, -0.1, math.nan):
        with pytest.raises(InputError, match="probability"):
            uniform_exhaustion(3, 3).quantile(share)


@given(st.integers(2, 40), st.data())
@settings(max_examples=30)
def test_more_first_slices_last_longer(slots: int, data: st.DataObject) -> None:
    few = data.draw(st.integers(1, slots - 1))
    assume(few < slots)
    r = np.arange(0, 6 * slots, 3)
    shorter, longer = uniform_exhaustion(slots, few), uniform_exhaustion(slots, few + 1)
    assert np.all(longer.survival(r) >= shorter.survival(r) - TIGHT)
    assert longer.mean > shorter.mean
    assert np.all(np.diff(longer.survival(r)) <= TIGHT)

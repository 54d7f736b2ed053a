"""Plans by tables, against the sequences that ``s3t`` follows and an exact law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.deletion_budget.tables import serve_by_tables
from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.survival.lengths import length_table
from s3t.plan.survival.stream import Stream, endless, finite, uniform
from s3t.plan.survival.trajectories import Trajectories, serve_by_sequences

Plan = Sequence[Sequence[int]]


def table(sequences: Plan, slices: int) -> Any:
    return length_table(prefixes(sequences), slices)


def by_tables(
    stream: Stream, plans: Sequence[Plan], requests: int, trials: int, threads: int = 1
) -> Trajectories:
    tables = [table(plan, stream.slices) for plan in plans]
    return serve_by_tables(stream, tables, requests, trials, seed=8, threads=threads)


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
    one = by_tables(streams[kind], listed, 40, 40)
    other = serve_by_sequences(streams[kind], listed, 40, 40, seed=8)
    assert one.mean == pytest.approx(other.mean, abs=1e-9)
    assert one.variance == pytest.approx(other.variance, abs=1e-6)


def test_shards_that_serve_are_a_table_too() -> None:
    alive = np.minimum(table(cyclic(4, 2), 4), 1)
    found = serve_by_tables(uniform(3, 4), [alive], 60, 20_000, seed=1)
    requests = np.arange(61)
    exact = 3 * (2 * (1 - 1 / 12) ** requests - (1 - 2 / 12) ** requests)
    assert np.all(np.abs(found.mean[0] - exact) <= 2 * found.half_width[0] + 1e-9)


@pytest.mark.parametrize("stream", [uniform(3, 4), endless([[1, 2, 3, 4]] * 3)])
def test_threads_change_nothing(stream: Stream) -> None:
    one, three = (by_tables(stream, [cyclic(4, 2)], 30, 60_000, threads) for threads in (1, 3))
    assert np.array_equal(one.mean, three.mean)
    assert np.array_equal(one.variance, three.variance)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: serve_by_tables(uniform(1, 17), [np.zeros(2, np.uint8)], 1, 1, seed=0), "17 sl"),
        (lambda: serve_by_tables(uniform(1, 2), [np.zeros(8, np.uint8)], 1, 1, seed=0), "4 entr"),
        (lambda: serve_by_tables(uniform(1, 2), [np.zeros(4)], 1, 1, seed=0), "uint8"),
        (lambda: serve_by_tables(uniform(1, 2), [], 1, 1, seed=0), "tables"),
    ],
)
def test_what_is_refused(call: Callable[[], Trajectories], match: str) -> None:
    with pytest.raises(InputError, match=match):
        call()

"""Persons who differ, against the exact law of tiny systems and a stream drawn person by person."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from s3t.plan.survival.persons import median_requests, simulate_deaths

Table = Sequence[Sequence[int]]
Law = dict[float, float]
"""Probability by number of requests, inf included."""

SYSTEMS: dict[str, tuple[Table, Table, Sequence[float]]] = {
    "alike": ([[2, 2], [2, 2]], [[1, 1], [1, 1]], [1, 1]),
    "one tier asks more": ([[2, 2], [2, 2]], [[1, 1], [1, 1]], [1, 5]),
    "sizes differ": ([[1, 4, 2], [3, 2, 1]], [[1, 1, 0], [0, 1, 1]], [1, 2, 10]),
    "a dead shard": ([[3, 2], [1, 2], [2, 2]], [[0, 0], [1, 0], [1, 1]], [3, 1]),
    "one first slice": ([[3, 3], [3, 3]], [[0, 0], [0, 1]], [4, 1]),
    "one person": ([[1, 0]], [[1, 0]], [2, 1]),
    "a tier that never asks": ([[2, 2], [2, 2]], [[1, 0], [1, 1]], [1, 0]),
    "none that matters asks": ([[2, 2], [2, 2]], [[0, 1], [0, 1]], [1, 0]),
}


def arrays(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, living, weights = SYSTEMS[name]
    return np.array(left), np.array(living, dtype=bool), np.array(weights, dtype=float)


def laws(left: np.ndarray, living: np.ndarray, weights: np.ndarray) -> list[Law]:
    """Requests until the first living shard dies, until none lives, and until each shard dies.

    From the chain of persons left, one request after the other.
    """
    shape = left.shape
    shards = [s for s in range(shape[0]) if living[s].any()]
    found: list[Law] = [defaultdict(float) for _ in range(2 + len(shards))]
    states: dict[tuple[int, ...], float] = {tuple(left.ravel().tolist()): 1.0}
    rates = np.broadcast_to(weights, shape).ravel()

    def dead(state: tuple[int, ...]) -> list[bool]:
        hit = np.array(state).reshape(shape) < left
        each = [bool(hit[s][living[s]].all()) for s in shards]
        return [any(each), all(each), *each]

    for request in range(1, int(left.sum()) + 2):
        after: dict[tuple[int, ...], float] = defaultdict(float)
        for state, chance in states.items():
            total = float((rates * state).sum())
            if not total:  # whoever is left never asks
                for law, happened in zip(found, dead(state), strict=True):
                    law[math.inf] += 0 if happened else chance
                continue
            for slot, count in enumerate(state):
                if count and rates[slot]:
                    new = (*state[:slot], count - 1, *state[slot + 1 :])
                    share = chance * count * rates[slot] / total
                    after[new] += share
                    for law, was, now in zip(found, dead(state), dead(new), strict=True):
                        law[request] += share if now and not was else 0
        states = after
    assert all(sum(law.values()) == pytest.approx(1) for law in found)
    return found


def at_most(law: Law, number: float) -> float:
    return sum(chance for requests, chance in law.items() if requests <= number)


@pytest.mark.parametrize("name", SYSTEMS)
def test_simulated_as_the_chain_of_persons(name: str) -> None:
    left, living, weights = arrays(name)
    trials = 40_000
    found = simulate_deaths(left, living, weights, trials, seed=3)
    assert found.shape == (2, trials)
    for law, row in zip(laws(left, living, weights), found, strict=False):
        for requests in range(int(left.sum()) + 1):
            share = at_most(law, requests)
            error = math.sqrt(share * (1 - share) / trials) if 0 < share < 1 else 0
            assert abs(np.mean(row <= requests) - share) <= 4 * error + 1e-9


@pytest.mark.parametrize("name", SYSTEMS)
def test_medians_of_shards_to_about_one_request(name: str) -> None:
    left, living, weights = arrays(name)
    medians = median_requests(left, living, weights)
    assert medians[~living.any(axis=1)].tolist() == [0] * int((~living.any(axis=1)).sum())
    for median, law in zip(
        medians[living.any(axis=1)], laws(left, living, weights)[2:], strict=True
    ):
        if law[math.inf]:
            assert median == math.inf
        else:
            assert at_most(law, median + 1) >= 0.5 - 1e-9
            assert at_most(law, median - 2) < 0.5 + 1e-9


def test_as_a_stream_drawn_person_by_person() -> None:
    draw = np.random.default_rng(1)
    left = draw.integers(5, 40, (3, 4))
    living = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=bool)
    weights = np.array([1.0, 1.0, 3.0, 8.0])
    slot = np.repeat(np.arange(left.size), left.ravel())
    rates = np.broadcast_to(weights, left.shape).ravel()[slot]

    def stream() -> tuple[list[int], int, int]:
        order = slot[np.argsort(draw.exponential(size=len(slot)) / rates)]
        first = [int(np.argmax(order == number)) + 1 for number in range(left.size)]
        dies = [max(first[s * 4 + c] for c in range(4) if living[s, c]) for s in range(len(living))]
        return dies, min(dies), max(dies)

    truth = [stream() for _ in range(4000)]
    found = simulate_deaths(left, living, weights, 40_000, seed=0)
    for row, at in zip(found, (1, 2), strict=True):
        drawn = np.array([one[at] for one in truth])
        assert row.mean() == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 4000**0.5)
        assert np.median(row) == pytest.approx(np.median(drawn), abs=4 * drawn.std() / 4000**0.5)
    medians = np.median([one[0] for one in truth], axis=0)
    errors = np.std([one[0] for one in truth], axis=0) * 1.25 / 4000**0.5
    assert np.all(abs(median_requests(left, living, weights) - medians) <= 1 + 4 * errors)


def test_one_shard_dies_when_all_is_over() -> None:
    left, living, weights = arrays("one first slice")
    first, last = simulate_deaths(left, living, weights, 1000, seed=0)
    assert (first == last).all()


def test_the_seed_decides() -> None:
    left, living, weights = arrays("sizes differ")
    same = [simulate_deaths(left, living, weights, 500, seed=seed) for seed in (0, 0, 1)]
    assert (same[0] == same[1]).all() and (same[0] != same[2]).any()

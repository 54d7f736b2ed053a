"""Drawn sequences: seeded, finite, and led by the priors."""

from __future__ import annotations

from collections import Counter

import pytest

from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.sampling import conditional, uniform


def test_the_seed_decides() -> None:
    brief = Brief(6, 5)
    assert uniform(brief) == uniform(Brief(6, 5))
    assert uniform(brief) != uniform(Brief(6, 5, seed=1))


def test_uniform_draws_are_uniform() -> None:
    first = Counter(uniform(Brief(3, 1, seed=seed))[0] for seed in range(1200))
    assert len(first) == 6
    assert all(140 < count < 260 for count in first.values())


def test_conditional_draws_put_what_is_deleted_least_first() -> None:
    rates = (0.9, 0.1, 0.1)
    first = Counter(conditional(Brief(3, 1, rates=rates, seed=seed))[0][0] for seed in range(950))
    assert first[0] == pytest.approx(50, abs=25)  # 0.1 of 1.9
    assert first[1] == pytest.approx(450, abs=60)


def test_relative_rates_are_scaled_to_probabilities() -> None:
    # 4 becomes 1: slice 0 comes last wherever another is left.
    found = conditional(Brief(3, 2, rates=(4.0, 2.0, 2.0)))
    assert {sequence[-1] for sequence in found} == {0}


def test_certain_deletion_ends() -> None:
    assert len(conditional(Brief(3, 6, rates=(1.0, 1.0, 1.0)))) == 6
    assert len(conditional(Brief(4, 24, rates=(1.0, 1.0, 0.0, 0.0)))) == 24

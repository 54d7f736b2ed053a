"""Closed forms against the published numbers and against simulation."""

from __future__ import annotations

import random
import statistics

import pytest

from s3t.plan import expected_deletions


@pytest.mark.parametrize(
    ("budget", "published"),
    [(1, 68.5), (2, 87.9), (3, 99.6), (4, 107.9), (5, 114.5), (6, 119.9)],
)
def test_agrees_with_the_authors_simulation(budget: int, published: float) -> None:
    assert expected_deletions(5 * 6, 5 * budget) == pytest.approx(published, rel=5e-3)


def test_nothing_to_lose() -> None:
    assert expected_deletions(12, 0) == 0
    assert expected_deletions(1, 1) == 1


def test_agrees_with_drawing_slots() -> None:
    draw = random.Random(0)

    def requests_until_exhausted() -> int:
        left, count = set(range(3)), 0
        while left:
            left.discard(draw.randrange(8))
            count += 1
        return count

    mean = statistics.fmean(requests_until_exhausted() for _ in range(20_000))
    assert mean == pytest.approx(expected_deletions(8, 3), rel=0.03)

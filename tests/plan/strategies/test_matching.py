"""The paper's bipartite matching: every slice in every position, and its weakness."""

from __future__ import annotations

import pytest

from s3t.errors import ConfigError
from s3t.plan import cyclic, prefixes
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.matching import matching


@pytest.mark.parametrize("rates", [(), (0.4, 0.3, 0.2, 0.1, 0.5), (1.0, 1.0, 0.0, 0.0, 0.0)])
def test_every_slice_stands_in_every_position_once(rates: tuple[float, ...]) -> None:
    found = matching(Brief(5, 5, rates=rates))
    assert all(len(set(column)) == 5 for column in zip(*found, strict=True))


def test_a_smaller_budget_keeps_the_first_slices_deleted_least() -> None:
    found = matching(Brief(4, 2, rates=(0.4, 0.3, 0.2, 0.1)))
    assert [sequence[0] for sequence in found] == [2, 3]


def test_more_sequences_than_slices_are_refused() -> None:
    with pytest.raises(ConfigError, match="matching gives one sequence per slice"):
        matching(Brief(4, 5))


def test_it_matches_orders_not_sets() -> None:
    """Under uniform deletions sets are trained twice: why the tree looks at sets."""
    brief = Brief(4, 4)
    trained = {frozenset(prefix) for prefix in prefixes(matching(brief))}
    rotated = {frozenset(prefix) for prefix in prefixes(cyclic(4, 4))}
    assert len(trained) < len(rotated)

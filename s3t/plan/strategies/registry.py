"""The strategies by name, and the one way to call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from s3t.errors import ConfigError
from s3t.plan.sequences import Sequences, explicit
from s3t.plan.strategies.brief import Brief, Strategy, spent
from s3t.plan.strategies.greedy import greedy
from s3t.plan.strategies.matching import matching
from s3t.plan.strategies.rotations import cyclic, even, iterated
from s3t.plan.strategies.sampling import conditional, uniform
from s3t.plan.strategies.settree import set_tree

__all__ = ["STRATEGIES", "sequences_for"]

STRATEGIES: dict[str, Strategy] = {
    "tree": set_tree,
    "greedy": greedy,
    "cyclic": cyclic,
    "iterated": iterated,
    "even": even,
    "matching": matching,
    "conditional": conditional,
    "random": uniform,
}
"""The function of each ``sequences.strategy``, the best first; ``explicit`` needs none. A test
holds the names and the config's equal."""


def sequences_for(
    strategy: str, brief: Brief, listed: Sequence[Sequence[int]] | None = None
) -> Sequences:
    """The sequences of one shard.

    If the budget is a cost, every strategy but the tree gets the greatest number of sequences
    whose nodes fit in it.

    Args:
        strategy: a name in ``STRATEGIES``, or ``explicit``.
        brief: slices, budget, rates, utility and horizon.
        listed: the sequences, for ``explicit``.

    Raises:
        ConfigError: an unknown strategy, or a budget that cannot be met.
    """
    if strategy == "explicit":
        return _listed(explicit(listed or (), brief.slices), brief)
    if strategy not in STRATEGIES:
        known = ", ".join(sorted([*STRATEGIES, "explicit"]))
        raise ConfigError([f"sequences.strategy {strategy!r} is unknown: use one of {known}"])
    if brief.costs is None or strategy == "tree":
        return STRATEGIES[strategy](brief)
    return _paid(STRATEGIES[strategy], brief)


def _listed(found: Sequences, brief: Brief) -> Sequences:
    if brief.costs is None and len(found) != brief.budget:
        raise ConfigError(
            [f"sequences.budget {brief.budget:g} is not the number of explicit ones ({len(found)})"]
        )
    if brief.costs is not None and (cost := spent(found, brief.costs)) > brief.budget:
        raise ConfigError([f"sequences.budget {brief.budget:g} does not pay for them ({cost:g})"])
    return found


def _paid(strategy: Strategy, brief: Brief) -> Sequences:
    """The greatest number of sequences whose nodes fit in the budget; cost grows with the
    number."""
    best: Sequences = ()
    number = 1
    while True:
        try:
            found = strategy(replace(brief, budget=number, costs=None))
        except ConfigError:  # more than there are
            break
        if spent(found, brief.node_costs) > brief.budget:
            break
        best, number = found, number + 1
    if not best:
        whole = sum(brief.node_costs)
        raise ConfigError(
            [
                f"sequences.budget {brief.budget:g} does not pay for one whole sequence "
                f"({whole:g}): raise it, or use strategy tree"
            ]
        )
    return best

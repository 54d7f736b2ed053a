"""The state of a run at one view, as ``s3t status`` tells it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from s3t.plan import environment_name
from s3t.plan.trie import Node
from s3t.run.deletion import prefix_of
from s3t.run.opened import OpenRun
from s3t.types import Digest, NodeKey

__all__ = ["EnvironmentStatus", "ShardStatus", "Status", "status"]


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard: what it serves, and what of it is left.

    Attributes:
        prefix: slice numbers of the prefix that serves, empty if none does.
        node: key of the prefix's last node.
        nodes_alive, nodes_dead, nodes_missing: nodes that can serve, that a deletion has hit, and
            that are neither (not trained yet, or damaged).
        slices_hit: slices that hold a deleted sample.
        score: the prefix's score on the public validation data.
    """

    shard: int
    prefix: tuple[int, ...]
    node: NodeKey | None
    nodes_alive: int
    nodes_dead: int
    nodes_missing: int
    slices_hit: tuple[int, ...]
    score: float | None


@dataclass(frozen=True, slots=True)
class EnvironmentStatus:
    """An environment, and how many of the nodes that can serve were trained in it."""

    environment: Digest
    name: str
    nodes: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run at one view.

    Attributes:
        database: what its ledger is kept in.
        jobs, callbacks: that wait there: large deletions that were accepted and are not done, and
            URLs that are still to be told of a deletion.
        untold: why the store at ``store.url`` could not be told of every deletion when that was
            last tried; None if it was, or if there is none.
        (the others: as in the run's plan and ledger)
    """

    view: int
    samples: int
    deleted: int
    exhausted: bool
    expected_deletions_left: float
    slices: int
    shards: tuple[ShardStatus, ...]
    environments: tuple[EnvironmentStatus, ...]
    database: str
    jobs: int
    callbacks: int
    untold: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def status(opened: OpenRun) -> Status:
    """The state at the ledger's present view."""
    with opened.held():
        view, prefixes, _ = opened.catch_up()
        counts = opened.ledger.counts.totals()
        return Status(
            view=view,
            samples=counts["samples"],
            deleted=counts["deleted"],
            exhausted=opened.schedule.exhausted,
            expected_deletions_left=opened.expected(opened.schedule.first_slices_left),
            slices=opened.plan.slices,
            shards=tuple(_shard_status(opened, shard, node) for shard, node in enumerate(prefixes)),
            environments=_environments(opened),
            database=opened.ledger.database,
            **opened.ledger.outbox.counts(),
            untold=opened.notifier.reason,
        )


def _environments(opened: OpenRun) -> tuple[EnvironmentStatus, ...]:
    alive = (key for shard in range(opened.plan.shards) for key in opened.schedule.alive(shard))
    there = Counter(opened.plan.forest[key].environment for key in alive)
    return tuple(
        EnvironmentStatus(one, environment_name(values), there[one])
        for one, values in opened.plan.environments.items()
        if there[one]
    )


def _shard_status(opened: OpenRun, shard: int, node: Node | None) -> ShardStatus:
    alive, dead = len(opened.schedule.alive(shard)), len(opened.schedule.dead(shard))
    total = len(opened.plan.forest.of_shard(shard))
    return ShardStatus(
        shard=shard,
        prefix=prefix_of(node),
        node=None if node is None else node.key,
        nodes_alive=alive,
        nodes_dead=dead,
        nodes_missing=total - alive - dead,
        slices_hit=tuple(sorted(c for of, c in opened.schedule.hits if of == shard)),
        score=None if node is None else opened.scores.get(node.key),
    )

"""The state of a run at one view, as ``s3t status`` tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from s3t.ledger.served import EVALUATION, WEIGHTS
from s3t.plan import environment_name
from s3t.plan.trie import Node
from s3t.run.deletion import prefix_of
from s3t.run.opened import OpenRun
from s3t.types import Digest, NodeKey

__all__ = [
    "EnvironmentStatus",
    "EvaluationStatus",
    "ShardStatus",
    "Status",
    "WeightStatus",
    "said_of",
    "status",
]


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
class WeightStatus:
    """What shards and base count for in an answer, under ``aggregation.weights: public``.

    Figures are of the public validation rows, on which the weights were fitted.

    Attributes:
        fitted: whether there are fitted weights of what serves; until then they are uniform, and
            all that follows is None.
        shards: by shard; None of one that serves nothing.
        base: the base's; 0 if it has none.
        coefficient: c, if the answer is base + c · mean of the shards' differences to it.
        terms: rows, or tokens of a language model.
        log_likelihood, base_log_likelihood: of the answers and of the base alone, nats a term.
        accuracy, base_accuracy: of a classifier.
        reason: why this process gave its last fit up; None if it did not.
        failures: fits that this process gave up.
    """

    fitted: bool
    shards: tuple[float | None, ...] | None = None
    base: float | None = None
    coefficient: float | None = None
    terms: int | None = None
    log_likelihood: float | None = None
    base_log_likelihood: float | None = None
    accuracy: float | None = None
    base_accuracy: float | None = None
    reason: str | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationStatus:
    """How what serves did on the public test rows, when ``s3t evaluate`` last looked.

    Attributes:
        metric: ``accuracy`` or ``perplexity``.
        value: the figure.
        base: that of the base alone; None without a head.
        samples: test rows.
    """

    metric: str
    value: float
    base: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run at one view.

    Attributes:
        database: what its ledger is kept in.
        jobs, callbacks: that wait there: large deletions that were accepted and are not done, and
            URLs that are still to be told of a deletion.
        untold: why the store at ``store.url`` could not be told of every deletion when that was
            last tried; None if it was, or if there is none.
        weights: those that are fitted on public data; None where the config asks for others.
        evaluation: of what serves; None until it is evaluated.
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
    weights: WeightStatus | None = None
    evaluation: EvaluationStatus | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def said_of(found: Status) -> str:
    """A status in one line."""
    alive = sum(shard.nodes_alive for shard in found.shards)
    serving = sum(bool(shard.prefix) for shard in found.shards)
    return (
        f"view {found.view}, {found.samples - found.deleted:,} of {found.samples:,} samples left, "
        f"{serving} of {len(found.shards)} shards × {found.slices} slices serve, {alive} nodes "
        "alive"
    )


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
            weights=_weights(opened, prefixes),
            evaluation=_evaluation(opened, prefixes),
        )


def _weights(opened: OpenRun, prefixes: Sequence[Node | None]) -> WeightStatus | None:
    """The recorded weights of what serves."""
    if opened.config.aggregation.weights != "public":
        return None
    values = _recorded(opened, prefixes, WEIGHTS)
    if values is None:
        return WeightStatus(False)
    try:
        del values["method"]
        each = iter(values.pop("members"))
        shards = tuple(None if node is None else next(each) for node in prefixes)
        return WeightStatus(True, shards, **values)
    except (KeyError, StopIteration, TypeError):  # they are not served with either
        return WeightStatus(False)


def _evaluation(opened: OpenRun, prefixes: Sequence[Node | None]) -> EvaluationStatus | None:
    """The recorded evaluation of what serves."""
    values = _recorded(opened, prefixes, EVALUATION)
    try:
        return None if values is None else EvaluationStatus(**values)
    except TypeError:
        return None


def _recorded(opened: OpenRun, prefixes: Sequence[Node | None], key: str) -> dict[str, Any] | None:
    """The values of a record, if it is of exactly the nodes that serve."""
    found = opened.ledger.served.read(key)
    serving = [node.key for node in prefixes if node is not None]
    if found is None or found["of"].get("nodes") != serving:
        return None
    return dict(found["values"])


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

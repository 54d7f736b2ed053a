"""What a run serves along a stream of deletions, and how well: pure schedule, cached answers.

    stream ─► slots hit ─► Schedule ─► served nodes ─► metric (each state evaluated once)
       └────► the public service on a copy of the run ─► must give the same        (cross-check)

The metric after r deletions depends on the served nodes alone. A classifier's answer is a mean over
its shards, so each node answers the public test data once and every mixture follows from that; a
language model is evaluated once per distinct state.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s3t import S3T
from s3t.data import load_public
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import aggregate
from s3t.serving.predictor import Predictor
from s3t.types import NodeKey, Slot

__all__ = ["Request", "Scorer", "Served", "Trace", "checked", "requests", "trace"]

Served = tuple[Node | None, ...]
"""By shard, the last node of the prefix that it serves."""


@dataclass(frozen=True)
class Request:
    """One deletion: a sample, or a person with all samples, and the slots that it hits."""

    sample: str | None
    subject: str | None
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Trace:
    """One method along one stream; every list has one entry per number of deletions 0, 1, ….

    Attributes:
        values: the metric.
        blind: the metric if a shard chose among its longest prefixes without their scores.
        slices: slices in the serving prefixes of all shards.
        living: shards that serve.
    """

    values: list[float]
    blind: list[float]
    slices: list[int]
    living: list[int]


def requests(run: RunDir, count: int, seed: str) -> list[Request]:
    """``count`` random requests, each for another sample, or for a person if rows have one."""
    samples: dict[str, list[Slot]] = {}
    subjects: dict[str, list[Slot]] = {}
    with run.ledger() as ledger:
        for entry in ledger.samples():
            slot = (entry.shard, entry.slice)
            named = samples if entry.subject is None else subjects
            named.setdefault(entry.subject or entry.sample_id, []).append(slot)
    everyone = [Request(name, None, tuple(slots)) for name, slots in sorted(samples.items())]
    everyone += [Request(None, name, tuple(slots)) for name, slots in sorted(subjects.items())]
    return random.Random(seed).sample(everyone, min(count, len(everyone)))


class Scorer:
    """The metric of a run on the public test data, for any nodes that its shards might serve.

    Args:
        run: a whole run.
        known: probabilities [n, C] by node; runs over one partition may share it, since a key
            stands for the weights.
    """

    def __init__(self, run: RunDir, known: dict[NodeKey, Tensor]) -> None:
        self.run, self.plan, self.config = run, run.plan(), run.config()
        self._answering = Predictor(run, self.config, self.plan)
        self._known = known
        self._states: dict[tuple[NodeKey, ...], float] = {}
        self._labels: Tensor | None = None
        if names := tuple(self.plan.recipe["labels"]):
            rows = load_public(self.config, "test", names)
            self._rows = self._answering.encode(list(rows.inputs))
            self._labels = torch.tensor(rows.labels)

    @property
    def by_samples(self) -> bool:
        """Whether prefixes differ in their samples alone: each of them adapts all layers."""
        return self.config.stage.isolation == "snapshot"

    def of(self, served: Served) -> float:
        """The metric when the shards serve these nodes; the fallback's if they serve none."""
        key = tuple(node.key for node in served if node is not None)
        if key not in self._states:
            alone = self._labels is None or not key
            self._states[key] = self._evaluated(served) if alone else self._mixed(served)
        return self._states[key]

    def utility(self, served: Served) -> float:
        """The metric, the greater the better: accuracy, or minus the loss per token."""
        value = self.of(served)
        return value if self._labels is not None else -float(torch.tensor(value).log())

    def _evaluated(self, served: Served) -> float:
        ensemble = self._answering.ensemble(served, self.plan)
        assert ensemble is not None
        return self._answering.evaluation(ensemble, 0).value

    def _mixed(self, served: Served) -> float:
        """Mixed as the ensemble does: longest prefixes first, weighted by what they have seen."""
        nodes = [node for node in served if node is not None]
        nodes.sort(key=lambda n: (self.plan.recipe["blocks"][n.stage - 1][0], n.shard))
        sizes = self.plan.sizes
        seen = [
            sum(sizes[node.shard][part] for part in node.prefix)
            if self.config.aggregation.weights == "data"
            else 1
            for node in nodes
        ]
        weights = torch.tensor(seen, dtype=torch.float32) / sum(seen)
        logs = torch.stack([self.probabilities(node).log() for node in nodes])
        mixed = aggregate(logs, weights, self.config.aggregation.method)
        assert self._labels is not None
        return int((mixed.argmax(dim=1) == self._labels).sum()) / len(mixed)

    def probabilities(self, node: Node) -> Tensor:
        """What a classifier's node answers alone, [n, C]."""
        if node.key not in self._known:
            ensemble = self._answering.ensemble([node], self.plan)
            assert ensemble is not None
            self._known[node.key] = ensemble.probabilities(self._rows)
        return self._known[node.key]


def trace(scorer: Scorer, stream: Sequence[Request]) -> Trace:
    """One run along one stream, without retraining."""
    store, forest = scorer.run.store, scorer.plan.forest
    scores = {node.key: store.meta(node.key).score for node in forest}
    states = served(scorer, stream, scores)
    return Trace(
        values=[scorer.of(state) for state in states],
        blind=[scorer.of(state) for state in served(scorer, stream, {})],
        slices=[sum(node.stage for node in state if node is not None) for state in states],
        living=[sum(node is not None for node in state) for state in states],
    )


def served(
    scorer: Scorer, stream: Sequence[Request], scores: Mapping[NodeKey, float]
) -> list[Served]:
    """What the shards serve after 0, 1, … requests, by the scheduler alone."""
    plan = scorer.plan
    schedule = Schedule(plan.forest, plan.shards, [node.key for node in plan.forest], scores)
    states = [schedule.prefixes]
    for request in stream:
        schedule.apply(schedule.outcome(request.slots))
        states.append(schedule.prefixes)
    return states


def checked(
    scorer: Scorer, stream: Sequence[Request], trace: Trace, steps: Sequence[int]
) -> list[str]:
    """Take the same way through the public service; returns what differs, nothing if all is equal.

    The prefixes are compared after every request, the metric at ``steps``.
    """
    found = []
    scores = {node.key: scorer.run.store.meta(node.key).score for node in scorer.plan.forest}
    states = served(scorer, stream, scores)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(scorer.run.root, copy)
        with S3T.load(copy) as service:
            for at, state in enumerate(states):
                if at:
                    request = stream[at - 1]
                    service.deactivate(
                        [request.sample] if request.sample is not None else (),
                        [request.subject] if request.subject is not None else (),
                    )
                serving = [shard.node for shard in service.status().shards]
                if serving != [None if node is None else node.key for node in state]:
                    found.append(f"{scorer.run.root}: other nodes after {at} deletions")
                if at in steps and (value := service.evaluate().value) != trace.values[at]:
                    found.append(f"{scorer.run.root}: {value} after {at}, not {trace.values[at]}")
    return found

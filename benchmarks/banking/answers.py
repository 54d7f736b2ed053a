"""How a run answers the test questions in each way of serving, for any nodes its shards serve.

    node ─► probabilities [n, C], once ─┬─► mean of the living shards
                                        └─► of each question those of its nearest living shard
    nodes of a state ─► averaged adapters ─► probabilities

Invariant: the ways differ in aggregation alone; the nodes are the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.deletion_budget.along import Scorer, Served
from benchmarks.environment import median
from s3t.config import Config
from s3t.data import load_public
from s3t.model.inputs.encoders import Encoded
from s3t.model.prototypes import Prototypes, features_of, read_prototypes
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import Ensemble, aggregate
from s3t.serving.predictor import Predictor
from s3t.types import NodeKey

__all__ = ["WAYS", "Answers"]

WAYS = {"ensemble": "mean-probabilities", "merged": "mean-adapters", "router": "route"}
"""By the name that the table shows, ``aggregation.method``."""


class Answers:
    """One run's answers.

    Args:
        run: whole, of a classifier that falls back on the base.
    """

    def __init__(self, run: RunDir) -> None:
        self.run, self.plan = run, run.plan()
        self.scorer = Scorer(run, {})
        config = run.config()
        rows = load_public(config, "test", tuple(self.plan.recipe["labels"]))
        self._labels = torch.tensor(rows.labels)
        self._texts = list(rows.inputs)
        self._serving: dict[str, Predictor] = {}
        self._merged: dict[tuple[NodeKey, ...], float] = {}
        self._near: Tensor | None = None
        if config.partition.clusters is not None:
            self._near = self._nearness(read_prototypes(run.prototypes_path, self.plan.base))

    @property
    def ways(self) -> tuple[str, ...]:
        """In which ways the run can be served."""
        if self.plan.shards == 1:
            return ("ensemble",)
        return tuple(way for way in WAYS if way != "router" or self._near is not None)

    def accuracy(self, way: str, served: Served) -> float:
        """Share of the test questions that are answered right."""
        nodes = [node for node in served if node is not None]
        if not nodes:
            return self.scorer.of(served)  # the base
        if way == "merged":
            return self._of_merged(served)
        each = torch.stack([self.scorer.probabilities(node) for node in nodes])
        if way == "ensemble":
            found = aggregate(each.log(), torch.ones(len(nodes)) / len(nodes), WAYS[way])
        else:
            assert self._near is not None
            shards = [node.shard for node in nodes]
            nearest = self._near[:, shards].argmax(dim=1)
            found = each[nearest, torch.arange(len(nearest))]
        return self._right(found)

    def checked(self, way: str, served: Served, rows: int) -> bool:
        """Whether the ensemble that serves gives the very labels that ``accuracy`` counts."""
        ensemble, few = self._ensemble(way, served), self._encoded(rows)
        found = ensemble.probabilities(few).argmax(dim=1)
        nodes = [node for node in served if node is not None]
        each = torch.stack([self.scorer.probabilities(node)[:rows] for node in nodes])
        if way == "router":
            assert self._near is not None
            nearest = self._near[:rows, [node.shard for node in nodes]].argmax(dim=1)
            expected = each[nearest, torch.arange(rows)].argmax(dim=1)
        else:
            expected = each.mean(dim=0).argmax(dim=1)
        return torch.equal(found, expected)

    def latency(self, way: str, served: Served, sizes: Sequence[int], repeats: int) -> list[float]:
        """Median seconds of an answer to so many questions at once, after one to warm up."""
        ensemble, found = self._ensemble(way, served), []
        for size in sizes:
            rows, taken = self._encoded(size), []
            ensemble.probabilities(rows)
            for _ in range(max(1, repeats // size)):
                started = time.perf_counter()
                ensemble.probabilities(rows)
                taken.append(time.perf_counter() - started)
            found.append(median(taken))
        return found

    def _of_merged(self, served: Served) -> float:
        key = tuple(node.key for node in served if node is not None)
        if key not in self._merged:
            ensemble = self._ensemble("merged", served)
            self._merged[key] = self._right(ensemble.probabilities(self._encoded(len(self._texts))))
        return self._merged[key]

    def _ensemble(self, way: str, served: Served) -> Ensemble:
        found = self._answering(way).ensemble(served, self.plan)
        assert found is not None
        return found

    def _answering(self, way: str) -> Predictor:
        if way not in self._serving:
            config: Config = self.run.config()
            how = config.aggregation.model_copy(update={"method": WAYS[way]})
            config = config.model_copy(update={"aggregation": how})
            self._serving[way] = Predictor(self.run, config, self.plan)
        return self._serving[way]

    def _encoded(self, rows: int) -> Encoded:
        texts = [self._texts[at % len(self._texts)] for at in range(rows)]
        return self._answering("ensemble").encode(texts)

    def _right(self, found: Tensor) -> float:
        return int((found.argmax(dim=1) == self._labels).sum()) / len(self._labels)

    def _nearness(self, prototypes: Prototypes) -> Tensor:
        """How near each question is to each prototype, [n, m]."""
        base, rows = self._answering("ensemble").base, self._encoded(len(self._texts))
        return features_of(base, rows, prototypes.layer) @ prototypes.centres.T

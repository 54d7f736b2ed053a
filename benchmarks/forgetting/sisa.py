"""SISA with PEFT: shards that never meet, slices learnt one after another, a snapshot before each.

    shard 0   {c0} ─► snapshot ─► {c0,c1} ─► snapshot ─► {c0,c1,c2} …   one adapter, trained on
    shard 1   …                                                          answers: mean probabilities

A deletion in c1 puts back the snapshot from before c1 and trains the later stages again, without
the deleted rows: exact, and the shards hit are out until that is done.

Source: Bourtoule et al. 2019, arXiv 1912.03817; adapters instead of models as in the S3T paper
(arXiv 2406.16257). A stage trains 2 / (L + 1) of the epochs, so that all stages of a shard together
cost as many sample passes as a training without slices (their section V).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from benchmarks.forgetting.learner import Learner, fit
from benchmarks.forgetting.rows import Rows, Task, place_of

__all__ = ["Sisa"]


class Sisa:
    """The shards of a task.

    Args:
        learner: trains and answers for all shards, one after another.
        task: rows, recipe and shape.
    """

    def __init__(self, learner: Learner, task: Task) -> None:
        self._learner, self._task = learner, task
        self._gone: set[str] = set()
        self._snapshots: list[list[Mapping[str, Tensor]]] = []
        for shard in range(task.shape.shards):
            learner.fresh(seed=shard)
            self._snapshots.append([learner.state()])
            self._train(shard, 0)

    def delete(self, persons: Collection[str]) -> int:
        """Forget persons by training again what has seen them; returns the stages trained."""
        self._gone |= {*persons}
        first: dict[int, int] = {}
        for person in persons:
            shard, part = place_of(person, self._task.shape)
            first[shard] = min(part, first.get(shard, part))
        for shard, part in first.items():
            del self._snapshots[shard][part + 1 :]
            self._train(shard, part)
        return sum(self._task.shape.slices - part for part in first.values())

    def logits(self, tokens: Tensor) -> Tensor:
        """Log of the mean of the shards' probabilities, [n, t, V]."""
        found = []
        for snapshots in self._snapshots:
            self._learner.load(snapshots[-1])
            found.append(self._learner.logits(tokens).log_softmax(dim=2))
        return torch.stack(found).logsumexp(dim=0) - torch.tensor(float(len(found))).log()

    def _train(self, shard: int, start: int) -> None:
        """Stages from ``start`` on, from the snapshot before it."""
        recipe, slices = self._task.recipe, self._task.shape.slices
        self._learner.load(self._snapshots[shard][start])
        for stage in range(start, slices):
            rows = self._rows(shard, stage)
            fit(self._learner, rows, recipe, stage, max(1, round(recipe.epochs * 2 / (slices + 1))))
            self._snapshots[shard].append(self._learner.state())

    def _rows(self, shard: int, stage: int) -> Rows:
        """What a shard's slices up to ``stage`` still hold."""
        shape = self._task.shape
        held = {
            person
            for person in {*self._task.private.persons} - self._gone
            if (at := place_of(person, shape))[0] == shard and at[1] <= stage
        }
        return self._task.private.of(held)

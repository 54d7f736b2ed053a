"""S3T on a task: a run as a user would have it, and its answers as peft models.

    train ─► S3T.load ─► deactivate(persons) ─► what serves now ─► one peft model per shard

What is measured is checked against what the run answers: the models' perplexity on the test rows
is that of ``S3T.evaluate``, or the measuring stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.forgetting.learner import real_mean
from benchmarks.forgetting.rows import Rows, Task, write_jsonl
from s3t import S3T
from s3t.config import Config
from s3t.ledger import Receipt
from s3t.model.adapters.peft import to_peft
from s3t.model.loading import build_base, load_model
from s3t.plan.forecast import Outlook
from s3t.run import RunDir
from s3t.training.work.train import train
from s3t.types import NodeKey

__all__ = ["Served", "task_config"]

_AGREE = 1e-3
"""Nats per token by which a run and its peft models may differ: sums in another order."""


class Served:
    """A trained run of a task.

    Args:
        task: what it is trained on.
        folder: data and run go below it.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._config = task, task_config(task, folder)
        train(self._config)
        self._service = S3T.load(self._config.run_dir)
        self._models: list[Any] = []
        self._refresh()

    def close(self) -> None:
        """Close the run."""
        self._service.close()

    def outlook(self) -> Outlook | None:
        """Requests left until no shard serves, see ``S3T.forecast``."""
        return self._service.forecast().exhaustion

    def delete(self, persons: tuple[str, ...]) -> Receipt:
        """Forget persons while the run serves."""
        receipt = self._service.deactivate(subjects=persons)
        self._refresh()
        return receipt

    def prefixes(self) -> list[int]:
        """Slices behind the answers, by shard."""
        return [len(shard.prefix) for shard in self._service.status().shards]

    def serving(self) -> list[NodeKey]:
        """The last nodes of the prefixes that serve."""
        shards = self._service.status().shards
        return [shard.node for shard in shards if shard.node is not None]

    def logits(self, tokens: Tensor) -> Tensor:
        """Log of the mean of the shards' probabilities, [n, t, V]."""
        return _mixed(self._models, tokens)

    def logits_of(self, keys: Sequence[NodeKey], tokens: Tensor) -> Tensor:
        """The same, were these nodes serving."""
        return _mixed(_models(self._config, keys), tokens)

    def node(self, key: NodeKey) -> bytes:
        """The file of a node."""
        return RunDir(self._config.run_dir).store.path(key).read_bytes()

    def _refresh(self) -> None:
        """The models of what serves now."""
        self._models = _models(self._config, self.serving())
        said = math.log(self._service.evaluate().value)
        found = _mean_per_token(self.logits, self._task.test)
        if abs(said - found) > _AGREE:
            raise RuntimeError(f"the run answers with {said:.5f} nats, its models with {found:.5f}")


def task_config(task: Task, folder: Path) -> Config:
    """The config of a task's run; its data are written below ``folder``."""
    parts = {"private": task.private, "validation": task.validation, "test": task.test}
    source = {}
    for name, rows in parts.items():
        write_jsonl(folder / "data" / f"{name}.jsonl", rows)
        source[name] = {"format": "json", "files": str(folder / "data" / f"{name}.jsonl")}
    recipe, shape = task.recipe, task.shape
    return Config.model_validate(
        {
            "name": task.name,
            "task": "causal-lm",
            "output": str(folder / "run"),
            "data": {
                "private": source["private"],
                "public": {"validation": source["validation"], "test": source["test"]},
                "columns": {"id": "id"},
                "max_length": task.length,
            },
            "model": {"base": str(task.base)},
            "partition": {
                "shards": shape.shards,
                "slices": shape.slices,
                "salt": shape.salt,
                "subject": "person",
            },
            "lora": {
                "rank": recipe.rank,
                "alpha": 2 * recipe.rank,
                "targets": list(recipe.targets),
            },
            "stage": {
                "epochs": recipe.stage_epochs,
                "batch_size": recipe.stage_batch,
                "learning_rate": recipe.stage_rate,
                "schedule": "cosine",
                "max_grad_norm": 1.0,
            },
            "aggregation": {"weights": "uniform", "on_exhausted": "base"},
            "training": {"workers": 1},  # one core, as for all methods
        }
    )


def _models(config: Config, serving: Sequence[NodeKey]) -> list[Any]:
    """One peft model per node that serves a shard; the base alone where none does."""
    run = RunDir(config.run_dir)
    forest, targets = run.plan().forest, build_base(config, load_model(config)).targets
    models: list[Any] = []
    for key in serving:
        tensors: dict[str, Tensor] = {}
        for ancestor in forest.lineage(key):
            tensors.update(run.store.read(ancestor.key)[1])
        lora, base = config.lora, load_model(config).model
        models.append(to_peft(base, targets, tensors, lora.rank, lora.alpha))
    return models or [load_model(config).model.eval()]


@torch.no_grad()
def _mixed(models: Sequence[Any], tokens: Tensor) -> Tensor:
    """Log of the models' mean probabilities, [n, t, V]."""
    found = [model(input_ids=tokens).logits.log_softmax(dim=2) for model in models]
    return torch.stack(found).logsumexp(dim=0) - math.log(len(found))


def _mean_per_token(logits: Any, rows: Rows) -> float:
    """Mean of −log p over all real tokens."""
    lost, count = 0.0, 0
    for part in torch.arange(len(rows)).split(64):
        some = rows.at(part)
        real = some.real[:, 1:].sum(dim=1)
        lost += float((real_mean(logits(some.tokens), some) * real).sum())
        count += int(real.sum())
    return lost / count

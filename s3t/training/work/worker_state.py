"""Trains the nodes it is told to, and publishes each to the store.

Invariant: a node is published only whole and only after its parents; a node that a deletion has
killed by the time it is finished is thrown away, not published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

import torch
from torch import Tensor

from s3t.config import StageConfig
from s3t.errors import S3TError
from s3t.ledger import Witnessed
from s3t.model.adapters.lineage import composed
from s3t.plan.trie import Node
from s3t.store import Evidence, NodeMeta
from s3t.training.node.assignment import (
    Assignment,
    CacheSettings,
    StageRows,
    StageSettings,
    TrainedNode,
)
from s3t.training.node.process_group import ProcessGroup
from s3t.training.node.shared_cache import SharedCache
from s3t.training.node.trainer import StageTrainer
from s3t.training.prepare.prepared import Prepared
from s3t.types import NodeKey, digest

__all__ = ["WorkerState", "steps_of"]


_GROUP_BYTES = {"cpu": 2**19, "cuda": 2**28}
"""Hidden states of one stacked step. What a group saves is the same few hundred small operations
whatever its size; what it costs on a CPU begins where its activations leave the cache of a core."""

_MOST_LANES = 16


def steps_of(node: Node, stage: StageConfig) -> int:
    """Optimizer steps that a node takes by the recipe ``stage``."""
    return -(-node.samples // stage.step_rows) * stage.epochs_of(node.stage)


def _cache(prepared: Prepared, shared: bool) -> CacheSettings:
    """Where hidden states are kept: on disk if other processes of this machine want them too."""
    training, sealed = prepared.config.training, prepared.config.store.encrypt
    match training.trunk_cache:
        case "off":
            return CacheSettings(0)
        case "memory":
            on_disk = False
        case "disk":
            on_disk = True
        case "auto":
            on_disk = shared and not sealed  # in a sealed run no private row lies on disk in plain
        case other:
            assert_never(other)
    cap = training.trunk_cache_mb * 2**20
    if on_disk:
        contents = [sample.content for sample in prepared.samples]
        here = digest([prepared.plan.base, prepared.environment])
        return CacheSettings(cap, SharedCache(prepared.run.trunk_path, here, contents))
    return CacheSettings(cap)


class WorkerState:
    """What one process trains and publishes nodes with: base, data, store and caches.

    Args:
        prepared: the prepared run.
        shared: whether other processes of this machine train it too.
        process_group: with whom batches are divided, if that is done by several processes.
    """

    def __init__(
        self, prepared: Prepared, shared: bool = False, process_group: ProcessGroup | None = None
    ) -> None:
        self.prepared = prepared
        config = prepared.config
        self._leads = process_group is None or process_group.leads
        self.trainer = StageTrainer(
            prepared.base,
            StageSettings(
                config.stage,
                config.lora,
                config.prompt if config.stage.prompts else None,
                config.training.gradient_checkpointing,
            ),
            StageRows(prepared.private, prepared.validation, prepared.classes),
            _cache(prepared, shared),
            process_group,
        )
        self.blocks = [tuple(block) for block in prepared.plan.recipe["blocks"]]
        self._recipe = digest(prepared.plan.recipe)

    def stack_size(self) -> int:
        """How many nodes one stacked step should hold (see ``TrainingConfig.group_bytes``)."""
        prepared = self.prepared
        tokens = prepared.base.tokens(prepared.private.rows) + prepared.config.prompt_tokens
        width = prepared.base.hidden_size * 4
        lane = prepared.config.stage.batch_size * tokens * width
        wanted = prepared.config.training.group_bytes
        if wanted == "auto":
            wanted = _GROUP_BYTES.get(prepared.base.device.type, _GROUP_BYTES["cpu"])
        return max(1, min(_MOST_LANES, wanted // lane))

    def train(
        self, keys: Sequence[NodeKey], on_step: Callable[[int], None] = lambda steps: None
    ) -> None:
        """Train nodes of one stage whose parents are in the store, and publish them.

        Raises:
            S3TError: they were planned for another environment than this process's.
        """
        nodes = [self.prepared.plan.forest[key] for key in keys]
        for node in nodes:
            if node.environment != self.prepared.environment:
                raise S3TError(
                    f"node {node.key} was planned for another environment than this process has "
                    "(another machine type, library or switch than the main process): let machines "
                    "of one type train at a time; run the same command again on one of them"
                )
        block = self.blocks[nodes[0].stage - 1]
        assignments = [self._assignment(node) for node in nodes]
        size = self.stack_size()
        for start in range(0, len(nodes), size):
            group = assignments[start : start + size]
            for trained in self.trainer.train(block, group, on_step):
                if self._leads:
                    self._publish(trained)

    def score_again(self, keys: Sequence[NodeKey]) -> dict[NodeKey, Witnessed]:
        """Score nodes that are in the store on the validation rows as they are now, and publish
        their evidence of these; returns what the ledger is to hold of them."""
        found, prepared = {}, self.prepared
        for key in keys:
            node = prepared.plan.forest[key]
            meta, tensors = prepared.store.read(key)
            block = self.blocks[node.stage - 1]
            (scored,) = self.trainer.scored(block, [self._assignment(node)], [tensors])
            said = Evidence(key, prepared.scored_rows, prepared.environment, scored.said)
            prepared.store.write_evidence(said)
            if self._is_hit(node):  # since; and a purge may have gone by between the two looks
                prepared.store.remove([key])
                continue
            found[key] = Witnessed(meta.weights, scored.score, said.rows, said.digest)
        return found

    def trainable(self, keys: Sequence[NodeKey]) -> list[NodeKey]:
        """Those of the nodes that no deletion known here has hit."""
        return [key for key in keys if not self._is_hit(self.prepared.plan.forest[key])]

    def _assignment(self, node: Node) -> Assignment:
        prepared = self.prepared
        cumulative = prepared.config.stage.cumulative
        parts = node.prefix if cumulative else node.prefix[-1:]
        rows = torch.cat([prepared.members[node.shard][part] for part in parts])
        return Assignment(node.key, rows.sort().values, self._inherited(node), node.stage)

    def _inherited(self, node: Node) -> dict[str, Tensor]:
        """What the prefix before the node serves; at stage 1 the public head, if there is one."""
        prepared, isolation = self.prepared, self.prepared.config.stage.isolation
        before = prepared.plan.forest.lineage(node.key)[:-1]
        served = composed(isolation, before, lambda one: prepared.store.read(one.key)[1])
        return {**prepared.head, **served}

    def _publish(self, trained: TrainedNode) -> None:
        prepared = self.prepared
        node = prepared.plan.forest[trained.key]
        if self._is_hit(node):
            return
        meta = NodeMeta(
            key=node.key,
            parent=node.parent,
            base=prepared.plan.base,
            recipe=self._recipe,
            environment=node.environment,
            slices=tuple(prepared.plan.digests[node.shard][part] for part in node.prefix),
            shard=node.shard,
            prefix=node.prefix,
            score=trained.score,
            rows=prepared.scored_rows,
        )
        prepared.store.write(meta, trained.tensors, trained.said)
        if self._is_hit(node):  # since; and a purge may have gone by between the two looks
            prepared.store.remove([node.key])

    def _is_hit(self, node: Node) -> bool:
        return node.is_hit(self.prepared.run.hits())

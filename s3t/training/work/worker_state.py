"""Trains the nodes it is told to, and publishes each to the store.

Invariant: a node is published only whole and only after its parents; a node that a deletion has
killed by the time it is finished is thrown away, not published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s3t.errors import S3TError
from s3t.plan.trie import Node
from s3t.store import NodeMeta
from s3t.training.node.process_group import Peers
from s3t.training.node.shared_cache import Shelf
from s3t.training.node.trainer import Assignment, StageTrainer, Trained
from s3t.training.prepare.prepare import Material
from s3t.types import NodeKey, digest

__all__ = ["Workshop", "steps_of"]


_GROUP_BYTES = {"cpu": 2**19, "cuda": 2**28}
"""Hidden states of one stacked step. What a group saves is the same few hundred small operations
whatever its size; what it costs on a CPU begins where its activations leave the cache of a core."""

_MOST_SLOTS = 16


def steps_of(node: Node, step_rows: int, epochs: int) -> int:
    """Optimizer steps that a node takes, of ``step_rows`` rows each."""
    return -(-node.samples // step_rows) * epochs


class Workshop:
    """One process's means to train: base, data, store, and the caches between them.

    Args:
        material: the prepared run.
        shared: whether other processes of this machine train it too.
        peers: with whom batches are divided, if that is done by several processes.
    """

    def __init__(
        self, material: Material, shared: bool = False, peers: Peers | None = None
    ) -> None:
        self.material = material
        config = material.config
        kept, shelf = config.training.trunk_cache, None
        self._leads = peers is None or peers.leads
        sealed = config.store.encrypt  # then nothing of a private row lies on disk in plain
        if kept == "disk" or (kept == "auto" and shared and not sealed):
            contents = [sample.content for sample in material.samples]
            here = digest([material.plan.base, material.environment])
            shelf = Shelf(material.run.trunk_path, here, contents)
        self.trainer = StageTrainer(
            material.base,
            config.lora,
            config.stage,
            material.classes,
            material.private,
            material.validation,
            0 if kept == "off" else config.training.trunk_cache_mb * 2**20,
            shelf,
            config.training.gradient_checkpointing,
            config.prompt if config.stage.adapter == "prompt" else None,
            peers,
        )
        self.blocks = [tuple(block) for block in material.plan.recipe["blocks"]]
        self._recipe = digest(material.plan.recipe)

    def group_size(self) -> int:
        """How many nodes one stacked step should hold (see ``TrainingConfig.group_bytes``)."""
        material = self.material
        tokens = material.base.tokens(material.private.rows) + material.config.prompt_tokens
        width = material.base.hidden_size * 4
        slot = material.config.stage.batch_size * tokens * width
        wanted = material.config.training.group_bytes
        if wanted == "auto":
            wanted = _GROUP_BYTES.get(material.base.device.type, _GROUP_BYTES["cpu"])
        return max(1, min(_MOST_SLOTS, wanted // slot))

    def train(
        self, keys: Sequence[NodeKey], on_step: Callable[[int], None] = lambda steps: None
    ) -> None:
        """Train nodes of one stage whose parents are in the store, and publish them.

        Raises:
            S3TError: they were planned for another environment than this process's.
        """
        nodes = [self.material.plan.forest[key] for key in keys]
        for node in nodes:
            if node.environment != self.material.environment:
                raise S3TError(
                    f"node {node.key} was planned for another environment than this process has "
                    "(another machine type, library or switch than the main process): let machines "
                    "of one type train at a time; run the same command again on one of them"
                )
        block = self.blocks[nodes[0].stage - 1]
        assignments = [self._assignment(node) for node in nodes]
        size = self.group_size()
        for start in range(0, len(nodes), size):
            group = assignments[start : start + size]
            for trained in self.trainer.train(block, group, on_step):
                if self._leads:
                    self._publish(trained)

    def scores(self, keys: Sequence[NodeKey]) -> dict[NodeKey, float]:
        """Scores of nodes that are in the store, on the validation rows as they are now."""
        found = {}
        for key in keys:
            node = self.material.plan.forest[key]
            block = self.blocks[node.stage - 1]
            tensors = self.material.store.read(key)[1]
            (found[key],) = self.trainer.scores(block, [self._assignment(node)], [tensors])
        return found

    def trainable(self, keys: Sequence[NodeKey]) -> list[NodeKey]:
        """Those of the nodes that no deletion known here has hit."""
        return [key for key in keys if not self._is_hit(self.material.plan.forest[key])]

    def _assignment(self, node: Node) -> Assignment:
        material = self.material
        cumulative = material.config.stage.slices == "cumulative"
        parts = node.prefix if cumulative else node.prefix[-1:]
        rows = torch.cat([material.members[node.shard][part] for part in parts])
        return Assignment(node.key, rows.sort().values, self._inherited(node))

    def _inherited(self, node: Node) -> dict[str, Tensor]:
        """Tensors of the lineage, later stages over earlier ones, so the head is the parent's."""
        lineage = self.material.plan.forest.lineage(node.key)[:-1]
        if self.material.config.stage.isolation == "snapshot":
            lineage = lineage[-1:]
        tensors: dict[str, Tensor] = dict(self.material.head)
        for ancestor in lineage:
            tensors.update(self.material.store.read(ancestor.key)[1])
        return tensors

    def _publish(self, trained: Trained) -> None:
        material = self.material
        node = material.plan.forest[trained.key]
        if self._is_hit(node):
            return
        meta = NodeMeta(
            key=node.key,
            parent=node.parent,
            base=material.plan.base,
            recipe=self._recipe,
            environment=node.environment,
            slices=tuple(material.plan.digests[node.shard][part] for part in node.prefix),
            shard=node.shard,
            prefix=node.prefix,
            score=trained.score,
            rows=material.scored_rows,
        )
        material.store.write(meta, trained.tensors)
        if self._is_hit(node):  # since; and a purge may have gone by between the two looks
            material.store.remove([node.key])

    def _is_hit(self, node: Node) -> bool:
        return node.is_hit(self.material.run.hits())

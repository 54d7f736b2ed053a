"""The tensors of stacked nodes: what each starts from, and the adapters of all in one bank.

    a node's lineage ─► frozen adapters, if there are any ───┐
    a node's key ─────► block, head, prompt at first ────────┴─► Bank of G lanes

Invariant: what a lane starts from depends on its node alone, and a seed belongs to the node's key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from s3t.model.adapters.lora import Bank, LoraTarget, merge
from s3t.model.adapters.prompt import beside, fresh_prompt, stacked
from s3t.model.base import Base
from s3t.model.determinism import draws
from s3t.model.head import BIAS, WEIGHT
from s3t.plan.lineage import node_seed
from s3t.training.node.assignment import Assignment, StageSettings
from s3t.types import BatchPart

__all__ = ["LaneTensors"]

_MERGED_NUMBERS = 2**20
"""Weights of up to so many numbers are merged with a frozen adapter: each node has its own copy,
and in larger ones the adapter's two small products no longer count."""


class LaneTensors:
    """Makes the tensors of nodes over one base.

    Args:
        base: the frozen base.
        settings: how nodes are trained.
        classes: number of classes; 0 for a language model.
    """

    def __init__(self, base: Base, settings: StageSettings, classes: int) -> None:
        self.base, self.settings, self.classes = base, settings, classes
        self.lora, self.prompt = settings.lora, settings.prompt
        self._adds = settings.stage.isolation == "residual"

    def _block_targets(self, block: tuple[int, int]) -> list[LoraTarget]:
        return [t for t in self.base.targets if block[0] <= t.layer < block[1]]

    def _frozen_targets(
        self, block: tuple[int, int], ranked: Sequence[Assignment]
    ) -> list[LoraTarget]:
        """Maps with an adapter of the stages before that is not trained on: those above the block,
        and of residual stages all."""
        if self._adds:
            return [t for t in self.base.targets if t.a in ranked[0].inherited]
        return [t for t in self.base.targets if t.layer >= block[1]]

    def initial(self, block: tuple[int, int], assignment: Assignment) -> dict[str, Tensor]:
        """Weights before the stage: inherited where the lineage holds them, else from the key.

        A as in the LoRA paper's code (uniform, Kaiming with a = √5), B zero, a head N(0, 0.02²),
        a prompt N(0, init_scale²).
        """
        drawn = draws(node_seed(assignment.key, "init"))
        inherited, rank = assignment.inherited, self.lora.rank
        adapters = {} if self._adds else inherited
        tensors: dict[str, Tensor] = {}
        for target in self._block_targets(block):
            bound = 1 / math.sqrt(target.inputs)
            uniform = torch.from_numpy(drawn.random((rank, target.inputs), dtype=np.float32))
            tensors[target.a] = adapters.get(target.a, (2 * uniform - 1) * bound)
            tensors[target.b] = adapters.get(target.b, torch.zeros(target.outputs, rank))
        if self.prompt is not None:
            shape = (self.prompt.tokens, self.base.hidden_size)
            tensors |= fresh_prompt(inherited, shape, self.prompt.init_scale, drawn)
        if self.classes:
            shape = (self.classes, self.base.hidden_size)
            fresh = torch.from_numpy(drawn.standard_normal(shape).astype(np.float32)) * 0.02
            tensors[WEIGHT] = inherited.get(WEIGHT, fresh)
            tensors[BIAS] = inherited.get(BIAS, torch.zeros(self.classes))
        return tensors

    def moved(self, block: tuple[int, int], assignment: Assignment) -> dict[str, Tensor]:
        """Weights as they might be on the way: B begins at 0, and would hide products with it."""
        drawn, tensors = draws(node_seed(assignment.key, "trial")), {}
        for name, tensor in self.initial(block, assignment).items():
            noise = torch.from_numpy(drawn.random(tuple(tensor.shape), dtype=np.float32))
            tensors[name] = tensor + (noise - 0.5) * 0.1
        return tensors

    def upper(self, block: tuple[int, int], ranked: Sequence[Assignment]) -> Bank:
        """The frozen adapters of a stage, merged into private weights where that is small.

        Of prompts those of the stages before.
        """
        device, scale = self.base.device, self.lora.scale
        pairs, merged = {}, {}
        for target in self._frozen_targets(block, ranked):
            a = torch.stack([one.inherited[target.a] for one in ranked]).to(device)
            b = torch.stack([one.inherited[target.b] for one in ranked]).to(device)
            if self.base.merges and target.inputs * target.outputs <= _MERGED_NUMBERS:
                merged[target.layer, target.path] = merge(self.base.layers, target, a, b, scale)
            else:
                pairs[target.layer, target.path] = a, b
        prompts = stacked([one.inherited for one in ranked])
        prompts = None if prompts is None else prompts.to(device)
        return Bank(len(ranked), pairs, scale, merged=merged, prompts=prompts)

    def bank(
        self,
        block: tuple[int, int],
        leaves: Mapping[str, Tensor],
        upper: Bank,
        generators: Sequence[torch.Generator],
        part: BatchPart | None = None,
    ) -> Bank:
        """The adapters of a stage: the block's, which are trained, beside the frozen ones."""
        trained = {}
        for target in self._block_targets(block):
            a, b = leaves[target.a], leaves[target.b]
            if (frozen := upper.pairs.get((target.layer, target.path))) is not None:
                a, b = torch.cat([frozen[0], a], dim=1), torch.cat([frozen[1], b], dim=2)
            trained[target.layer, target.path] = a, b
        return Bank(
            upper.lanes,
            {**upper.pairs, **trained},
            upper.scale,
            self.lora.dropout,
            generators,
            merged=upper.merged,
            part=part or BatchPart(),
            recompute=self.settings.recompute,
            prompts=beside(upper.prompts, leaves),
        )

    def earlier(self, ranked: Sequence[Assignment]) -> dict[str, Tensor]:
        """A of the stages before, [G, k · r, inputs] by name, if their products are penalised."""
        if not self.settings.stage.orthogonality:
            return {}
        return {
            target.a: torch.stack([one.inherited[target.a] for one in ranked]).to(self.base.device)
            for target in self.base.targets
            if target.a in ranked[0].inherited
        }

    def generators(self, ranked: Sequence[Assignment]) -> list[torch.Generator]:
        """Of each node's dropout; none without dropout."""
        if not self.lora.dropout:
            return []
        return [
            torch.Generator(self.base.device).manual_seed(node_seed(a.key, "dropout"))
            for a in ranked
        ]

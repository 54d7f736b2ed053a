"""One stage of several nodes at once: the block is trained, everything else stands still.

    trunk cache ─► block lo…hi−1 (LoRA of each slot, trained) ─► layers above (LoRA of each
    (frozen, no LoRA)                    slot's parents, frozen) ─► head of each slot (trained)

With ``isolation: layers`` the block is one of L; with ``snapshot`` it is all layers, and a node
starts from its parent's adapter.

Invariants: a node's bytes depend on its key alone (E2), not on its group; every trained tensor has
changed and no frozen one (E9), checked here after each stage; a weight that is not finite is an
error, never a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.config import LoraConfig, PromptConfig, StageConfig
from s3t.errors import IntegrityError, S3TError
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT
from s3t.model.lora import Bank, Target
from s3t.model.prompt import beside, fresh_prompt, stacked
from s3t.plan.lineage import node_seed
from s3t.store import tensors_digest
from s3t.training.material import Batches, LabelledSet
from s3t.training.objective import Objective
from s3t.training.peers import InTurn, Peers
from s3t.training.shelf import Shelf
from s3t.training.slots import Slots, learning_rate
from s3t.training.trunk import Trunk
from s3t.types import NodeKey, Share, digest

__all__ = ["Assignment", "StageTrainer", "Trained"]

_MERGED_NUMBERS = 2**20
"""Weights of up to so many numbers are merged with a frozen adapter: each node has its own copy,
and in larger ones the adapter's two small products no longer count."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One node to train.

    Attributes:
        key: its key.
        rows: numbers of its rows in the private set, sorted, int64.
        inherited: tensors of its lineage: the adapters above the block and the parent's head,
            or (snapshot) the parent's whole adapter and head. Empty at stage 1.
    """

    key: NodeKey
    rows: Tensor
    inherited: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a node holds after its stage, and its score on the validation set."""

    key: NodeKey
    tensors: dict[str, Tensor]
    score: float


class StageTrainer:
    """Trains groups of nodes over one base.

    Args:
        base: the frozen base.
        lora, recipe: how blocks are adapted and trained.
        classes: number of classes; 0 for a language model.
        private: rows to train on.
        validation: public rows to score on.
        cap_bytes: cap of the trunk cache.
        shelf: where the workers of a machine share it, if they do.
        recompute: whether layers are run again in the backward pass, which saves their memory.
        prompt: how prompts are trained in place of blocks; None to train blocks.
        peers: with whom batches are divided; by default this process takes in turn the parts
            that ``recipe.processes`` would take.
    """

    def __init__(
        self,
        base: Base,
        lora: LoraConfig,
        recipe: StageConfig,
        classes: int,
        private: LabelledSet,
        validation: LabelledSet,
        cap_bytes: int,
        shelf: Shelf | None = None,
        recompute: bool = False,
        prompt: PromptConfig | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.base, self.lora, self.recipe, self.classes = base, lora, recipe, classes
        self.private, self.validation, self._recompute = private, validation, recompute
        self.prompt = prompt
        self.peers = peers or InTurn(recipe.processes)
        if recipe.parallel == "fsdp":
            base.run_plainly()
        trunk = Trunk(base, private.rows, cap_bytes, shelf, self.peers)
        self.on_private = Objective(base, classes, private, trunk)
        trunk = Trunk(base, validation.rows, cap_bytes, peers=self.peers)
        self.on_public = Objective(base, classes, validation, trunk)

    def train(
        self,
        block: tuple[int, int],
        group: Sequence[Assignment],
        on_step: Callable[[int], None] = lambda steps: None,
    ) -> list[Trained]:
        """Train the group's nodes together; results in the order of the group.

        Args:
            block: layers lo … hi−1 that are trained.
            group: nodes of one stage.
            on_step: told after each step how many nodes stepped.

        Raises:
            S3TError: a weight or a score became infinite or not a number.
            IntegrityError: a frozen tensor changed, a trained one did not, or peers found others.
        """
        ranked = sorted(group, key=lambda assignment: (-len(assignment.rows), assignment.key))
        initial = [self._initial(block, assignment) for assignment in ranked]
        finals = self._run(block, ranked, initial, on_step)
        for assignment, before, after in zip(ranked, initial, finals, strict=True):
            self._check(assignment, before, after)
        self.base.check_frozen()
        scores = self._scores(block, ranked, finals)
        for assignment, score in zip(ranked, scores, strict=True):
            if not math.isfinite(score):
                raise _diverged(assignment.key, "its validation score")
        trained = {
            assignment.key: Trained(assignment.key, tensors, score)
            for assignment, tensors, score in zip(ranked, finals, scores, strict=True)
        }
        for key, one in trained.items():
            self.peers.agree(digest([tensors_digest(one.tensors), one.score]), f"node {key}")
        return [trained[assignment.key] for assignment in group]

    def agrees(self, block: tuple[int, int], group: Sequence[Assignment]) -> bool:
        """Whether two steps of the group give the same bytes as two steps alone.

        They do on every machine tried; on one where a matrix product rounds by the number of rows
        they would not, and groups must not be used there.
        """
        ranked = sorted(group, key=lambda assignment: (-len(assignment.rows), assignment.key))
        together = self._run(block, ranked, [self._initial(block, a) for a in ranked], limit=2)
        for at in {0, len(ranked) - 1}:
            one = ranked[at]
            alone = self._run(block, [one], [self._initial(block, one)], limit=2)
            if any(not torch.equal(alone[0][name], together[at][name]) for name in alone[0]):
                return False
        return True

    def _run(
        self,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        initial: Sequence[Mapping[str, Tensor]],
        on_step: Callable[[int], None] = lambda steps: None,
        limit: int | None = None,
    ) -> list[dict[str, Tensor]]:
        recipe = self.recipe
        self.on_private.trunk.prepare(block[0], torch.cat([a.rows for a in ranked]).unique())
        batches = [self.batches(assignment) for assignment in ranked]
        steps = [b.steps if limit is None else min(b.steps, limit) for b in batches]
        rates = [learning_rate(recipe, b.steps) for b in batches]
        shares = self.peers.shares
        generators = [self._generators(ranked) for _ in shares]  # each draws as if it were alone
        slots = Slots(initial, recipe, self.base.device, self.peers)
        upper = self._upper(block, ranked)
        finals: list[dict[str, Tensor]] = [{} for _ in ranked]
        for step in range(max(steps)):
            going = sum(count > step for count in steps)  # steps fall: the ones done are at the end
            if going < len(slots):
                slots.keep(going)
                upper = upper.first(going)
            chosen = [b.at(step) for b in batches[:going]]
            for part, share in enumerate(shares):
                drawn = generators[part][:going]
                bank = self._bank(block, slots.leaves, upper, drawn, share)
                passes = recipe.gradient_accumulation
                for loss in self.on_private.losses(
                    block[0], bank, slots.leaves, chosen, passes, share
                ):
                    slots.add(loss, part)
            slots.step(torch.tensor([rate(step) for rate in rates[:going]]))
            for row in range(going):
                if steps[row] == step + 1:
                    finals[row] = slots.take(row)
            on_step(going)
        return finals

    def batches(self, assignment: Assignment) -> Batches:
        """The batches of a node, from the first step."""
        recipe, rows = self.recipe, assignment.rows
        lengths = self.private.lengths(rows) if recipe.group_by_length else None
        together = recipe.gradient_accumulation
        return Batches(assignment.key, rows, recipe.batch_size, recipe.epochs, together, lengths)

    def _scores(
        self,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        finals: Sequence[Mapping[str, Tensor]],
    ) -> list[float]:
        leaves = {name: torch.stack([t[name] for t in finals]) for name in finals[0]}
        leaves = {name: tensor.to(self.base.device) for name, tensor in leaves.items()}
        bank = self._bank(block, leaves, self._upper(block, ranked), ())
        return self.on_public.scores(block[0], bank, leaves, self.peers)

    # ── a slot's tensors ─────────────────────────────────────────────────────────────────────

    def _block_targets(self, block: tuple[int, int]) -> list[Target]:
        return [t for t in self.base.targets if block[0] <= t.layer < block[1]]

    def _initial(self, block: tuple[int, int], assignment: Assignment) -> dict[str, Tensor]:
        """Weights before the stage: inherited where the lineage holds them, else from the key.

        A as in the LoRA paper's code (uniform, Kaiming with a = √5), B zero, a head N(0, 0.02²),
        a prompt N(0, init_scale²).
        """
        generator = torch.Generator().manual_seed(node_seed(assignment.key, "init"))
        inherited, rank = assignment.inherited, self.lora.rank
        tensors: dict[str, Tensor] = {}
        for target in self._block_targets(block):
            bound = 1 / math.sqrt(target.inputs)
            uniform = torch.rand(rank, target.inputs, generator=generator)
            tensors[target.a] = inherited.get(target.a, (2 * uniform - 1) * bound)
            tensors[target.b] = inherited.get(target.b, torch.zeros(target.outputs, rank))
        if self.prompt is not None:
            shape = (self.prompt.tokens, self.base.hidden_size)
            tensors |= fresh_prompt(inherited, shape, self.prompt.init_scale, generator)
        if self.classes:
            shape = (self.classes, self.base.hidden_size)
            fresh = torch.randn(shape, generator=generator) * 0.02
            tensors[WEIGHT] = inherited.get(WEIGHT, fresh)
            tensors[BIAS] = inherited.get(BIAS, torch.zeros(self.classes))
        return tensors

    def _upper(self, block: tuple[int, int], ranked: Sequence[Assignment]) -> Bank:
        """The frozen adapters above the block, merged into private weights where that is small.

        Of prompts those of the stages before.
        """
        device, scale = self.base.device, self.lora.scale
        pairs, merged = {}, {}
        for target in self.base.targets:
            if target.layer < block[1]:
                continue
            a = torch.stack([one.inherited[target.a] for one in ranked]).to(device)
            b = torch.stack([one.inherited[target.b] for one in ranked]).to(device)
            if self.base.merges and target.inputs * target.outputs <= _MERGED_NUMBERS:
                merged[target.layer, target.path] = self.base.merged(target, a, b, scale)
            else:
                pairs[target.layer, target.path] = a, b
        prompts = stacked([one.inherited for one in ranked])
        prompts = None if prompts is None else prompts.to(device)
        return Bank(len(ranked), pairs, scale, merged=merged, prompts=prompts)

    def _bank(
        self,
        block: tuple[int, int],
        leaves: Mapping[str, Tensor],
        upper: Bank,
        generators: Sequence[torch.Generator],
        share: Share | None = None,
    ) -> Bank:
        trained = {
            (target.layer, target.path): (leaves[target.a], leaves[target.b])
            for target in self._block_targets(block)
        }
        return Bank(
            upper.slots,
            {**upper.pairs, **trained},
            upper.scale,
            self.lora.dropout,
            generators,
            merged=upper.merged,
            share=share or Share(),
            recompute=self._recompute,
            prompts=beside(upper.prompts, leaves),
        )

    def _generators(self, ranked: Sequence[Assignment]) -> list[torch.Generator]:
        if not self.lora.dropout:
            return []
        return [
            torch.Generator(self.base.device).manual_seed(node_seed(a.key, "dropout"))
            for a in ranked
        ]

    def _check(
        self, assignment: Assignment, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in after.values()):
            raise _diverged(assignment.key, "a weight")
        one_step = self.batches(assignment).steps < 2
        still = [
            name
            for name in after
            if torch.equal(before[name], after[name])
            # the first step cannot move A: its gradient is a product with B, which starts at 0
            and not (one_step and name.endswith("lora_A"))
        ]
        if still:
            raise IntegrityError(
                f"node {assignment.key}: {still[0]} was not changed by its stage; raise "
                "stage.learning_rate, or report this as a bug"
            )


def _diverged(key: NodeKey, what: str) -> S3TError:
    return S3TError(
        f"node {key}: training diverged ({what} is not finite); nothing of it was kept. "
        "Lower stage.learning_rate or set stage.max_grad_norm"
    )

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

from s3t.config import LoraConfig, StageConfig
from s3t.errors import IntegrityError, S3TError
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT, classify, language_logits, losses
from s3t.model.lora import Bank, Target, adapted
from s3t.plan.lineage import node_seed
from s3t.training.material import Batches, LabelledSet
from s3t.training.shelf import Shelf
from s3t.training.slots import Slots, learning_rate
from s3t.training.trunk import Trunk
from s3t.types import NodeKey

__all__ = ["Assignment", "StageTrainer", "Trained"]

_MERGED_NUMBERS = 2**20
"""Weights of up to so many numbers are merged with a frozen adapter: each node has its own copy,
and in larger ones the adapter's two small products no longer count."""

_SCORE_ROWS = 32
"""Validation rows of one pass, per slot."""


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
    ) -> None:
        self.base, self.lora, self.recipe, self.classes = base, lora, recipe, classes
        self.private, self.validation, self._recompute = private, validation, recompute
        self._trunk = Trunk(base, private.rows, cap_bytes, shelf)
        self._validation_trunk = Trunk(base, validation.rows, cap_bytes)

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
            IntegrityError: a frozen tensor changed, or a trained one did not.
        """
        ranked = sorted(group, key=lambda assignment: (-len(assignment.rows), assignment.key))
        initial = [self._initial(block, assignment) for assignment in ranked]
        finals = self._run(block, ranked, initial, on_step)
        for assignment, before, after in zip(ranked, initial, finals, strict=True):
            self._check(assignment, before, after)
        self.base.check_frozen()
        scores = self._score(block, ranked, finals)
        for assignment, score in zip(ranked, scores, strict=True):
            if not math.isfinite(score):
                raise _diverged(assignment.key, "its validation score")
        trained = {
            assignment.key: Trained(assignment.key, tensors, score)
            for assignment, tensors, score in zip(ranked, finals, scores, strict=True)
        }
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
        self._trunk.prepare(block[0], torch.cat([a.rows for a in ranked]).unique())
        batches = [Batches(a.key, a.rows, recipe.batch_size, recipe.epochs) for a in ranked]
        steps = [b.steps if limit is None else min(b.steps, limit) for b in batches]
        rates = [learning_rate(recipe, b.steps) for b in batches]
        generators = self._generators(ranked)
        slots = Slots(initial, recipe, self.base.device)
        upper = self._upper(block, ranked)
        finals: list[dict[str, Tensor]] = [{} for _ in ranked]
        for step in range(max(steps)):
            going = sum(count > step for count in steps)  # steps fall: the ones done are at the end
            if going < len(slots):
                slots.keep(going)
                upper = upper.first(going)
            bank = self._bank(block, slots.leaves, upper, generators[:going])
            loss = self._loss(block, bank, slots.leaves, [b.at(step) for b in batches[:going]])
            slots.step(loss, torch.tensor([rate(step) for rate in rates[:going]]))
            for row in range(going):
                if steps[row] == step + 1:
                    finals[row] = slots.take(row)
            on_step(going)
        return finals

    def _loss(
        self,
        block: tuple[int, int],
        bank: Bank,
        leaves: Mapping[str, Tensor],
        chosen: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Sum over slots of each slot's mean loss; slots meet in this sum alone.

        Texts are as long as the longest of the slot's own batch, so slots are taken together by
        that length.
        """
        lengths = [self.private.longest(rows) for rows, _ in chosen]
        total = torch.zeros((), device=self.base.device)
        for tokens in sorted({*lengths}, key=lambda length: length or 0):
            slots = [slot for slot, length in enumerate(lengths) if length == tokens]
            index = torch.cat([chosen[slot][0] for slot in slots])
            weights = torch.stack([chosen[slot][1] for slot in slots]).to(self.base.device)
            if len(slots) == len(chosen):
                return self._loss_of(block, bank, leaves, index, weights, tokens)
            some = {name: leaf[slots] for name, leaf in leaves.items()}
            total = total + self._loss_of(block, bank.only(slots), some, index, weights, tokens)
        return total

    def _loss_of(
        self,
        block: tuple[int, int],
        bank: Bank,
        leaves: Mapping[str, Tensor],
        index: Tensor,
        weights: Tensor,
        length: int | None,
    ) -> Tensor:
        mask = self._trunk.mask(index, length)
        entering = self._trunk.hidden(index, length)
        if self.classes:
            assert self.private.labels is not None
            logits = classify(self._features(block[0], entering, mask, bank), leaves)
            labels = self.private.labels[index].to(self.base.device)
            each = losses(logits.flatten(0, 1), labels).view_as(weights)
            return (each * (weights / weights.sum(dim=1, keepdim=True))).sum()
        assert mask is not None
        tokens = self.private.rows.values[index, :length].to(self.base.device)
        hidden = self._above(block[0], entering, mask, bank)
        each, real = _token_losses(self.base, hidden, tokens, mask)
        real = real.view(len(weights), -1, real.shape[1]) * weights.unsqueeze(2)
        count = real.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        return (each.view_as(real) * (real / count)).sum()

    def _above(self, lo: int, hidden: Tensor, mask: Tensor | None, bank: Bank) -> Tensor:
        with adapted(bank):
            return self.base.run(hidden, lo, self.base.depth, self.base.attention(mask))

    def _features(self, lo: int, hidden: Tensor, mask: Tensor | None, bank: Bank) -> Tensor:
        with adapted(bank):
            return self.base.features(hidden, lo, mask)

    @torch.no_grad()
    def _score(
        self,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        finals: Sequence[Mapping[str, Tensor]],
    ) -> list[float]:
        """Score on the public validation rows: accuracy, or minus the mean loss per token."""
        slots, total = len(ranked), len(self.validation)
        leaves = {name: torch.stack([t[name] for t in finals]) for name in finals[0]}
        leaves = {name: tensor.to(self.base.device) for name, tensor in leaves.items()}
        bank = self._bank(block, leaves, self._upper(block, ranked), ())
        trunk = self._validation_trunk
        trunk.prepare(block[0], torch.arange(total))
        gained, counted = torch.zeros(slots, dtype=torch.float64), 0.0
        for part in torch.arange(total).split(_SCORE_ROWS):
            index = torch.cat([part, part[:1].expand(_SCORE_ROWS - len(part))]).repeat(slots)
            length = self.validation.longest(part)
            mask = trunk.mask(index, length)
            entering = trunk.hidden(index, length)
            if self.classes:
                assert self.validation.labels is not None
                labels = self.validation.labels[index].view(slots, -1)
                logits = classify(self._features(block[0], entering, mask, bank), leaves)
                right = logits.argmax(dim=2).cpu() == labels
                gained += right[:, : len(part)].sum(dim=1).double()
                counted += len(part)
            else:
                assert mask is not None
                tokens = self.validation.rows.values[index, :length].to(self.base.device)
                hidden = self._above(block[0], entering, mask, bank)
                each, real = _token_losses(self.base, hidden, tokens, mask)
                lost = (each * real).cpu().double().view(slots, _SCORE_ROWS, -1)
                gained -= lost[:, : len(part)].sum(dim=(1, 2))
                counted += float(real[: len(part)].sum())
        return [float(f"{value:.6g}") for value in (gained / max(counted, 1.0)).tolist()]

    # ── a slot's tensors ─────────────────────────────────────────────────────────────────────

    def _block_targets(self, block: tuple[int, int]) -> list[Target]:
        return [t for t in self.base.targets if block[0] <= t.layer < block[1]]

    def _initial(self, block: tuple[int, int], assignment: Assignment) -> dict[str, Tensor]:
        """Weights before the stage: inherited where the lineage holds them, else from the key.

        A as in the LoRA paper's code (uniform, Kaiming with a = √5), B zero, a head N(0, 0.02²).
        """
        generator = torch.Generator().manual_seed(node_seed(assignment.key, "init"))
        inherited, rank = assignment.inherited, self.lora.rank
        tensors: dict[str, Tensor] = {}
        for target in self._block_targets(block):
            bound = 1 / math.sqrt(target.inputs)
            uniform = torch.rand(rank, target.inputs, generator=generator)
            tensors[target.a] = inherited.get(target.a, (2 * uniform - 1) * bound)
            tensors[target.b] = inherited.get(target.b, torch.zeros(target.outputs, rank))
        if self.classes:
            shape = (self.classes, self.base.hidden_size)
            fresh = torch.randn(shape, generator=generator) * 0.02
            tensors[WEIGHT] = inherited.get(WEIGHT, fresh)
            tensors[BIAS] = inherited.get(BIAS, torch.zeros(self.classes))
        return tensors

    def _upper(self, block: tuple[int, int], ranked: Sequence[Assignment]) -> Bank:
        """The frozen adapters above the block, merged into private weights where that is small."""
        device, scale = self.base.device, self.lora.alpha / self.lora.rank
        pairs, merged = {}, {}
        for target in self.base.targets:
            if target.layer < block[1]:
                continue
            a = torch.stack([one.inherited[target.a] for one in ranked]).to(device)
            b = torch.stack([one.inherited[target.b] for one in ranked]).to(device)
            if target.inputs * target.outputs <= _MERGED_NUMBERS:
                merged[target.layer, target.path] = self.base.merged(target, a, b, scale)
            else:
                pairs[target.layer, target.path] = a, b
        return Bank(len(ranked), pairs, scale, merged=merged)

    def _bank(
        self,
        block: tuple[int, int],
        leaves: Mapping[str, Tensor],
        upper: Bank,
        generators: Sequence[torch.Generator],
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
            recompute=self._recompute,
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
        short = Batches(assignment.key, assignment.rows, self.recipe.batch_size, 1).steps
        one_step = short * self.recipe.epochs < 2
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


def _token_losses(
    base: Base, hidden: Tensor, tokens: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of each next token [n, T−1] and which of them are real (1 or 0)."""
    logits = language_logits(base, hidden)[:, :-1]
    each = losses(logits.flatten(0, 1), tokens[:, 1:].flatten()).view(len(tokens), -1)
    return each, mask[:, 1:].to(each.dtype)

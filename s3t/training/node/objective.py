"""What lanes are trained for and scored by: the loss of their batches, the score on public rows.

A lane is one of the G nodes that are stacked in a step.

    rows ─► trunk ─► hidden states that enter the block ─► layers with the lanes' adapters
                              ─► classes: the lanes' heads          ─► cross entropy of a row
                              ─► language: the base's frozen head   ─► that of each next token
    public rows ─► the same ─► the lanes' scores, and their evidence: log probabilities, as computed

Invariant: a lane's loss is a mean over its own rows (or tokens) of the whole step, so it
depends neither on the other lanes nor on how many passes the step is divided into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from s3t.model.adapters.lora import Bank, adapted
from s3t.model.adapters.prompt import features, states
from s3t.model.base import Base
from s3t.model.determinism import filled
from s3t.model.head import classify, language_logits, losses
from s3t.training.node.process_group import InTurn, ProcessGroup
from s3t.training.node.rows import LabelledSet, evidence_rows, evidence_terms
from s3t.training.node.trunk_cache import TrunkCache
from s3t.types import BatchPart

__all__ = ["SCORE_ROWS", "Gained", "Objective", "Pass"]

SCORE_ROWS = 32
"""Validation rows of one pass, per lane."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows of one length that some lanes learn from together.

    Attributes:
        lanes: their numbers.
        rows: row numbers [G, B].
        weights: of the rows, 1 or 0, [G, B].
        whole: what each lane's loss is a mean over, [G].
        tokens: T of the rows; None for images.
    """

    lanes: tuple[int, ...]
    rows: Tensor
    weights: Tensor
    whole: Tensor
    tokens: int | None

    @property
    def shape(self) -> tuple[int, int, int | None]:
        """G, B and T, which are all that the shapes of its arithmetic depend on."""
        return (*self.rows.shape, self.tokens)

    def only(self, lane: int) -> Pass:
        """The same of one lane, by its place among them."""
        one = slice(lane, lane + 1)
        return Pass(
            self.lanes[one], self.rows[one], self.weights[one], self.whole[one], self.tokens
        )


@dataclass(frozen=True, slots=True, eq=False)
class Gained:
    """What lanes gain on a set of rows.

    Attributes:
        scores: what each lane gains, and behind it how many rows (tokens) count, float64 [G + 1].
        said: each lane's evidence of the rows, float32 [G, terms] (see ``evidence_rows``).
    """

    scores: Tensor
    said: Tensor

    def equals(self, other: Gained) -> bool:
        """Whether they are the same to the last bit."""
        return torch.equal(self.scores, other.scores) and torch.equal(self.said, other.said)


class Objective:
    """The loss of lanes, and what they gain, on one set of rows.

    A lane's score is what it gains on the rows over how many count: accuracy, or minus the mean
    loss of a token.

    Args:
        base: the frozen base.
        classes: number of classes; 0 for a language model.
        rows: the set.
        trunk: hidden states of the same rows, prepared for the block that is trained.
    """

    def __init__(self, base: Base, classes: int, rows: LabelledSet, trunk: TrunkCache) -> None:
        self.base, self.classes, self.rows, self.trunk = base, classes, rows, trunk

    def passes(
        self,
        chosen: Sequence[tuple[Tensor, Tensor]],
        passes: int = 1,
        part: BatchPart | None = None,
    ) -> Iterator[Pass]:
        """The passes of one step of all lanes: what a lane goes down is the sum of its losses.

        Each lane's is the mean over its rows (tokens) of the *whole* step: a pass whose rows hold
        few tokens that are learnt weighs as little as those do. Texts are as long as the longest
        of the lane's own batch, all its parts included, so lanes are taken together by that
        length.

        Args:
            chosen: row numbers [k · B] and weights [k · B] of each lane.
            passes: k, into which the step is cut.
            part: the part of each pass to take; by default all of it.
        """
        batch_part, whole = part or BatchPart(), self._counted(chosen)
        for turn in range(passes):
            # [k · B] → [k, B], of which one pass takes a row
            batches = [(i.view(passes, -1)[turn], w.view(passes, -1)[turn]) for i, w in chosen]
            lengths = [self.rows.longest(rows) for rows, _ in batches]
            mine = batch_part.of(len(batches[0][0]))
            for tokens in sorted({*lengths}, key=lambda length: length or 0):
                lanes = tuple(lane for lane, length in enumerate(lengths) if length == tokens)
                yield Pass(
                    lanes,
                    torch.stack([batches[lane][0][mine] for lane in lanes]),
                    torch.stack([batches[lane][1][mine] for lane in lanes]),
                    whole[list(lanes)],
                    tokens,
                )

    def _counted(self, chosen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """What each lane's loss is a mean over, [G]: rows, or tokens that are learnt."""
        if self.classes:
            found = [weights.sum() for _, weights in chosen]
        else:
            scored = self.rows.rows.scored
            found = [(scored[rows, 1:].sum(dim=1) * weights).sum() for rows, weights in chosen]
        return torch.stack(found).clamp(min=1).to(self.base.device)

    def loss(self, lo: int, bank: Bank, leaves: Mapping[str, Tensor], taken: Pass) -> Tensor:
        """The losses of a pass, summed over its lanes; lanes meet in this sum alone.

        Args:
            lo: first layer of the block.
            bank, leaves: adapters of the pass's lanes, and what of them is trained.
            taken: the pass.
        """
        index, length, whole = taken.rows.flatten(), taken.tokens, taken.whole  # index [G · B]
        weights = taken.weights.to(self.base.device)
        mask = self.trunk.mask(index, length)
        entering = self.trunk.hidden(index, length)
        if self.classes:
            assert self.rows.labels is not None
            logits = classify(self._features(lo, entering, mask, bank), leaves)
            labels = self.rows.labels[index].to(self.base.device)
            each = losses(logits.flatten(0, 1), labels).view_as(weights)  # [G, B]
            return (each * (weights / whole.unsqueeze(1))).sum()
        each, real = self._token_losses(self._above(lo, entering, mask, bank), index, length)
        # [G · B, T − 1] → [G, B, T − 1]
        real = real.view(len(weights), -1, real.shape[1]) * weights.unsqueeze(2)
        return (each.view_as(real) * (real / whole.view(-1, 1, 1))).sum()

    @torch.no_grad()
    def gained(
        self,
        lo: int,
        bank: Bank,
        leaves: Mapping[str, Tensor],
        process_group: ProcessGroup | None = None,
    ) -> Gained:
        """What each lane gains on all rows, and what it says of them.

        Args:
            lo: first layer of the block.
            bank, leaves: adapters of all lanes, and what of them is trained.
            process_group: the processes that each score parts of the rows; by default this one.
        """
        process_group = process_group or InTurn()
        self.trunk.prepare(lo, torch.arange(len(self.rows)))
        found = [self._gained(lo, bank, leaves, part) for part in process_group.parts]
        # the evidence of a pass is in one part, and zeros in the others: sums change no bit of it
        return Gained(
            process_group.summed([one.scores for one in found]),
            process_group.summed([one.said for one in found]),
        )

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """Terms of each row that evidence holds, [n], and how many are before the row, [n + 1]."""
        terms = torch.zeros(len(self.rows), dtype=torch.int64)
        index = evidence_rows(self.rows, self.classes)
        terms[index] = evidence_terms(self.rows, self.classes)[index]
        return terms, torch.cat([terms.new_zeros(1), terms.cumsum(0)])

    def _gained(self, lo: int, bank: Bank, leaves: Mapping[str, Tensor], part: BatchPart) -> Gained:
        """What each lane gained on the passes of a part, and how many rows (tokens) counted."""
        lanes, trunk = bank.lanes, self.trunk
        passes = torch.arange(len(self.rows)).split(SCORE_ROWS)
        gained, counted = torch.zeros(lanes, dtype=torch.float64), 0.0
        terms, before = self._kept
        said = torch.zeros(lanes, int(before[-1]))
        # a rank without a pass left computes one too: layers may be divided among all
        for number in range(part.rank, -(-len(passes) // part.size) * part.size, part.size):
            taken = passes[min(number, len(passes) - 1)]
            index = filled(taken, SCORE_ROWS).repeat(lanes)  # [G · 32]
            length = self.rows.longest(taken)
            mask = trunk.mask(index, length)
            entering = trunk.hidden(index, length)
            if number >= len(passes):
                taken = taken[:0]
            kept = torch.zeros(SCORE_ROWS, dtype=torch.bool)
            kept[: len(taken)] = terms[taken] > 0
            if self.classes:
                assert self.rows.labels is not None
                labels = self.rows.labels[index].view(lanes, -1)
                logits = classify(self._features(lo, entering, mask, bank), leaves)
                right = logits.argmax(dim=2).cpu() == labels  # [G, 32]
                gained += right[:, : len(taken)].sum(dim=1).double()
                counted += len(taken)
                chances = logits.log_softmax(dim=2).cpu()[:, kept]
            else:
                above = self._above(lo, entering, mask, bank)
                each, real = self._token_losses(above, index, length)
                lost = (each * real).cpu().double().view(lanes, SCORE_ROWS, -1)  # [G, 32, T − 1]
                gained -= lost[:, : len(taken)].sum(dim=(1, 2))
                counted += float(real[: len(taken)].sum())
                each = -each.cpu().view(lanes, SCORE_ROWS, -1)
                chances = each[:, (real[:SCORE_ROWS] > 0).cpu() & kept.unsqueeze(1)]
            if len(taken):
                said[:, before[taken[0]] : before[taken[-1] + 1]] = chances.flatten(1)
        scores = torch.cat([gained, torch.tensor([counted], dtype=torch.float64)])
        return Gained(scores, said + 0.0)  # no -0.0, which sums would change

    def _above(self, lo: int, hidden: Tensor, mask: Tensor | None, bank: Bank) -> Tensor:
        with adapted(bank):
            return states(self.base, hidden, lo, mask, bank.prompts)

    def _features(self, lo: int, hidden: Tensor, mask: Tensor | None, bank: Bank) -> Tensor:
        with adapted(bank):
            return features(self.base, hidden, lo, mask, bank.prompts)

    def _token_losses(
        self, hidden: Tensor, index: Tensor, length: int | None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each next token [n, T−1] and which of them count (1 or 0)."""
        tokens = self.rows.rows.values[index, 1:length].to(self.base.device)
        scored = self.rows.rows.scored[index, 1:length].to(self.base.device)
        logits = language_logits(self.base, hidden)[:, :-1]
        # [n · (T − 1)] → [n, T − 1]
        each = losses(logits.flatten(0, 1), tokens.flatten()).view(len(tokens), -1)
        return each, scored.to(each.dtype)

"""The forward pass of all shards' active prefixes, and how their answers become one.

    rows ─► trunk, shared by all shards ─┬─ layer where the longest prefix begins: its shards branch
                                         ├─ … others share the trunk until their own lowest block
                                         └─► heads of the prefixes ─► mean or vote ─► answer

Invariants: an ensemble is immutable; what it holds is the lineage of each shard's active node and
nothing else, so no answer can come from a block that is not active (E6). A shard without a prefix
has no part in the answer; an empty prefix is "no adapter", never "all layers" (E8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.model.base import Base
from s3t.model.encode import Encoded
from s3t.model.head import BIAS, WEIGHT, classify, language_logits
from s3t.model.lora import Bank, adapted

__all__ = ["Ensemble", "Member", "aggregate"]

_CHUNK_BYTES = 8 * 2**20
"""Hidden states of one stacked pass, in bytes: above this more rows bring no more speed."""


@dataclass(frozen=True, slots=True)
class Member:
    """One shard's active prefix.

    Attributes:
        shard: its number.
        lowest: lowest layer that carries an adapter.
        tensors: adapters of the lineage, and the head of the prefix's last stage.
        samples: samples that the prefix has seen, for weights by data.
    """

    shard: int
    lowest: int
    tensors: Mapping[str, Tensor]
    samples: int


class Ensemble:
    """The active prefixes of one view, stacked.

    Args:
        base: the frozen base.
        members: one per shard that has a prefix; at least one.
        scale: alpha / rank.
        method: ``mean-probabilities``, ``mean-logits`` or ``vote``.
        weights: ``uniform``, or ``data`` for weights by samples seen.
    """

    def __init__(
        self, base: Base, members: Sequence[Member], scale: float, method: str, weights: str
    ) -> None:
        # those with the longest prefixes branch off the trunk first
        self._members = sorted(members, key=lambda member: (member.lowest, member.shard))
        self._base, self._method = base, method
        seen = [m.samples if weights == "data" else 1 for m in self._members]
        self._weights = torch.tensor(seen, dtype=torch.float32) / sum(seen)
        self._segments = [(lo, hi, self._bank(lo, hi, scale)) for lo, hi in self._cuts() if lo < hi]
        self._head = self._stacked(WEIGHT, BIAS)

    @property
    def shards(self) -> tuple[int, ...]:
        """Shards that answer, sorted."""
        return tuple(sorted(member.shard for member in self._members))

    @torch.inference_mode()
    def probabilities(self, rows: Encoded) -> Tensor:
        """Class probabilities, [n, C], on the CPU."""
        head = self._head
        assert head is not None
        parts = []
        for part in self._passes(rows):
            mask = None if part.mask is None else part.mask.repeat(len(self._members), 1)
            features = self._base.pool(self._base.finish(self._hidden(part)), mask)
            logits = classify(features, head)
            parts.append(self._aggregate(logits))
        return torch.cat(parts)

    @torch.inference_mode()
    def token_losses(self, rows: Encoded) -> Tensor:
        """−log p of each next token, [n, T−1], 0 where it is padding; on the CPU."""
        parts = []
        for part in self._passes(rows):
            assert part.mask is not None
            logits = language_logits(self._base, self._hidden(part)[:, :-1])
            mixed = self._aggregate(logits.unflatten(0, (len(self._members), -1)))
            tokens, real = part.values[:, 1:].cpu(), part.mask[:, 1:].cpu()
            parts.append(-mixed.gather(2, tokens.unsqueeze(2)).squeeze(2) * real)
        return torch.cat(parts)

    @torch.inference_mode()
    def next_token(self, rows: Encoded) -> Tensor:
        """Log probabilities of the token after each row's last real one, [n, V], on the CPU."""
        parts = []
        for part in self._passes(rows):
            assert part.mask is not None
            last = (part.mask.sum(dim=1) - 1).repeat(len(self._members))
            hidden = self._hidden(part)
            at = hidden[torch.arange(len(hidden), device=hidden.device), last].unsqueeze(1)
            logits = language_logits(self._base, at)
            mixed = self._aggregate(logits.unflatten(0, (len(self._members), -1)))
            parts.append(mixed.squeeze(1))
        return torch.cat(parts)

    def _aggregate(self, logits: Tensor) -> Tensor:
        return aggregate(logits, self._weights.to(logits.device), self._method).cpu()

    def _passes(self, rows: Encoded) -> Iterator[Encoded]:
        """The rows in parts whose stacked hidden states stay within ``_CHUNK_BYTES``."""
        tokens = rows.values.shape[1] if rows.values.ndim == 2 else 64
        width = self._base.hidden_size
        if self._base.lm_head is not None:
            width += int(self._base.model.config.vocab_size)
        size = max(1, _CHUNK_BYTES // (len(self._members) * tokens * width * 4))
        for start in range(0, len(rows), size):
            yield rows.rows(slice(start, start + size)).to(self._base.device)

    def _hidden(self, rows: Encoded) -> Tensor:
        """Hidden states after the last layer, member by member: [S · n, T, H]."""
        base = self._base
        trunk = base.start(rows)
        branches = trunk.new_zeros((0, *trunk.shape[1:]))
        trunk = base.run(trunk, 0, self._members[0].lowest, base.attention(rows.mask))
        joined = 0
        for lo, hi, bank in self._segments:
            arriving = bank.slots - joined
            branches = torch.cat([branches, trunk.repeat(arriving, 1, 1)])
            joined = bank.slots
            mask = None if rows.mask is None else rows.mask.repeat(joined, 1)
            with adapted(bank):
                branches = base.run(branches, lo, hi, base.attention(mask))
            if joined < len(self._members):
                trunk = base.run(trunk, lo, hi, base.attention(rows.mask))
        # members without any adapter: the base as fallback
        return torch.cat([branches, trunk.repeat(len(self._members) - joined, 1, 1)])

    def _cuts(self) -> list[tuple[int, int]]:
        """Ranges of layers between the places where members branch off."""
        starts = sorted({member.lowest for member in self._members})
        return list(zip(starts, [*starts[1:], self._base.depth], strict=True))

    def _bank(self, lo: int, hi: int, scale: float) -> Bank:
        """Adapters of layers lo … hi−1 of the members that have branched off by then."""
        there = [member for member in self._members if member.lowest <= lo]
        device = self._base.device
        pairs = {
            (target.layer, target.path): (
                torch.stack([m.tensors[target.a] for m in there]).to(device),
                torch.stack([m.tensors[target.b] for m in there]).to(device),
            )
            for target in self._base.targets
            if lo <= target.layer < hi
        }
        return Bank(len(there), pairs, scale)

    def _stacked(self, *names: str) -> dict[str, Tensor] | None:
        if names[0] not in self._members[0].tensors:
            return None
        return {
            name: torch.stack([m.tensors[name] for m in self._members]).to(self._base.device)
            for name in names
        }


def aggregate(logits: Tensor, weights: Tensor, method: str) -> Tensor:
    """Combine the members' logits.

    Args:
        logits: [S, n, C], or [S, n, T, V] of a language model.
        weights: [S], summing to 1.
        method: ``mean-probabilities``: Σ w·softmax; ``mean-logits``: softmax of Σ w·logits;
            ``vote``: share of the weight whose argmax is the class.

    Returns:
        probabilities [n, C], or log probabilities [n, T, V].
    """
    shape = (-1,) + (1,) * (logits.ndim - 1)
    weights = weights.view(shape)
    language = logits.ndim == 4
    if method == "mean-logits":
        mean = (logits * weights).sum(dim=0)
        return mean.log_softmax(dim=-1) if language else mean.softmax(dim=-1)
    if method == "vote":
        votes = torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        return (votes * weights).sum(dim=0)
    if language:
        return (logits.log_softmax(dim=-1) + weights.log()).logsumexp(dim=0)
    return (logits.softmax(dim=-1) * weights).sum(dim=0)

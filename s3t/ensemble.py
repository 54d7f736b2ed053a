"""The forward pass of all shards' active prefixes, and how their answers become one.

    rows ─► trunk, shared by all shards ─┬─ layer where the longest prefix begins: its shards branch
                                         ├─ … others share the trunk until their own lowest block
                                         └─► heads of the prefixes ─► mean or vote ─► answer

A pass holds as many tokens as stay in the cache (see ``_budget``), rows before members: few rows
run through all members at once, stacked, and many rows through one member after another.

Invariants: an ensemble is immutable; what it holds is the lineage of each shard's active node and
nothing else, so no answer can come from a block that is not active (E6). A shard without a prefix
has no part in the answer; an empty prefix is "no adapter", never "all layers" (E8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from s3t.branches import Branches
from s3t.model.base import Base
from s3t.model.encode import Encoded, padded_lengths
from s3t.model.head import BIAS, WEIGHT, classify, language_logits
from s3t.model.lora import Target, adapted

__all__ = ["Ensemble", "Member", "aggregate", "averaged"]

_PASS_BYTES = 2**19
"""Hidden states of one pass on a processor. Inside a layer they are four times as wide, and all of
it then fits in a core's own cache."""

_PASS_BYTES_GPU = 2**26
"""The same on a GPU, which needs many rows to be busy."""

_PASS_TOKENS = 128
"""Tokens of one pass at least: below, reading the weights takes as long as using them."""

_LOGITS_BYTES = 2**26
"""Token logits of all members, for the rows of one pass."""

_Finish = Callable[[Tensor, int, Tensor | None], Tensor]
"""From the hidden states that enter a layer [n, T, H], its number and the padding mask [n, T] to
what is asked for, one entry a row."""


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
    """The active prefixes of one view.

    Args:
        base: the frozen base.
        members: one per shard that has a prefix; at least one.
        scale: alpha / rank.
        method: ``mean-probabilities``, ``mean-logits``, ``vote``, or ``mean-adapters``: one
            adapter and head, averaged over the members.
        weights: ``uniform``, or ``data`` for weights by samples seen.
        before: the ensemble of the view before, to take over what has not changed.
    """

    def __init__(
        self,
        base: Base,
        members: Sequence[Member],
        scale: float,
        method: str,
        weights: str,
        before: Ensemble | None = None,
    ) -> None:
        self.shards = tuple(sorted(member.shard for member in members))
        # those with the longest prefixes branch off the trunk first
        members = sorted(members, key=lambda member: (member.lowest, member.shard))
        seen = [member.samples if weights == "data" else 1 for member in members]
        shares = torch.tensor(seen, dtype=torch.float32) / sum(seen)
        if method == "mean-adapters":
            members, shares = [averaged(members, shares.tolist(), base.targets)], torch.ones(1)
            method = "mean-probabilities"  # of one
        self._base, self._method, self._shares = base, method, shares.to(base.device)
        self._lowest = [member.lowest for member in members]
        tensors = [member.tensors for member in members]
        known = None if before is None else before._branches
        self._branches: Branches = Branches(base, self._lowest, tensors, scale, known)
        self._head = {
            name: torch.stack([held[name] for held in tensors]).to(base.device)
            for name in (WEIGHT, BIAS)
            if base.lm_head is None
        }

    @torch.inference_mode()
    def probabilities(self, rows: Encoded) -> Tensor:
        """Class probabilities, [n, C], on the CPU."""
        found = torch.empty((len(rows), self._head[BIAS].shape[1]))
        for index, part in self._passes(rows, 0):
            features = self._each(part, self._base.features)
            found[index] = self._aggregate(classify(features, self._head))
        return found

    @torch.inference_mode()
    def token_losses(self, rows: Encoded) -> Tensor:
        """−log p of each next token, [n, T−1], 0 where it is padding; on the CPU."""
        found = torch.zeros((len(rows), rows.values.shape[1] - 1))
        for index, part in self._passes(rows, rows.values.shape[1]):
            assert part.mask is not None
            logs = self._aggregate(self._members_apart(self._each(part, self._tokens)))
            tokens, real = part.values[:, 1:].cpu(), part.mask[:, 1:].cpu()
            losses = -logs.gather(2, tokens.unsqueeze(2)).squeeze(2) * real
            found[index, : losses.shape[1]] = losses
        return found

    @torch.inference_mode()
    def token_log_probabilities(self, rows: Encoded) -> Tensor:
        """log p of what follows each real token, [n, T, V], −inf at padding; on the CPU."""
        length = rows.values.shape[1]
        found = torch.full((len(rows), length, self._vocabulary), -torch.inf)
        for index, part in self._passes(rows, length):
            assert part.mask is not None
            logs = self._aggregate(self._members_apart(self._each(part, self._every_token)))
            padding = part.mask.cpu().unsqueeze(2) == 0
            found[index, : logs.shape[1]] = logs.masked_fill(padding, -torch.inf)
        return found

    @torch.inference_mode()
    def next_token(self, rows: Encoded) -> Tensor:
        """Log probabilities of the token after each row's last real one, [n, V], on the CPU."""
        found = torch.empty((len(rows), self._vocabulary))
        for index, part in self._passes(rows, 1):
            logits = self._members_apart(self._each(part, self._last_token))
            found[index] = self._aggregate(logits).squeeze(1)
        return found

    def _aggregate(self, logits: Tensor) -> Tensor:
        return aggregate(logits, self._shares, self._method).cpu()

    def _members_apart(self, stacked: Tensor) -> Tensor:
        """[S · n, …] → [S, n, …]."""
        members = len(self._lowest)
        return stacked.view(members, -1, *stacked.shape[1:])

    @property
    def _vocabulary(self) -> int:
        size: int = self._base.model.config.vocab_size
        return size

    # ── what a row's hidden states become ────────────────────────────────────────────────────

    def _every_token(self, hidden: Tensor, lo: int, mask: Tensor | None) -> Tensor:
        """Logits of the token after each one, [n, T, V]."""
        base = self._base
        return language_logits(base, base.run(hidden, lo, base.depth, base.attention(mask)))

    def _tokens(self, hidden: Tensor, lo: int, mask: Tensor | None) -> Tensor:
        """Logits of each next token, [n, T−1, V]."""
        base = self._base
        hidden = base.run(hidden, lo, base.depth, base.attention(mask))
        return language_logits(base, hidden[:, :-1])

    def _last_token(self, hidden: Tensor, lo: int, mask: Tensor | None) -> Tensor:
        """Logits of the token after the last real one, [n, 1, V]."""
        assert mask is not None
        base = self._base
        hidden = base.run(hidden, lo, base.depth, base.attention(mask))
        rows = torch.arange(len(hidden), device=hidden.device)
        return language_logits(base, hidden[rows, mask.sum(dim=1) - 1].unsqueeze(1))

    # ── passes ───────────────────────────────────────────────────────────────────────────────

    def _budget(self) -> int:
        """Tokens of one pass, rows × tokens × members: a rule from shapes alone."""
        kept = _PASS_BYTES if self._base.device.type == "cpu" else _PASS_BYTES_GPU
        return max(_PASS_TOKENS, kept // (4 * self._base.hidden_size))

    def _passes(self, rows: Encoded, logits: int) -> Iterator[tuple[Tensor, Encoded]]:
        """The rows in parts, long texts first, each with the rows' numbers.

        Args:
            rows: n rows.
            logits: token logits that are asked for per row.
        """
        lengths = _lengths(rows, self._base.tokens(rows))
        order = lengths.argsort(descending=True, stable=True)
        most = len(rows)
        if logits:
            most = _LOGITS_BYTES // (4 * len(self._lowest) * logits * self._vocabulary)
        while len(order):
            longest = int(lengths[order[0]])
            size = max(1, min(self._budget() // longest, most))
            size = -(-len(order) // -(-len(order) // size))  # parts of about as many rows
            index, order = order[:size], order[size:]
            part = rows.rows(index)
            if part.mask is not None:
                part = Encoded(part.values[:, :longest], part.mask[:, :longest])
            yield index, part.to(self._base.device)

    def _each(self, rows: Encoded, finish: _Finish) -> Tensor:
        """What ``finish`` makes of the rows of each member, member by member: [S · n, …]."""
        trunk = _Trunk(self._base, rows)
        members, tokens = len(self._lowest), len(rows) * trunk.hidden.shape[1]
        groups = -(-members // max(1, self._budget() // tokens))
        bounds = [members * number // groups for number in range(groups + 1)]
        # a member's own weights take time to be read: that pays for as many tokens as they are wide
        merged = members == 1 or tokens >= self._base.hidden_size
        found = [
            self._group(trunk, first, stop, merged, finish) for first, stop in pairwise(bounds)
        ]
        return found[0] if groups == 1 else torch.cat(found)

    def _group(self, trunk: _Trunk, first: int, stop: int, merged: bool, finish: _Finish) -> Tensor:
        """Members ``first`` … ``stop`` − 1, stacked from where each branches off the trunk."""
        base, members = self._base, stop - first
        hidden: Tensor | None = None
        for lo, hi, bank in self._branches.segments(first, stop, merged):
            hidden, mask = trunk.joined(hidden, lo, bank.slots)
            with adapted(bank):
                if bank.slots == members and hi == base.depth:
                    return finish(hidden, lo, mask)
                hidden = base.run(hidden, lo, hi, base.attention(mask))
        # members without any adapter: the base as fallback
        hidden, mask = trunk.joined(hidden, base.depth, members)
        return finish(hidden, base.depth, mask)


class _Trunk:
    """Some rows on their way through the frozen layers, and who branches off where."""

    def __init__(self, base: Base, rows: Encoded) -> None:
        self._base, self._mask, self._layer = base, rows.mask, 0
        self.hidden = base.start(rows)

    def joined(
        self, branches: Tensor | None, layer: int, slots: int
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states of all slots at a layer, and their padding mask.

        Args:
            branches: of those that have branched off before, [k · n, T, H]; None if none has.
            layer: not below that of the call before.
            slots: how many there are; those above k branch off here.
        """
        base, rows = self._base, len(self.hidden)
        self.hidden = base.run(self.hidden, self._layer, layer, base.attention(self._mask))
        self._layer = layer
        arriving = slots - (0 if branches is None else len(branches) // rows)
        parts = [] if branches is None else [branches]
        parts += [self.hidden] * arriving
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return hidden, None if self._mask is None else self._mask.repeat(slots, 1)


def averaged(
    members: Sequence[Member], shares: Sequence[float], targets: Sequence[Target]
) -> Member:
    """One member whose adapters and head are the average of the members'.

    The average of the products B·A is exact: ranks stand side by side, B weighted. A member adds
    nothing in the layers below its lowest.

    Args:
        members: of one base.
        shares: their weights, summing to 1.
        targets: all adapted maps of the base.
    """
    tensors: dict[str, Tensor] = {}
    for target in targets:
        held = [(m, w) for m, w in zip(members, shares, strict=True) if m.lowest <= target.layer]
        if held:
            tensors[target.a] = torch.cat([m.tensors[target.a] for m, _ in held])
            tensors[target.b] = torch.cat([m.tensors[target.b] * w for m, w in held], dim=1)
    for name in (WEIGHT, BIAS):
        if name in members[0].tensors:
            each = torch.stack([member.tensors[name] for member in members])
            tensors[name] = torch.einsum("s,s...->...", torch.tensor(shares).to(each), each)
    lowest = min(member.lowest for member in members)
    return Member(members[0].shard, lowest, tensors, sum(member.samples for member in members))


def _lengths(rows: Encoded, tokens: int) -> Tensor:
    """Tokens that each row needs, [n]."""
    if rows.mask is None:
        return torch.full((len(rows),), tokens)
    return padded_lengths(rows.mask).cpu()


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

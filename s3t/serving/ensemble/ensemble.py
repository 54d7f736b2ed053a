"""The forward pass of all ensemble members, and how their answers become one.

    rows ─► trunk, common to all members ─┬─ layer where the longest prefix begins: its member
                                          │  branches off
                                          ├─ … the others, each where its own lowest block begins
                                          └─► heads of the members ─► mean or vote ─► answer

A member is one shard's active prefix. With a router each row branches off to one member alone
(``routing``), and its answer is the answer.

A pass holds as many tokens as fit in the processor's cache (see ``_budget``), rows before members:
few rows run through all members at once, stacked; many rows run through one member after another.

Letters in shapes: n rows, T tokens, H hidden width, S members, k of them, C classes, V vocabulary.

Invariants: an ensemble is immutable; what it holds is the lineage of each shard's active node and
nothing else, so no answer can come from a block that is not active (E6). A shard without a prefix
has no part in the answer; an empty prefix is "no adapter", never "all layers" (E8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from s3t.model.adapters.lora import adapted
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT, classify, language_logits
from s3t.model.inputs.encoders import Encoded, padded_lengths
from s3t.model.prototypes import Prototypes
from s3t.serving.ensemble.members import (
    METHODS,
    Member,
    aggregate,
    averaged,
    mean_by_entropy,
    shares,
)
from s3t.serving.ensemble.mixture import Mixture
from s3t.serving.ensemble.prompts import MemberPrompts
from s3t.serving.ensemble.routing import Router, TrunkPass
from s3t.serving.ensemble.stack import AdapterStack
from s3t.serving.generation.kv_decoding import KVDecoding, RoutedDecoding, sets_of_layers
from s3t.serving.generation.kv_steps import KVSteps

__all__ = ["Ensemble", "Member", "aggregate", "averaged"]

_PASS_BYTES = 2**19
"""Hidden states of one pass on a CPU. Inside a layer they are four times as wide, and all of
it then fits in a core's own cache."""

_PASS_BYTES_GPU = 2**26
"""The same on a GPU, which needs many rows to be busy."""

_PASS_TOKENS = 128
"""Tokens of one pass at least: below, reading the weights takes as long as using them."""

_LOGITS_BYTES = 2**26
"""Token logits of all members, for the rows of one pass."""

_KEPT_BYTES = 2**29
"""Keys and values of the texts that are continued at once, on a CPU; one text may have more."""

_KEPT_BYTES_GPU = 2**33
"""The same on a GPU."""

_Finish = Callable[[Tensor, int, Tensor | None], Tensor]
"""From the hidden states that enter a layer [n, T, H], its number and the padding mask [n, T] to
what is asked for, one entry a row."""


class Ensemble:
    """The active prefixes of one view.

    Args:
        base: the frozen base.
        members: one per shard that has a prefix; at least one.
        scale: alpha / rank.
        method: a name in ``METHODS``; ``mean-adapters`` is one adapter and head, averaged over the
            members; ``route`` is the member whose shard's prototype is nearest to the row.
        weights: a name in ``WEIGHTS``, or what each of the members counts for, in their order;
            where one of them is the base alone, it may be below 0.
        before: the ensemble of the view before, whose stacked adapters are taken over where they
            have not changed.
        prototypes: of all shards, for ``route``.
        tokens: ``entropy`` to weigh the members of a language model token by token, too.
    """

    def __init__(
        self,
        base: Base,
        members: Sequence[Member],
        scale: float,
        method: str,
        weights: str | Sequence[float],
        before: Ensemble | None = None,
        prototypes: Prototypes | None = None,
        tokens: str = "none",
    ) -> None:
        self.shards = tuple(sorted(member.shard for member in members if member.shard >= 0))
        self._members, self._scale, self._by_token = tuple(members), scale, tokens
        if isinstance(weights, str):
            weights = shares(weights, members)
        # those with the longest prefixes branch off the trunk first
        pairs = zip(members, weights, strict=True)
        ranked = sorted(pairs, key=lambda pair: (pair[0].lowest, pair[0].shard))
        members = [member for member, _ in ranked]
        votes = torch.tensor([weight for _, weight in ranked])  # [S]
        if method == "mean-adapters":
            members, votes = [averaged(members, votes.tolist(), base.targets)], torch.ones(1)
        self._lowest = [member.lowest for member in members]
        self._router: Router | None = None
        if method == "route":
            assert prototypes is not None
            shards = [member.shard for member in members]
            self._router = Router(base, prototypes, shards, self._lowest)
            votes = torch.ones(1)
        self._base, self._weights = base, votes.to(base.device)
        self._combine = mean_by_entropy if tokens == "entropy" else METHODS[method]
        tensors = [member.tensors for member in members]
        known = None if before is None else before._stack
        self._stack: AdapterStack = AdapterStack(base, self._lowest, tensors, scale, known)
        self._prompts = MemberPrompts.of(base, tensors, self._lowest)
        self._head = {
            name: torch.stack([held[name] for held in tensors]).to(base.device)
            for name in (WEIGHT, BIAS)
            if base.lm_head is None
        }
        self.texts: WeakKeyDictionary[object, KVDecoding | RoutedDecoding] = WeakKeyDictionary()
        """KV caches of the texts under way, by the object that holds a text; an entry goes with
        that object, or with this ensemble."""

    def weighted(self, mixture: Mixture, alone: Member | None) -> Ensemble:
        """The same members with fitted weights; what is stacked is shared.

        Args:
            mixture: fitted on the members, in the order in which they were given.
            alone: the base as one more member; None only if it has no weight.
        """
        if not mixture.base:
            members, weights = self._members, mixture.members
        else:
            assert alone is not None
            if not any(mixture.members):
                return Ensemble(self._base, [alone], 1.0, "mean-probabilities", "uniform")
            members, weights = (*self._members, alone), (*mixture.members, mixture.base)
        scale, tokens = self._scale, self._by_token
        return Ensemble(self._base, members, scale, mixture.method, weights, self, None, tokens)

    def unmerged(self) -> Ensemble:
        """The mean of the shards' answers, uniformly weighted, where these are merged."""
        shards = [member for member in self._members if member.shard >= 0]
        return Ensemble(
            self._base, shards, self._scale, "mean-probabilities", "uniform", before=self
        )

    @torch.inference_mode()
    def probabilities(self, rows: Encoded) -> Tensor:
        """Class probabilities, [n, C], on the CPU."""
        found = torch.empty((len(rows), self._head[BIAS].shape[1]))
        for index, part in self._passes(rows, 0):
            found[index] = self._aggregate(self._answers(part, self._base.features))
        return found

    @torch.inference_mode()
    def token_losses(self, rows: Encoded) -> Tensor:
        """−log p of each next token, [n, T−1], 0 where it does not count (``Encoded.scored``), as
        padding does not; on the CPU."""
        found = torch.zeros((len(rows), rows.values.shape[1] - 1))
        for index, part in self._passes(rows, rows.values.shape[1]):
            logs = self._aggregate(self._along(part, self._tokens))
            tokens, real = part.values[:, 1:].cpu(), part.scored[:, 1:].cpu()
            losses = -logs.gather(2, tokens.unsqueeze(2)).squeeze(2) * real  # [n, T−1]
            found[index, : losses.shape[1]] = losses
        return found

    @torch.inference_mode()
    def token_log_probabilities(self, rows: Encoded) -> Tensor:
        """log p of what follows each real token, [n, T, V], −inf at padding; on the CPU."""
        length = rows.values.shape[1]
        found = torch.full((len(rows), length, self._vocabulary), -torch.inf)
        for index, part in self._passes(rows, length):
            assert part.mask is not None
            logs = self._aggregate(self._along(part, self._every_token))
            padding = part.mask.cpu().unsqueeze(2) == 0  # [n, T, 1]
            found[index, : logs.shape[1]] = logs.masked_fill(padding, -torch.inf)
        return found

    @torch.inference_mode()
    def next_token(self, rows: Encoded, prompts: Tensor | None = None) -> Tensor:
        """Log probabilities of the token after each row's last real one, [n, V], on the CPU.

        Args:
            rows: n texts.
            prompts: tokens [n] of each row's prompt. With a router a text stays with the member
                that its prompt leads to, whatever was added since; default: all of the row.
        """
        found = torch.empty((len(rows), self._vocabulary))
        for index, part in self._passes(rows, 1):
            leading = None if prompts is None else prompts[index]
            logits = self._answers(part, self._last_token, leading)
            found[index] = self._aggregate(logits).squeeze(1)
        return found

    @torch.inference_mode()
    def routes(self, rows: Encoded, prompts: Tensor | None = None) -> Tensor | None:
        """Number of the member that answers each row, [n] on the CPU; None if all of them do.

        Members are numbered as in ``AdapterStack``: by their lowest layer, then by shard; so member
        k's adapters are those of ``segments(k, k + 1, …)``. Numbers hold for this ensemble alone.
        Texts are routed by their prompts, so ask once, before the first token.

        Args:
            rows: n rows.
            prompts: as in ``next_token``.
        """
        if self._router is None:
            return None
        found = torch.empty(len(rows), dtype=torch.int64)
        for index, part in self._passes(rows, 0):
            leading = None if prompts is None else prompts[index]
            found[index] = self._router.members(TrunkPass(self._base, part), leading).cpu()
        return found

    def rows_at_once(self, steps: KVSteps | None, tokens: int) -> int | None:
        """Texts of so many tokens that have KV caches at once, at least one; None: no caches."""
        if steps is None or self._prompts is not None:
            return None
        depth = self._base.depth
        sets = depth if self._router is not None else sum(sets_of_layers(self._lowest, depth))
        row = tokens * sets * steps.token_bytes // depth
        kept = _KEPT_BYTES if self._base.device.type == "cpu" else _KEPT_BYTES_GPU
        return max(1, kept // row)

    def decoding(
        self, steps: KVSteps | None, rows: Encoded, prompts: Tensor, room: int
    ) -> KVDecoding | RoutedDecoding | None:
        """Texts to continue with a KV cache; None if the base or the members take none.

        Args:
            steps: runs the base's layers on new tokens alone; None if the base takes no cache.
            rows: the texts so far.
            prompts: tokens [n] of each text's prompt, as in ``next_token``.
            room: tokens that will be fed after them, at most.
        """
        if steps is None or self._prompts is not None:
            return None
        chosen = self.routes(rows, prompts)
        if chosen is None:
            return self._begun(steps, range(len(self._lowest)), rows, room)
        parts = [
            (member, (chosen == member).nonzero()[:, 0]) for member in chosen.unique().tolist()
        ]
        return RoutedDecoding(
            (at.tolist(), self._begun(steps, range(member, member + 1), rows.rows(at), room))
            for member, at in parts
        )

    def _begun(self, steps: KVSteps, members: range, rows: Encoded, room: int) -> KVDecoding:
        """The decoding of texts by some members, their prompts read."""
        assert rows.mask is not None
        mix, weights, count = self._combine, self._weights, len(members)

        def combine(logits: Tensor) -> Tensor:  # must not hold this ensemble: it would never go
            apart = logits.view(count, -1, *logits.shape[1:])  # [S · n, 1, V] → [S, n, 1, V]
            return mix(apart, weights).cpu().squeeze(1)

        lowest, lengths = [self._lowest[member] for member in members], rows.mask.sum(dim=1)
        found = KVDecoding(steps, self._stack, lowest, combine, lengths, room, first=members.start)
        found.begin(self._passes(rows, 1))
        return found

    def _aggregate(self, logits: Tensor) -> Tensor:
        return self._combine(logits, self._weights).cpu()

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
        last = hidden[rows, mask.sum(dim=1) - 1].unsqueeze(1)  # [n, T, H] → [n, 1, H]
        return language_logits(base, last)

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
        # a routed row runs through one member, so a pass takes as many times more rows
        times = 1 if self._router is None else len(self._lowest)
        lengths = _lengths(rows, self._base.tokens(rows))
        order = lengths.argsort(descending=True, stable=True)
        most = len(rows)
        if logits:
            most = _LOGITS_BYTES // (4 * len(self._lowest) * logits * self._vocabulary)
        while len(order):
            longest = int(lengths[order[0]])
            size = max(1, min(self._budget() * times // longest, most))
            size = -(-len(order) // -(-len(order) // size))  # parts of about as many rows
            index, order = order[:size], order[size:]
            yield index, rows.rows(index).first(longest).to(self._base.device)

    def _answers(self, rows: Encoded, finish: _Finish, prompts: Tensor | None = None) -> Tensor:
        """Logits of each member, [S, n, …]; of the one that each row is routed to, [1, n, …]."""
        trunk = TrunkPass(self._base, rows)
        if self._router is None:
            return self._each(trunk, finish)
        chosen = self._router.members(trunk, prompts)
        found: Tensor | None = None
        for member in chosen.unique().tolist():
            at = (chosen == member).nonzero().squeeze(1)
            own = trunk.part(at, self._lowest[member])
            answer = self._group(own, member, member + 1, self._merges(own), finish)
            if found is None:
                found = answer.new_empty((1, len(rows), *answer.shape[2:]))
            found[:, at] = answer
        assert found is not None
        return found

    def _along(self, rows: Encoded, finish: _Finish) -> Tensor:
        """Logits of each member for each token, [S, n, T, V].

        With a router [1, n, T, V]: of instructions, of the member that the prompt leads to; of
        texts, of the one that the text up to there leads to, as ``next_token`` would answer.
        """
        if self._router is not None and rows.targets is not None:
            return self._answers(rows, finish)
        found = self._each(TrunkPass(self._base, rows), finish)
        if self._router is None:
            return found
        chosen = self._router.along(TrunkPass(self._base, rows))  # [n, T]
        chosen = chosen[None, :, : found.shape[2], None]  # [1, n, T, 1]
        return found.gather(0, chosen.expand(-1, -1, -1, found.shape[3]))  # [1, n, T, V]

    def _each(self, trunk: TrunkPass, finish: _Finish) -> Tensor:
        """Logits of each member, [S, n, …]."""
        members, tokens = len(self._lowest), trunk.hidden.shape[0] * trunk.hidden.shape[1]
        groups = -(-members // max(1, self._budget() // tokens))
        bounds = [members * number // groups for number in range(groups + 1)]
        merged = self._merges(trunk)
        found = [
            self._group(trunk, first, stop, merged, finish) for first, stop in pairwise(bounds)
        ]
        return found[0] if groups == 1 else torch.cat(found)

    def _merges(self, trunk: TrunkPass) -> bool:
        """Whether rows are worth weights of a member's own, which take time to be read: if they
        have as many tokens as those are wide, or there is but one member."""
        tokens = trunk.hidden.shape[0] * trunk.hidden.shape[1]
        return len(self._lowest) == 1 or tokens >= self._base.hidden_size

    def _group(
        self, trunk: TrunkPass, first: int, stop: int, merged: bool, finish: _Finish
    ) -> Tensor:
        """Logits of members ``first`` … ``stop`` − 1, [k, n, …]; each member's rows join the stack
        where it branches off the trunk."""
        found = self._finished(trunk, first, stop, merged, finish)
        if self._head:
            return classify(found, {name: held[first:stop] for name, held in self._head.items()})
        return found.view(stop - first, -1, *found.shape[1:])  # [k · n, …] → [k, n, …]

    def _finished(
        self, trunk: TrunkPass, first: int, stop: int, merged: bool, finish: _Finish
    ) -> Tensor:
        """What ``finish`` makes of the rows of those members, member by member: [k · n, …]."""
        base, members = self._base, stop - first
        if self._prompts is not None:
            rows, mask = trunk.joined(None, 0, 1)
            return self._prompts.answers(rows, mask, range(first, stop), merged, finish)
        hidden: Tensor | None = None
        for lo, hi, bank in self._stack.segments(first, stop, merged):
            hidden, mask = trunk.joined(hidden, lo, bank.lanes)  # [lanes · n, T, H]
            with adapted(bank):
                if bank.lanes == members and hi == base.depth:
                    return finish(hidden, lo, mask)
                hidden = base.run(hidden, lo, hi, base.attention(mask))
        # members without any adapter: the base as fallback
        hidden, mask = trunk.joined(hidden, base.depth, members)
        return finish(hidden, base.depth, mask)


def _lengths(rows: Encoded, tokens: int) -> Tensor:
    """Tokens that each row needs, [n]."""
    if rows.mask is None:
        return torch.full((len(rows),), tokens)
    return padded_lengths(rows.mask).cpu()

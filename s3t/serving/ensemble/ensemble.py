"""The forward pass of all shards' active prefixes, and how their answers become one.

    rows ─► trunk, shared by all shards ─┬─ layer where the longest prefix begins: its shards branch
                                         ├─ … others share the trunk until their own lowest block
                                         └─► heads of the prefixes ─► mean or vote ─► answer

With a router each row branches off to one member alone (``routing``), whose answer is the answer.

A pass holds as many tokens as stay in the cache (see ``_budget``), rows before members: few rows
run through all members at once, stacked, and many rows through one member after another.

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
from s3t.serving.ensemble.members import Member, aggregate, averaged
from s3t.serving.ensemble.prompts import Prompted
from s3t.serving.ensemble.routing import Router, Trunk
from s3t.serving.ensemble.stack import Branches
from s3t.serving.generation.kv_decoding import Decoding, Routed, sets_of_layers
from s3t.serving.generation.kv_steps import Steps

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

_KEPT_BYTES = 2**29
"""Keys and values of texts that are written at once, on a processor; one text may have more."""

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
        method: ``mean-probabilities``, ``mean-logits``, ``vote``, or ``mean-adapters``: one
            adapter and head, averaged over the members; ``route``: the member whose shard's
            prototype is nearest to the row.
        weights: ``uniform``, or ``data`` for weights by samples seen.
        before: the ensemble of the view before, to take over what has not changed.
        prototypes: of all shards, for ``route``.
    """

    def __init__(
        self,
        base: Base,
        members: Sequence[Member],
        scale: float,
        method: str,
        weights: str,
        before: Ensemble | None = None,
        prototypes: Prototypes | None = None,
    ) -> None:
        self.shards = tuple(sorted(member.shard for member in members))
        # those with the longest prefixes branch off the trunk first
        members = sorted(members, key=lambda member: (member.lowest, member.shard))
        seen = [member.samples if weights == "data" else 1 for member in members]
        shares = torch.tensor(seen, dtype=torch.float32) / sum(seen)
        if method == "mean-adapters":
            members, shares = [averaged(members, shares.tolist(), base.targets)], torch.ones(1)
            method = "mean-probabilities"  # of one
        self._lowest = [member.lowest for member in members]
        self._router: Router | None = None
        if method == "route":
            assert prototypes is not None
            shards = [member.shard for member in members]
            self._router = Router(base, prototypes, shards, self._lowest)
            shares, method = torch.ones(1), "mean-probabilities"  # of one
        self._base, self._method, self._shares = base, method, shares.to(base.device)
        tensors = [member.tensors for member in members]
        known = None if before is None else before._branches
        self._branches: Branches = Branches(base, self._lowest, tensors, scale, known)
        self._prompted = Prompted.of(base, tensors)
        self._head = {
            name: torch.stack([held[name] for held in tensors]).to(base.device)
            for name in (WEIGHT, BIAS)
            if base.lm_head is None
        }
        self.texts: WeakKeyDictionary[object, Decoding | Routed] = WeakKeyDictionary()
        """What is kept of texts under way, by who writes them; it goes with them, or with this."""

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
            logs = self._aggregate(self._along(part, self._every_token))
            padding = part.mask.cpu().unsqueeze(2) == 0
            found[index, : logs.shape[1]] = logs.masked_fill(padding, -torch.inf)
        return found

    @torch.inference_mode()
    def next_token(self, rows: Encoded, prompts: Tensor | None = None) -> Tensor:
        """Log probabilities of the token after each row's last real one, [n, V], on the CPU.

        Args:
            rows: n texts.
            prompts: tokens [n] of each row's prompt. With a router a text goes on in the member
                that its prompt leads to, whatever has been written since; default: all of the row.
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

        Members are numbered as their adapters are stacked (``Branches``): by their lowest layer,
        then by shard; so member k's are those of ``segments(k, k + 1, …)``. Numbers hold for this
        ensemble alone. Texts are routed by their prompts, so ask once, before the first token.

        Args:
            rows: n rows.
            prompts: as in ``next_token``.
        """
        if self._router is None:
            return None
        found = torch.empty(len(rows), dtype=torch.int64)
        for index, part in self._passes(rows, 0):
            leading = None if prompts is None else prompts[index]
            found[index] = self._router.members(Trunk(self._base, part), leading).cpu()
        return found

    def rows_at_once(self, steps: Steps | None, tokens: int) -> int | None:
        """Rows of so many tokens that ``decoding`` keeps; None if it cannot, at least one."""
        if steps is None or self._prompted is not None:
            return None
        depth = self._base.depth
        sets = depth if self._router is not None else sum(sets_of_layers(self._lowest, depth))
        row = tokens * sets * steps.token_bytes // depth
        kept = _KEPT_BYTES if self._base.device.type == "cpu" else _KEPT_BYTES_GPU
        return max(1, kept // row)

    def decoding(
        self, steps: Steps | None, rows: Encoded, prompts: Tensor, room: int
    ) -> Decoding | Routed | None:
        """Texts to continue with what is kept of their tokens; None if it cannot be kept.

        Args:
            steps: the base's layers on new tokens alone; None if texts are run whole each time.
            rows: the texts so far.
            prompts: tokens [n] of each text's prompt, as in ``next_token``.
            room: tokens that will be fed after them, at most.
        """
        if steps is None or self._prompted is not None:
            return None
        chosen = self.routes(rows, prompts)
        if chosen is None:
            return self._begun(steps, range(len(self._lowest)), rows, room)
        parts = [
            (member, (chosen == member).nonzero()[:, 0]) for member in chosen.unique().tolist()
        ]
        return Routed(
            (at.tolist(), self._begun(steps, range(member, member + 1), rows.rows(at), room))
            for member, at in parts
        )

    def _begun(self, steps: Steps, members: range, rows: Encoded, room: int) -> Decoding:
        """Texts that some members continue."""
        assert rows.mask is not None
        method, shares, count = self._method, self._shares, len(members)

        def combine(logits: Tensor) -> Tensor:  # no part of it may hold this ensemble
            apart = logits.view(count, -1, *logits.shape[1:])
            return aggregate(apart, shares, method).cpu().squeeze(1)

        lowest, lengths = [self._lowest[member] for member in members], rows.mask.sum(dim=1)
        found = Decoding(steps, self._branches, lowest, combine, lengths, room, first=members.start)
        found.begin(self._passes(rows, 1))
        return found

    def _aggregate(self, logits: Tensor) -> Tensor:
        return aggregate(logits, self._shares, self._method).cpu()

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
        # routed rows are spread over the members: then each has about a pass of its own
        spread = 1 if self._router is None else len(self._lowest)
        lengths = _lengths(rows, self._base.tokens(rows))
        order = lengths.argsort(descending=True, stable=True)
        most = len(rows)
        if logits:
            most = _LOGITS_BYTES // (4 * len(self._lowest) * logits * self._vocabulary)
        while len(order):
            longest = int(lengths[order[0]])
            size = max(1, min(self._budget() * spread // longest, most))
            size = -(-len(order) // -(-len(order) // size))  # parts of about as many rows
            index, order = order[:size], order[size:]
            yield index, rows.rows(index).first(longest).to(self._base.device)

    def _answers(self, rows: Encoded, finish: _Finish, prompts: Tensor | None = None) -> Tensor:
        """Logits of each member, [S, n, …]; of the one that each row is routed to, [1, n, …]."""
        trunk = Trunk(self._base, rows)
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
        found = self._each(Trunk(self._base, rows), finish)
        if self._router is None:
            return found
        chosen = self._router.along(Trunk(self._base, rows))[None, :, : found.shape[2], None]
        return found.gather(0, chosen.expand(-1, -1, -1, found.shape[3]))

    def _each(self, trunk: Trunk, finish: _Finish) -> Tensor:
        """Logits of each member, [S, n, …]."""
        members, tokens = len(self._lowest), trunk.hidden.shape[0] * trunk.hidden.shape[1]
        groups = -(-members // max(1, self._budget() // tokens))
        bounds = [members * number // groups for number in range(groups + 1)]
        merged = self._merges(trunk)
        found = [
            self._group(trunk, first, stop, merged, finish) for first, stop in pairwise(bounds)
        ]
        return found[0] if groups == 1 else torch.cat(found)

    def _merges(self, trunk: Trunk) -> bool:
        """Whether rows are worth weights of a member's own, which take time to be read: if they
        have as many tokens as those are wide, or there is but one member."""
        tokens = trunk.hidden.shape[0] * trunk.hidden.shape[1]
        return len(self._lowest) == 1 or tokens >= self._base.hidden_size

    def _group(self, trunk: Trunk, first: int, stop: int, merged: bool, finish: _Finish) -> Tensor:
        """Logits of members ``first`` … ``stop`` − 1, [k, n, …], stacked from where each branches
        off the trunk."""
        found = self._finished(trunk, first, stop, merged, finish)
        if self._head:
            return classify(found, {name: held[first:stop] for name, held in self._head.items()})
        return found.view(stop - first, -1, *found.shape[1:])

    def _finished(
        self, trunk: Trunk, first: int, stop: int, merged: bool, finish: _Finish
    ) -> Tensor:
        """What ``finish`` makes of the rows of those members, member by member: [k · n, …]."""
        base, members = self._base, stop - first
        if self._prompted is not None:
            rows, mask = trunk.joined(None, 0, 1)
            return self._prompted.answers(rows, mask, range(first, stop), merged, finish)
        hidden: Tensor | None = None
        for lo, hi, bank in self._branches.segments(first, stop, merged):
            hidden, mask = trunk.joined(hidden, lo, bank.lanes)
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

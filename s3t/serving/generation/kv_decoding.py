"""Some texts on their way through all members of an ensemble, token by token, nothing run twice.

    prompts ─► trunk ─┬─► member 0 … ─┐                       kept: keys and values of the trunk
                      └─► member 1 … ─┴─► mean ─► a token     once, of each member above its own
    token ─► the same way, alone: it attends to what is kept  lowest layer (``model.past``)

Where members branch off, and how their answers become one, is as in ``ensemble``; here all of them
go together, since a token is little work. With a router each text goes through one member alone.

Invariant (E6, E7): a decoding belongs to one ensemble, which alone holds it: with the ensemble, or
with the text that it writes, go its activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from s3t.model.adapters.lora import adapted
from s3t.model.head import language_logits
from s3t.model.inputs.encoders import Encoded
from s3t.serving.ensemble.stack import Branches
from s3t.serving.generation.kv_cache import Past, Window
from s3t.serving.generation.kv_steps import Steps

__all__ = ["Decoding", "Routed", "sets_of_layers"]

_LOGITS_BYTES = 2**26
"""Next-token logits of all members, for some of the rows."""

Combine = Callable[[Tensor], Tensor]
"""Logits of all members [S · n, 1, V] to log probabilities [n, V] on the CPU."""


class Decoding:
    """Texts that one ensemble continues.

    Args:
        steps: of the base.
        branches: the members' adapters.
        lowest: lowest adapted layer of each member, rising.
        combine: how members become one.
        lengths: tokens of each prompt, [n].
        room: tokens that will be fed at most.
        first: number of the first of these members.
    """

    def __init__(
        self,
        steps: Steps,
        branches: Branches,
        lowest: Sequence[int],
        combine: Combine,
        lengths: Tensor,
        room: int,
        first: int = 0,
    ) -> None:
        self._steps, self._branches, self._lowest = steps, branches, tuple(lowest)
        self._combine, self._rows, self._first = combine, len(lengths), first
        sets = sets_of_layers(self._lowest, steps.base.depth)
        self._past = Past(sets, lengths.to(steps.base.device), room)
        self.logs: Tensor = torch.empty(0)
        """Log probabilities of the token after each row, [n, V], on the CPU."""

    @property
    def fed(self) -> int:
        """Tokens after the prompts."""
        return self._past.fed

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self._past.nbytes

    @torch.inference_mode()
    def begin(self, parts: Iterable[tuple[Tensor, Encoded]]) -> None:
        """Run the prompts.

        Args:
            parts: some of the rows' numbers each, and the rows.
        """
        base, found = self._steps.base, dict[int, Tensor]()
        for index, part in parts:
            assert part.mask is not None
            hidden = self._through(base.start(part), Window(self._past, slice(0), index))
            last = (part.mask.sum(dim=1) - 1).repeat(len(self._lowest))
            logs = self._answer(hidden[torch.arange(len(hidden), device=base.device), last, None])
            found |= dict(zip(index.tolist(), logs, strict=True))
        self.logs = torch.stack([found[row] for row in range(self._rows)])

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> None:
        """Go on by one token of each row."""
        column = torch.tensor(tokens, dtype=torch.int64, device=self._steps.base.device)[:, None]
        hidden, context, mask = self._steps.enter(column, self._past)
        window = Window(self._past, slice(0), None, context, mask)
        self.logs = self._answer(self._through(hidden, window))
        self._past.advance(1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._past.keep(rows)
        self.logs, self._rows = self.logs[list(rows)], len(rows)

    def _through(self, trunk: Tensor, window: Window) -> Tensor:
        """Hidden states of all members after the last layer, [S · n, q, H]."""
        steps, count, at = self._steps, len(trunk), 0
        base, members, depth = steps.base, len(self._lowest), steps.base.depth
        first, stop = self._first, self._first + members
        merged = members == 1 or count * trunk.shape[1] >= base.hidden_size
        branched = trunk[:0]
        for lo, hi, bank in self._branches.segments(first, stop, merged):
            trunk = self._trunk(trunk, at, lo, window)
            arriving, at = bank.lanes - len(branched) // count, lo
            branched = torch.cat([branched, *[trunk] * arriving])
            with adapted(bank):
                branched = steps.run(branched, lo, hi, self._lanes(window, 0, bank.lanes))
        arriving = members - len(branched) // count
        if not arriving:
            return branched
        # members without any adapter: the base as fallback
        trunk = self._trunk(trunk, at, depth, window)
        return torch.cat([branched, *[trunk] * arriving])

    def _trunk(self, hidden: Tensor, lo: int, hi: int, window: Window) -> Tensor:
        for number in range(lo, hi):
            own = sum(lowest <= number for lowest in self._lowest)
            hidden = self._steps.run(hidden, number, number + 1, self._lanes(window, own, own + 1))
        return hidden

    def _lanes(self, window: Window, first: int, stop: int) -> Window:
        """The window of some sets of a layer."""
        lanes, context, mask = stop - first, window.context, window.mask
        if lanes > 1 and context is not None:
            context = self._steps.repeated(context, lanes)
        if lanes > 1 and mask is not None:
            mask = mask.repeat(lanes, 1, 1, 1)
        return Window(window.past, slice(first, stop), window.rows, context, mask)

    def _answer(self, hidden: Tensor) -> Tensor:
        """Log probabilities [n, V] of what follows the members' hidden states [S · n, 1, H]."""
        members, base = len(self._lowest), self._steps.base
        vocabulary: int = base.model.config.vocab_size
        size = max(1, _LOGITS_BYTES // (4 * members * vocabulary))
        apart = hidden.unflatten(0, (members, -1))
        found = [
            self._combine(language_logits(base, part.flatten(0, 1)))
            for part in apart.split(size, dim=1)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


class Routed:
    """Texts of which each is continued by one member alone.

    Args:
        parts: numbers of the texts of a member, and its decoding, begun.
    """

    def __init__(self, parts: Iterable[tuple[Sequence[int], Decoding]]) -> None:
        self._parts = [(list(rows), decoding) for rows, decoding in parts]

    @property
    def fed(self) -> int:
        """As ``Decoding.fed``."""
        return self._parts[0][1].fed

    @property
    def nbytes(self) -> int:
        """As ``Decoding.nbytes``."""
        return sum(decoding.nbytes for _, decoding in self._parts)

    @property
    def logs(self) -> Tensor:
        """As ``Decoding.logs``."""
        order = torch.tensor([row for rows, _ in self._parts for row in rows])
        return torch.cat([decoding.logs for _, decoding in self._parts])[order.argsort()]

    def feed(self, tokens: Sequence[int]) -> None:
        """As ``Decoding.feed``."""
        for rows, decoding in self._parts:
            decoding.feed([tokens[row] for row in rows])

    def keep(self, rows: Sequence[int]) -> None:
        """As ``Decoding.keep``."""
        now = {row: number for number, row in enumerate(rows)}
        parts = []
        for before, decoding in self._parts:
            stays = [number for number, row in enumerate(before) if row in now]
            if stays:
                decoding.keep(stays)
                parts.append(([now[before[number]] for number in stays], decoding))
        self._parts = parts


def sets_of_layers(lowest: Sequence[int], depth: int) -> list[int]:
    """Sets of keys and values in each layer: of the members that have branched off, and of the
    trunk, while there are others."""
    branched = list(accumulate(sum(one == layer for one in lowest) for layer in range(depth)))
    return [count + (count < len(lowest)) for count in branched]

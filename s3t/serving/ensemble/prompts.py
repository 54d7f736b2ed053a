"""Ensemble members that add prompts to a row instead of adapters to layers.

    rows ─ embeddings ─┬─ rows of member 0 with its prompts ┐
                       ├─ rows of member 1 with its prompts ├─ all layers, as the base has them
                       └─ …                                 ┘     ─► own tokens ─► answer

There is no common trunk: a member's prompts are part of the row from the first layer on. Members
with the same number of prompts are stacked; members with another number run apart, because their
rows have another length.

Invariant: this holds the members' prompts and nothing else; a row of a member never meets a prompt
of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from s3t.model.adapters.lora import Bank, adapted
from s3t.model.adapters.prompt import prompts_of, states
from s3t.model.base import Base

__all__ = ["MemberPrompts"]

_Finish = Callable[[Tensor, int, Tensor | None], Tensor]


class MemberPrompts:
    """The prompts of all members.

    Args:
        base: the frozen base.
        tensors: each member's, by name.
        lowest: lowest adapted layer of each member; of the base alone, which has no prompts, the
            number of layers.

    Raises:
        KeyError: a member lacks the prompts of a stage.
    """

    def __init__(
        self, base: Base, tensors: Sequence[Mapping[str, Tensor]], lowest: Sequence[int]
    ) -> None:
        self._base = base
        none = torch.empty(0, base.hidden_size)
        found = [
            none if layer == base.depth else prompts_of(held)
            for held, layer in zip(tensors, lowest, strict=True)
        ]
        if any(prompts is None for prompts in found):
            raise KeyError("prompt")
        self._prompts = [prompts.to(base.device) for prompts in found if prompts is not None]
        plain = Bank(1, {}, 1.0)
        layers = base.fused.for_inference(range(base.depth), plain)
        self._few = replace(plain, inference=layers)

    @staticmethod
    def of(
        base: Base, tensors: Sequence[Mapping[str, Tensor]], lowest: Sequence[int]
    ) -> MemberPrompts | None:
        """The members' prompts; None if they adapt layers, or nothing."""
        if all(prompts_of(held) is None for held in tensors):
            return None
        return MemberPrompts(base, tensors, lowest)

    def answers(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        members: Sequence[int],
        many: bool,
        finish: _Finish,
    ) -> Tensor:
        """What ``finish`` makes of the rows of some members, member by member: [k · n, …].

        Args:
            hidden: embeddings of the rows, [n, T, H].
            mask: their padding mask [n, T], None for images.
            members: their numbers, k.
            many: whether the rows are many; else layers are run in their inference form.
            finish: from hidden states that enter a layer, its number and the mask.
        """
        base = self._base
        parts: dict[int, Tensor] = {}
        for count in sorted({len(self._prompts[member]) for member in members}):
            alike = [member for member in members if len(self._prompts[member]) == count]
            prompts = torch.stack([self._prompts[member] for member in alike])  # [k, p, H]
            longer = None if mask is None else mask.repeat(len(alike), 1)  # [k · n, T]
            with adapted(None if many else self._few):
                rows = hidden.repeat(len(alike), 1, 1)  # [n, T, H] → [k · n, T, H]
                own = states(base, rows, 0, longer, prompts if count else None)
            found = finish(own, base.depth, longer)
            parts |= dict(zip(alike, found.chunk(len(alike)), strict=True))
        return torch.cat([parts[member] for member in members])

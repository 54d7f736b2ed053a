"""Members of an ensemble that add prompts to a row instead of adapters to layers.

    rows ─ embeddings ─┬─ rows of member 0 with its prompts ┐
                       ├─ rows of member 1 with its prompts ├─ all layers, as the base has them
                       └─ …                                 ┘     ─► own tokens ─► answer

There is no trunk to share: a member's prompts are seen from the first layer on. Members with as
many prompts are stacked, those with more run apart, since their rows are longer.

Invariant: what is held here are the members' prompts and nothing else; a row of a member meets no
prompt of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from s3t.model.adapters.lora import Bank, adapted
from s3t.model.adapters.prompt import prompts_of, states
from s3t.model.base import Base

__all__ = ["Prompted"]

_Finish = Callable[[Tensor, int, Tensor | None], Tensor]


class Prompted:
    """The prompts of all members.

    Args:
        base: the frozen base.
        tensors: each member's, by name.

    Raises:
        KeyError: a member lacks the prompts of a stage.
    """

    def __init__(self, base: Base, tensors: Sequence[Mapping[str, Tensor]]) -> None:
        self._base = base
        found = [prompts_of(held) for held in tensors]
        if any(prompts is None for prompts in found):
            raise KeyError("prompt")
        self._prompts = [prompts.to(base.device) for prompts in found if prompts is not None]
        plain = Bank(1, {}, 1.0)
        served = {layer: base.served(layer, plain) for layer in range(base.depth)}
        self._few = replace(plain, served={at: one for at, one in served.items() if one})

    @staticmethod
    def of(base: Base, tensors: Sequence[Mapping[str, Tensor]]) -> Prompted | None:
        """The members' prompts; None if they adapt layers, or nothing."""
        if all(prompts_of(held) is None for held in tensors):
            return None
        return Prompted(base, tensors)

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
            many: whether there are so many rows that calls do not count (see ``served``).
            finish: from hidden states that enter a layer, its number and the mask.
        """
        base = self._base
        parts: dict[int, Tensor] = {}
        for count in sorted({len(self._prompts[member]) for member in members}):
            alike = [member for member in members if len(self._prompts[member]) == count]
            prompts = torch.stack([self._prompts[member] for member in alike])
            longer = None if mask is None else mask.repeat(len(alike), 1)
            with adapted(None if many else self._few):
                own = states(base, hidden.repeat(len(alike), 1, 1), 0, longer, prompts)
            found = finish(own, base.depth, longer)
            parts |= dict(zip(alike, found.chunk(len(alike)), strict=True))
        return torch.cat([parts[member] for member in members])

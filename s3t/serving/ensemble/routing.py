"""Routes a row to the member whose shard's prototype is nearest, among the members that serve.

    rows ─► trunk ──┬─ lowest layer of member 1: kept ──► rows of member 1 go on from here
                    └─ clusters.layer: features ─► nearest prototype of a member
                              └────────────────────────► rows of member 0, which begins above it

The layers that are run to find a row's member are part of its answer, up to the member's lowest
layer. Layers above that, up to ``clusters.layer``, are run for the choice alone. So an answer costs
one forward pass if ``clusters.layer`` is not above a prefix's lowest block. With the default, after
the last layer, it costs the frozen layers from that block up as well.

Invariant: a shard without a prefix has no part here (E6); its rows go to the next nearest one that
has. The choice follows from the row, the base and public prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.model.prototypes import Prototypes, leading, pooled

__all__ = ["Router", "TrunkPass"]


class TrunkPass:
    """One pass of some rows through the frozen layers, from which members branch off.

    Args:
        base: the frozen base.
        rows: on its device.
    """

    def __init__(self, base: Base, rows: Encoded) -> None:
        self._base, self._rows, self._layer = base, rows, 0
        self.hidden, self.mask = base.start(rows), rows.mask
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def leading(self) -> Tensor | None:
        """The tokens [n, T] by which rows are routed (see ``prototypes.leading``)."""
        return leading(self._rows)

    def run_to(self, layer: int, keep: bool = False) -> Tensor:
        """Hidden states [n, T, H] that enter a layer, not below that of the call before.

        Args:
            layer: which.
            keep: for ``part``.
        """
        base = self._base
        self.hidden = base.run(self.hidden, self._layer, layer, base.attention(self.mask))
        self._layer = layer
        if keep:
            self._kept[layer] = self.hidden
        return self.hidden

    def part(self, at: Tensor, layer: int) -> TrunkPass:
        """The rows ``at`` as they were at the highest layer kept that is not above ``layer``."""
        found = TrunkPass.__new__(TrunkPass)
        found._base, found._kept = self._base, {}
        found._layer = max(kept for kept in self._kept if kept <= layer)
        found._rows = self._rows.rows(at)
        found.hidden, found.mask = self._kept[found._layer][at], found._rows.mask
        return found

    def joined(
        self, branched: Tensor | None, layer: int, members: int
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states of several members at a layer, [members · n, T, H], and their padding mask.

        Args:
            branched: of the k that have branched off before, [k · n, T, H]; None if none has.
            layer: not below that of the call before.
            members: how many there are; those above k branch off here.
        """
        rows = self.run_to(layer)
        arriving = members - (0 if branched is None else len(branched) // len(rows))
        parts = [] if branched is None else [branched]
        parts += [rows] * arriving
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return hidden, None if self.mask is None else self.mask.repeat(members, 1)


class Router:
    """Chooses among the members of an ensemble.

    Args:
        base: the frozen base.
        prototypes: of all shards.
        shards: shard of each member.
        lowest: lowest adapted layer of each member.
    """

    def __init__(
        self, base: Base, prototypes: Prototypes, shards: Sequence[int], lowest: Sequence[int]
    ) -> None:
        self._base, self._layer = base, prototypes.layer
        self._centres = prototypes.centres[list(shards)].to(base.device)
        self._cuts = sorted({cut for cut in lowest if cut < self._layer})

    def members(self, trunk: TrunkPass, prompts: Tensor | None = None) -> Tensor:
        """Number of the member that answers each row, [n].

        Args:
            trunk: the rows at layer 0; it keeps what the members' parts begin with.
            prompts: tokens [n] by which each row is chosen, from its first; default: as rows were
                placed.
        """
        for cut in self._cuts:
            trunk.run_to(cut, keep=True)
        if len(self._centres) == 1:  # there is no choice
            if not self._cuts:
                trunk.run_to(0, keep=True)
            return torch.zeros(len(trunk), dtype=torch.int64, device=self._centres.device)
        hidden, mask = trunk.run_to(self._layer, keep=True), trunk.leading
        if mask is not None and prompts is not None:
            places = torch.arange(mask.shape[1], device=mask.device)
            mask = (places < prompts.to(mask.device).unsqueeze(1)).to(mask.dtype)  # [n, T]
        return self._nearest(pooled(self._base, hidden, self._layer, mask))

    def along(self, trunk: TrunkPass) -> Tensor:
        """Member that would answer what follows each token, had the row ended there: [n, T].

        Of a decoder alone, where no token sees what stands behind it.

        Args:
            trunk: the rows at layer 0.
        """
        hidden = trunk.run_to(self._layer)
        states = (self._base.finish(hidden) if self._layer == self._base.depth else hidden).float()
        return self._nearest(functional.normalize(states.cumsum(dim=1), dim=2))

    def _nearest(self, features: Tensor) -> Tensor:
        return (features @ self._centres.T).argmax(dim=-1)

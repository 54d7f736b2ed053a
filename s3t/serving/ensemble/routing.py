"""Which member answers a row: the one whose shard's prototype is nearest, among those that serve.

    rows ─► trunk ──┬─ lowest layer of member 1: kept ──► rows of member 1 go on from here
                    └─ clusters.layer: features ─► nearest prototype of a member
                              └────────────────────────► rows of member 0, which begins above it

What is run to find a row's member begins its answer too: up to the member's lowest layer, or to
``clusters.layer`` if that comes first. Only the layers between, where features are those of a
higher one, are run for the choice alone. So with a ``clusters.layer`` not above a prefix's lowest
block an answer costs one forward pass; with the default, after the last layer, it costs the frozen
layers from that block up as well.

Invariant: a shard without a prefix has no part here (E6): its rows go to the next nearest that has
one. The choice follows from a row, the base and public prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.model.prototypes import Prototypes, leading, pooled

__all__ = ["Router", "Trunk"]


class Trunk:
    """Some rows on their way through the frozen layers, and who branches off where.

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
        """The tokens that tell a row's cluster (``clusters.leading``)."""
        return leading(self._rows)

    def rise(self, layer: int, keep: bool = False) -> Tensor:
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

    def part(self, at: Tensor, layer: int) -> Trunk:
        """The rows ``at`` as they were at the highest layer kept that is not above ``layer``."""
        found = Trunk.__new__(Trunk)
        found._base, found._kept = self._base, {}
        found._layer = max(kept for kept in self._kept if kept <= layer)
        found._rows = self._rows.rows(at)
        found.hidden, found.mask = self._kept[found._layer][at], found._rows.mask
        return found

    def joined(
        self, branches: Tensor | None, layer: int, lanes: int
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states of all lanes at a layer, and their padding mask.

        Args:
            branches: of those that have branched off before, [k · n, T, H]; None if none has.
            layer: not below that of the call before.
            lanes: how many there are; those above k branch off here.
        """
        rows = self.rise(layer)
        arriving = lanes - (0 if branches is None else len(branches) // len(rows))
        parts = [] if branches is None else [branches]
        parts += [rows] * arriving
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return hidden, None if self.mask is None else self.mask.repeat(lanes, 1)


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

    def members(self, trunk: Trunk, prompts: Tensor | None = None) -> Tensor:
        """Number of the member that answers each row, [n].

        Args:
            trunk: the rows at layer 0; it keeps what the members' parts begin with.
            prompts: tokens [n] by which each row is chosen, from its first; default: as rows were
                placed.
        """
        for cut in self._cuts:
            trunk.rise(cut, keep=True)
        if len(self._centres) == 1:  # there is no choice
            if not self._cuts:
                trunk.rise(0, keep=True)
            return torch.zeros(len(trunk), dtype=torch.int64, device=self._centres.device)
        hidden, mask = trunk.rise(self._layer, keep=True), trunk.leading
        if mask is not None and prompts is not None:
            places = torch.arange(mask.shape[1], device=mask.device)
            mask = (places < prompts.to(mask.device).unsqueeze(1)).to(mask.dtype)
        return self._nearest(pooled(self._base, hidden, self._layer, mask))

    def along(self, trunk: Trunk) -> Tensor:
        """Member that would answer what follows each token, had the row ended there: [n, T].

        Of a decoder alone, where no token sees what stands behind it.

        Args:
            trunk: the rows at layer 0.
        """
        hidden = trunk.rise(self._layer)
        states = (self._base.finish(hidden) if self._layer == self._base.depth else hidden).float()
        return self._nearest(functional.normalize(states.cumsum(dim=1), dim=2))

    def _nearest(self, features: Tensor) -> Tensor:
        return (features @ self._centres.T).argmax(dim=-1)

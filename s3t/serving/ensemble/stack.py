"""The adapters of all ensemble members, stacked layer by layer.

    members, longest prefix first     0   1   2   3
    layer 0 ── trunk ────────────────┐
    layer 1                          ├── a0, a1            a stack of two
    layer 2                          ├── a0, a1, a2        three
    layer 3                          └── a0, a1, a2, a3    four

A map's adapters run as two small products beside the base's. Where the map is small they are merged
with it instead, into one weight a member. Merged weights are made when the first answer needs them,
so that a deletion never waits for them.

Invariant: a stack holds the members' tensors and nothing else. A layer is taken over from the view
before only if it holds the very same tensors, member by member.

Memory: per member and adapted map, rank × (inputs + outputs) numbers, and inputs × outputs more
where they are merged: never over ``_MERGED_NUMBERS``, or four times those of the adapters.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from s3t.model.adapters.lora import Bank, LoraTarget, merge
from s3t.model.base import Base

__all__ = ["AdapterStack", "Segment"]

_MERGED_NUMBERS = 2**16
"""Maps of up to so many weights are merged, with a copy for each member of 256 KiB at most. In
larger ones the adapters' two small products no longer count, unless their rank is high."""

Segment = tuple[int, int, Bank]
"""Layers lo … hi−1 and the adapters of the members that have branched off by then."""


class AdapterStack:
    """The stacked adapters of the members of one ensemble.

    Args:
        base: the frozen base.
        lowest: lowest adapted layer of each member, rising.
        tensors: each member's adapters, by name.
        scale: alpha / rank.
        before: the stack of the view before, whose layers are taken over where they are the same.

    Raises:
        KeyError: a member lacks an adapter of a layer that it should have.
    """

    def __init__(
        self,
        base: Base,
        lowest: Sequence[int],
        tensors: Sequence[Mapping[str, Tensor]],
        scale: float,
        before: AdapterStack | None = None,
    ) -> None:
        self._base, self._lowest, self._scale = base, tuple(lowest), scale
        self._lock = threading.Lock()
        self._maps: list[dict[str, _Map]] = [{} for _ in range(base.depth)]
        self._segments: dict[tuple[int, int, bool], list[Segment]] = {}
        for target in base.targets:
            count = self._branched(target.layer)
            if not count:
                continue
            sources = [(held[target.a], held[target.b]) for held in tensors[:count]]
            known = None if before is None else before._maps[target.layer].get(target.path)
            if known is None or not known.stacks(sources):
                known = _Map(base, target, sources, scale)
            self._maps[target.layer][target.path] = known

    def segments(self, first: int, stop: int, merged: bool) -> Sequence[Segment]:
        """Layers of some members in parts, cut where one of them branches off.

        The last part ends with the last layer. Empty if none of them has an adapter.

        Args:
            first, stop: members ``first`` … ``stop`` − 1.
            merged: for many rows: adapters of small maps are merged with them. Else, for few rows:
                layers are run in their inference form.
        """
        which = first, stop, merged
        with self._lock:
            if which not in self._segments:
                self._segments[which] = self._cut(*which)
            return self._segments[which]

    def _cut(self, first: int, stop: int, merged: bool) -> list[Segment]:
        depth = len(self._maps)
        cuts = sorted({lo for lo in self._lowest[first:stop] if lo < depth})
        return [
            (lo, hi, self._bank(lo, hi, slice(first, min(stop, self._branched(lo))), merged))
            for lo, hi in pairwise([*cuts, depth])
        ]

    def _bank(self, lo: int, hi: int, members: slice, merged: bool) -> Bank:
        pairs, weights = {}, {}
        for layer in range(lo, hi):
            for path, one in self._maps[layer].items():
                if merged and one.merges:
                    weights[layer, path] = one.merged()[members]
                else:
                    pairs[layer, path] = one.a[members], one.b[members]
        bank = Bank(members.stop - members.start, pairs, self._scale, merged=weights)
        if merged:
            return bank
        return replace(bank, inference=self._base.fused.for_inference(range(lo, hi), bank))

    def _branched(self, layer: int) -> int:
        """Members that have branched off before the layer, or do so at it."""
        return sum(lo <= layer for lo in self._lowest)


class _Map:
    """The adapters of one linear map, stacked: A [G, rank, inputs] and B [G, outputs, rank]."""

    def __init__(
        self, base: Base, target: LoraTarget, sources: Sequence[tuple[Tensor, Tensor]], scale: float
    ) -> None:
        self._base, self._target, self._scale = base, target, scale
        self._sources = tuple(sources)
        rank = max(len(a) for a, _ in sources)  # members of fewer residual stages have a lower one
        pad = nn.functional.pad
        self.a = torch.stack([pad(a, (0, 0, 0, rank - len(a))) for a, _ in sources])
        self.b = torch.stack([pad(b, (0, rank - b.shape[1])) for _, b in sources])
        self.a, self.b = self.a.to(base.device), self.b.to(base.device)
        numbers = self.a.shape[1] * (target.inputs + target.outputs)
        small = target.inputs * target.outputs <= max(_MERGED_NUMBERS, 4 * numbers)
        self.merges = base.merges and small
        self._merged: Tensor | None = None

    def stacks(self, sources: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """Whether these very tensors are stacked here, in this order."""
        return len(sources) == len(self._sources) and all(
            one[0] is other[0] and one[1] is other[1]
            for one, other in zip(sources, self._sources, strict=True)
        )

    def merged(self) -> Tensor:
        """The base's weight with each member's adapter added, [G, inputs, outputs]."""
        if self._merged is None:
            layers = self._base.layers
            self._merged = merge(layers, self._target, self.a, self.b, self._scale)
        return self._merged

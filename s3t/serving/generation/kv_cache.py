"""Keys and values of the tokens that texts have had, so that a pass computes new tokens alone.

    layer 0   trunk                      one set of n rows: no member has branched off yet
    layer 1   member 0, trunk            two: the trunk's goes on for who branches off above
    layer 2   member 0, 1, 2             three: all have, nobody needs the trunk's any more

Prompts of different lengths begin together and end one by one; what is fed later stands after the
longest of them, and a mask hides the gap. Positions are counted row by row, without the gap.

    row 0   p p p p p p n n
    row 1   p p p · · · n n        · never read

Invariant: a past is written by one ensemble's passes alone and dies with that ensemble: what is in
it are activations of prompts *and* of weights that a deletion may take (E6, E7).

Memory: 2 · n · T · sets of all layers · width of their keys · bytes of a number, where T is the
longest prompt and what there is room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LayerPast", "Past", "Window"]

_Pair = tuple[Tensor, Tensor]


class Past:
    """What is kept of n texts.

    Args:
        sets: of each layer.
        lengths: tokens of each prompt, [n], on the device of the base.
        room: tokens that will be fed after the prompts.
    """

    def __init__(self, sets: Sequence[int], lengths: Tensor, room: int) -> None:
        self._kept: list[_Pair | None] = [None] * len(sets)
        self._sets = tuple(sets)
        self._begun = int(lengths.max())
        self._lengths = lengths
        self._level = bool((lengths == self._begun).all())
        self._room, self.fed = room, 0

    @property
    def nbytes(self) -> int:
        """Bytes that are taken."""
        return sum(one.nbytes for pair in self._kept if pair is not None for one in pair)

    @property
    def positions(self) -> Tensor:
        """Where each row's next token stands, [n]."""
        return self._lengths + self.fed

    def layer(self, number: int, window: Window) -> LayerPast:
        """A layer's part, as the layer's own code takes a cache."""
        return LayerPast(self, number, window)

    def mask(self, count: int, kind: torch.dtype) -> Tensor | None:
        """What the next ``count`` tokens see, additive [n, 1, count, tokens]; None if all of it."""
        if self._level and count == 1:
            return None
        device, end = self._lengths.device, self._begun + self.fed + count
        keys = torch.arange(end, device=device)
        own = keys[None, None] - end + count <= torch.arange(count, device=device)[None, :, None]
        gap = (keys >= self._lengths[:, None]) & (keys < self._begun)
        seen = own & ~gap[:, None]
        hidden = torch.zeros(seen.shape, dtype=kind, device=device)
        return hidden.masked_fill_(~seen, torch.finfo(kind).min).unsqueeze(1)

    def advance(self, count: int) -> None:
        """``count`` tokens of each row have gone through all layers."""
        self.fed += count

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._lengths.device)
        self._lengths = self._lengths[index]
        self._kept = [
            None if pair is None else (pair[0][:, index], pair[1][:, index]) for pair in self._kept
        ]

    def begin(self, number: int, window: Window, keys: Tensor, values: Tensor) -> None:
        """Keep what a layer made of prompts, [sets · rows, heads, T, width]."""
        assert window.rows is not None
        for kept, new in zip(self._pair(number, keys, values), (keys, values), strict=True):
            apart = new[:, :, : self._begun].unflatten(0, (-1, len(window.rows)))
            kept[window.sets, window.rows, :, : apart.shape[3]] = apart

    def extend(self, number: int, window: Window, keys: Tensor, values: Tensor) -> _Pair:
        """Keep what a layer made of new tokens; keys and values of all tokens so far."""
        start, rows = self._begun + self.fed, len(self._lengths)
        stop = start + keys.shape[2]
        found = []
        for kept, new in zip(self._pair(number, keys, values), (keys, values), strict=True):
            kept[window.sets, :, :, start:stop] = new.unflatten(0, (-1, rows))
            found.append(kept[window.sets, :, :, :stop].flatten(0, 1))  # a view
        return found[0], found[1]

    def _pair(self, number: int, *like: Tensor) -> _Pair:
        kept = self._kept[number]
        if kept is None:
            tokens = self._begun + self._room
            shape = self._sets[number], len(self._lengths)
            keys, values = (
                one.new_empty((*shape, one.shape[1], tokens, one.shape[3])) for one in like
            )
            kept = self._kept[number] = keys, values
        return kept


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a past that some hidden states read and write, and how they go through layers.

    Attributes:
        past: of all rows.
        sets: which sets of a layer, lane by lane.
        rows: numbers of the rows, where prompts go through; None for new tokens of all rows.
        context: a layer's other arguments; None for those of whole texts.
        mask: additive, or None.
    """

    past: Past
    sets: slice
    rows: Tensor | None = None
    context: Mapping[str, Any] | None = None
    mask: Tensor | None = None


class LayerPast:
    """Stands where a layer expects its cache."""

    def __init__(self, past: Past, number: int, window: Window) -> None:
        self._past, self._number, self._window = past, number, window

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> _Pair:
        """Keep the new keys and values; those that the new tokens attend to."""
        if self._window.rows is None:
            return self._past.extend(self._number, self._window, keys, values)
        self._past.begin(self._number, self._window, keys, values)
        return keys, values
